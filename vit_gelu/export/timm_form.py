"""How stock timm builds the same network: an architecture and its ``model_args``, or the reason why it cannot."""

from dataclasses import dataclass
from typing import Any

from timm.layers import get_act_layer
from torch import nn

from vit_gelu.activations import build_activation
from vit_gelu.activations.recognition import describe_activation, name_activation
from vit_gelu.export.trained import Trained
from vit_gelu.models import VIT_SIZES, VisionTransformer
from vit_gelu.models.activation_places import all_places
from vit_gelu.models.timm_model import PREFIX, TimmModel

# Our names, where timm's ``act_layer`` of that name is the same function with the same parameters.
TIMM_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_stochastic": "gelu",  # in evaluation
    "gelu_tanh": "gelu_tanh",
    "gelu_sigmoid": "quick_gelu",
    "relu": "relu",
    "elu": "elu",
    "silu": "silu",
    "leaky_relu": "leaky_relu",
    "prelu": "prelu",
    "mish": "mish",
    "hardswish": "hard_swish",
    "tanh": "tanh",
    "identity": "identity",
    "torch.nn.CELU": "celu",
    "torch.nn.SELU": "selu",
    "torch.nn.ReLU6": "relu6",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.Hardsigmoid": "hard_sigmoid",
}
# timm takes a gated MLP as a class, not by name; this architecture has it, and all its other options are overridden.
GATED_ARCHITECTURE = "vit_giant_patch14_dinov2"
TIMM_GATES = {"swiglu": "silu", "geglu": "gelu", "reglu": "relu"}
# Likewise the epsilon of the norms: CLIP's.
EPS_ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
HYBRIDS = {
    "resnet_stem": ("vit_tiny_r_s16_p8_224", 4),
    "resnet26": ("vit_small_r26_s32_224", 32),
    "resnet50": ("vit_base_r50_s16_224", 16),
}
# What has no part in evaluation, or is read off the built network below.
NOT_OF_THE_FUNCTION = {
    "dropout", "attention_dropout", "patch_dropout", "drop_path", "attention", "mlp_memory", "residual_precision",
    "init", "seed",
    "zero_init_head", "mlp_ratio", "mlp_hidden", "activation", "activation_kwargs",
}  # fmt: skip
OTHER_FORMATS = "formats that do it: state_dict, onnx, torch_export"


@dataclass(frozen=True)
class TimmForm:
    """What ``timm.create_model`` is told.

    Attributes:
        architecture: one of timm's names.
        model_args: plain values, which override the architecture's.
        pretrained_cfg: entries that timm would not guess: which layers are first and last.
    """

    architecture: str
    model_args: dict[str, Any]
    pretrained_cfg: dict[str, Any]


def refusal(what: str) -> ValueError:
    """The error of a network that stock timm cannot build."""
    return ValueError(f"--format timm: {what}; {OTHER_FORMATS}")


def timm_form(trained: Trained) -> TimmForm:
    """Say a network in timm's terms.

    Raises:
        ValueError: stock timm cannot build it; names the option and the formats that can.
    """
    net = trained.net
    return _of_timm(net) if isinstance(net, TimmModel) else _of_ours(net)


def _known_layer(name: str) -> str:
    try:
        get_act_layer(name)
    except KeyError:
        raise refusal(f"this timm has no activation {name!r}") from None
    return name


def act_layer(activation: nn.Module) -> str:
    """timm's name for an activation.

    Raises:
        ValueError: it has none.

    >>> act_layer(nn.GELU(approximate="tanh"))
    'gelu_tanh'
    """
    name, options = name_activation(activation) or ("", {})
    if name not in TIMM_ACTIVATIONS:
        raise refusal(f"stock timm has no activation {describe_activation(activation)}")
    if options:
        raise refusal(
            f"timm's {TIMM_ACTIVATIONS[name]} takes no options, and this is {describe_activation(activation)}"
        )
    return _known_layer(TIMM_ACTIVATIONS[name])


def _of_ours(net: VisionTransformer) -> TimmForm:
    config = dict(net.config)
    option = config.pop
    block: Any = net.blocks[0]
    mlp = block.mlp
    gated = getattr(mlp.act, "gated", False)
    eps, stem = option("norm_eps"), option("stem")
    if option("representation_size") is not None:
        raise refusal("timm's ViT has no layer between pooling and head, and representation_size makes one")
    if stem not in ("patch", *HYBRIDS):
        raise refusal(f"timm has no ViT whose stem is {stem}")
    patch_size = list(option("patch_size"))
    first_conv = "patch_embed.proj"
    if eps not in EPS_ARCHITECTURES:
        raise refusal(f"norm_eps {eps}: timm's ViTs have {' or '.join(map(str, EPS_ARCHITECTURES))}")
    special = [
        what
        for what, is_so in (
            (f"activation {config['activation']}", gated),
            (f"stem {stem}", stem != "patch"),
            (f"norm_eps {eps}", eps != 1e-6),
        )
        if is_so
    ]
    if len(special) > 1:
        raise refusal(f"no architecture of timm has both {' and '.join(special)}")
    if stem != "patch":
        architecture, stride = HYBRIDS[stem]
        patch_size = [side // stride for side in patch_size]
        first_conv = (
            "patch_embed.backbone.stem.conv" if stem != "resnet_stem" else "patch_embed.backbone.conv"
        )
    elif gated:
        architecture = GATED_ARCHITECTURE
    else:
        architecture = EPS_ARCHITECTURES[eps]
    width, depth, heads = option("embed_dim"), option("depth"), option("num_heads")
    if architecture == EPS_ARCHITECTURES[1e-6]:
        # Any would do, as all is overridden; the nearest in name is the one to read.
        same = [
            n for n, s in VIT_SIZES.items() if (s.embed_dim, s.depth, s.num_heads) == (width, depth, heads)
        ]
        patch = VIT_SIZES[same[0]].patch_size if same else 16
        architecture = f"{same[0]}_patch{patch}_224" if same else architecture
    arguments = {
        "img_size": list(option("image_size")),
        "patch_size": patch_size,
        "in_chans": option("in_channels"),
        "num_classes": option("num_classes"),
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        # Half a unit more, as timm rounds the product down.
        "mlp_ratio": (mlp.fc1.out_features + 0.5) / width,
        "act_layer": _gate(mlp.act) if gated else act_layer(mlp.act),
        "global_pool": {"cls": "token", "mean": "avg"}[option("pooling")],
        "class_token": option("class_token"),
        "pos_embed": {"learned": "learn", "sincos2d": "learn", "none": "none"}[option("position_embedding")],
        "no_embed_class": option("no_embed_class"),
        "reg_tokens": option("register_tokens"),
        "init_values": option("layer_scale") or 0.0,  # 0: none
        "qkv_bias": option("qkv_bias"),
        "qk_norm": option("qk_norm"),
        "pre_norm": option("pre_norm"),
        "fc_norm": not isinstance(net.fc_norm, nn.Identity),
    }
    option("fc_norm")
    unknown = sorted(set(config) - NOT_OF_THE_FUNCTION)
    if unknown:
        raise refusal(f"no way to say {', '.join(unknown)} in timm's terms")
    return TimmForm(architecture, arguments, {"first_conv": first_conv, "classifier": "head"})


def _gate(activation: nn.Module) -> str:
    name, _ = name_activation(activation) or ("", {})
    if name not in TIMM_GATES:
        raise refusal(f"stock timm has no gated activation {describe_activation(activation)}")
    return _known_layer(TIMM_GATES[name])


def _of_timm(net: TimmModel) -> TimmForm:
    import timm

    own: Any = net.timm_model
    architecture = net.config["name"].removeprefix(PREFIX).partition(".")[0]
    known = {
        "name", "num_classes", "image_size", "in_channels", "activation", "activation_kwargs", "seed",
        "native_activation",
    }  # fmt: skip
    arguments = {k: v for k, v in net.config.items() if k not in known}
    arguments |= {"in_chans": net.config["in_channels"], "num_classes": net.config["num_classes"]}
    cfg = {k: own.pretrained_cfg[k] for k in ("first_conv", "classifier") if k in own.pretrained_cfg}
    if own.pretrained_cfg.get("fixed_input_size"):
        arguments["img_size"] = list(net.config["image_size"])
    if net.config["activation"] is None:
        return TimmForm(architecture, arguments, cfg)
    # A model whose activations were swapped one by one is stock timm only if timm's own option sets the same ones.
    new = build_activation(net.config["activation"], **net.config["activation_kwargs"])
    arguments["act_layer"] = _gate(new) if getattr(new, "gated", False) else act_layer(new)
    here = {p.name: describe_activation(p.module) for p in all_places(net)}
    try:
        there = {
            p.name: describe_activation(p.module)
            for p in all_places(timm.create_model(architecture, **arguments))
        }
    except (TypeError, KeyError, AttributeError):
        raise refusal(f"{architecture} takes no act_layer by name") from None
    if here != there:
        different = next((n for n in sorted({*here, *there}) if here.get(n) != there.get(n)), "")
        raise refusal(
            f"act_layer {arguments['act_layer']} makes another {architecture}: {different} would be "
            f"{there.get(different)}, and is {here.get(different)} here"
        )
    return TimmForm(architecture, arguments, cfg)
