"""A timm model's architecture in our options, or the argument of timm's that they cannot express.

The model is built without memory and read part by part: its classes are compared exactly, so what is not known
here is refused and not passed over.
"""

from typing import Any, NoReturn

import torch
from torch import nn

from vit_gelu.activations import build_activation
from vit_gelu.models.pretrained.checkpoint import OPTION
from vit_gelu.models.stem import RESNET_LAYERS

NATIVE = ("gelu", "gelu_tanh", "gelu_sigmoid", "relu", "silu", "elu", "mish", "hardswish", "tanh", "identity")
GATED = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}


class _Refusal:
    def __init__(self, name: str, architecture: str) -> None:
        self.name, self.architecture = name, architecture

    def __call__(self, argument: str, what: str) -> NoReturn:
        raise ValueError(
            f"{OPTION} {self.name}: timm's {argument} ({what}) is none of our ViT's options; "
            f"--model.name timm/{self.architecture} --model.pretrained timm trains that model from timm's own weights "
            "(weights of one's own are not read into it)"
        )


def options_from_timm(model: nn.Module, name: str, architecture: str) -> dict[str, Any]:
    """Options of ``VisionTransformer`` that make the same function as a timm model.

    Args:
        model: built by timm, possibly on the meta device.
        name: what the user wrote, for messages.
        architecture: timm's name without tag.

    Raises:
        ValueError: a part that our options cannot express, named by timm's argument for it.
    """
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    refuse = _Refusal(name, architecture)
    if type(model).__name__ == "VisionTransformerDistilled":
        refuse("distilled", "a distillation token and two heads, DeiT")
    if type(model) is not TimmViT:
        refuse("architecture", f"{type(model).__name__}, no plain Vision Transformer")
    vit: Any = model
    if vit.attn_pool is not None:
        refuse(f"global_pool={vit.global_pool!r}", "attention pooling")
    if vit.global_pool not in ("token", "avg"):
        refuse(f"global_pool={vit.global_pool!r}", "pooling")
    if vit.global_pool == "avg" and getattr(vit, "pool_include_prefix", False):
        refuse("pool_include_prefix=True", "pooling over class and register tokens")
    if isinstance(vit.norm, nn.Identity) and isinstance(vit.fc_norm, nn.Identity):
        refuse("final_norm=False", "no norm before the head")
    return {
        **_stem(vit.patch_embed, refuse),
        "num_classes": vit.num_classes,
        "embed_dim": vit.embed_dim,
        "depth": len(vit.blocks),
        "pooling": "cls" if vit.global_pool == "token" else "mean",
        "class_token": vit.cls_token is not None,
        "position_embedding": "none" if vit.pos_embed is None else "learned",
        "no_embed_class": bool(vit.no_embed_class),
        "register_tokens": 0 if vit.reg_token is None else vit.reg_token.shape[1],
        "pre_norm": not isinstance(vit.norm_pre, nn.Identity),
        "fc_norm": not isinstance(vit.fc_norm, nn.Identity),
        **_blocks(vit, refuse),
    }


def _blocks(vit: Any, refuse: _Refusal) -> dict[str, Any]:
    from timm.models.vision_transformer import Attention, Block

    first = vit.blocks[0]
    for block in vit.blocks:
        if type(block) is not Block:
            refuse("block_fn", type(block).__name__)
        if type(block.attn) is not Attention:
            refuse("attn_layer", type(block.attn).__name__)
        for part, argument in ((block.attn, "scale_attn_norm=True"), (block.mlp, "scale_mlp_norm=True")):
            if not isinstance(getattr(part, "norm", nn.Identity()), nn.Identity):
                refuse(argument, "a norm within attention or MLP")
        if getattr(block.attn, "gate", None) is not None:
            refuse("gated", "gated attention")
        if block.attn.proj.bias is None:
            refuse("proj_bias=False", "no bias in the output projections")
        if block.attn.num_heads * block.attn.head_dim != vit.embed_dim:
            refuse("attn_head_dim", "heads that do not add up to the width")
    attention = first.attn
    return {
        "num_heads": attention.num_heads,
        "qkv_bias": attention.qkv.bias is not None,
        "qk_norm": not isinstance(attention.q_norm, nn.Identity),
        "layer_scale": None if isinstance(first.ls1, nn.Identity) else 1e-5,
        "norm_eps": _norm_eps(vit, refuse),
        **_mlp(first.mlp, refuse),
    }


def _norm_eps(vit: Any, refuse: _Refusal) -> float:
    norms = [vit.norm_pre, vit.norm, vit.fc_norm]
    for block in vit.blocks:
        norms += [block.norm1, block.norm2, block.attn.q_norm, block.attn.k_norm]
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    for norm in norms:
        if not isinstance(norm, nn.LayerNorm) or norm.weight is None or norm.bias is None:
            refuse("norm_layer", type(norm).__name__)
    epsilons = {norm.eps for norm in norms}
    if len(epsilons) > 1:
        refuse("norm_layer", f"different epsilons, {sorted(epsilons)}")
    return float(epsilons.pop())


def _mlp(mlp: Any, refuse: _Refusal) -> dict[str, Any]:
    from timm.layers import GluMlp, Mlp

    if type(mlp) not in (Mlp, GluMlp):
        refuse("mlp_layer", type(mlp).__name__)
    activation = activation_by_values(mlp.act)
    if activation is None:
        refuse("act_layer", type(mlp.act).__name__)
    if type(mlp) is GluMlp:
        if mlp.gate_last or activation not in GATED:
            refuse("mlp_layer", f"GluMlp with gate_last={mlp.gate_last} and {activation}")
        activation = GATED[activation]
    return {"activation": activation, "mlp_hidden": mlp.fc2.in_features}


def activation_by_values(activation: nn.Module) -> str | None:
    """Which of ``NATIVE`` a module computes, found by its values; None if it is none, or has parameters.

    >>> activation_by_values(nn.GELU("tanh")), activation_by_values(nn.Sigmoid())
    ('gelu_tanh', None)
    """
    if any(True for _ in activation.parameters()):
        return None
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64, device="cpu")
    y = activation(x.clone())  # it may work in place
    for name in NATIVE:
        if torch.allclose(y, build_activation(name)(x), rtol=0, atol=1e-7):
            return name
    return None


def _stem(embed: Any, refuse: _Refusal) -> dict[str, Any]:
    from timm.layers import HybridEmbed, PatchEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2

    if getattr(embed, "dynamic_img_pad", False):
        refuse("dynamic_img_pad=True", "images padded to whole patches")
    if not isinstance(embed.proj, nn.Conv2d):
        refuse("embed_layer", f"{type(embed.backbone).__name__} without a projection")
    stem, stride, in_channels = "patch", 1, embed.proj.in_channels
    if type(embed) is HybridEmbed:
        backbone: Any = embed.backbone
        whole = type(backbone) is ResNetV2
        convolution = backbone.stem.conv if whole else getattr(backbone, "conv", None)
        layers = tuple(len(stage.blocks) for stage in backbone.stages) if whole else ()
        names = {known: name for name, known in RESNET_LAYERS.items()}
        if not isinstance(convolution, StdConv2dSame) or layers not in names:
            refuse("embed_layer", f"{type(backbone).__name__} with stages of {list(layers)} blocks")
        stem, stride, in_channels = names[layers], 4 * 2 ** max(0, len(layers) - 1), convolution.in_channels
    elif type(embed) is not PatchEmbed:
        refuse("embed_layer", type(embed).__name__)
    elif not isinstance(embed.norm, nn.Identity):
        refuse("embed_norm_layer", type(embed.norm).__name__)
    patch = [side * stride for side in embed.proj.kernel_size]
    return {
        # timm leaves out pixels beyond the last whole patch, such as 384 - 27*14.
        "image_size": [n * side for n, side in zip(embed.grid_size, patch, strict=True)],
        "patch_size": patch,
        "in_channels": in_channels,
        "stem": stem,
    }
