"""The same ViT as built by other libraries, with our weights in it where their parameters are the same ones."""

import importlib.util
import re
from collections.abc import Callable
from typing import NamedTuple

import checkout  # noqa: F401
import torch
from torch import Tensor, nn

from vit_gelu.cli.errors import UsageError
from vit_gelu.models import VisionTransformer

LOGIT_TOLERANCE = 1e-4  # of the largest logit, float32


class Peer(NamedTuple):
    """A model of another library.

    Attributes:
        module: images (b, c, h, w) -> logits (b, num_classes).
        logit_error: largest difference from our logits over the largest logit, float32, CPU; None where the
            architecture differs, so that no weights could be carried over.
        note: how the architecture differs; empty where it does not.
    """

    module: nn.Module
    logit_error: float | None
    note: str = ""


def _side(config: dict, option: str) -> int:
    height, width = config[option]
    if height != width:
        raise UsageError(f"--{option}: peers take squares only")
    return height


def _timm(config: dict) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer as TimmViT

    names = ("num_classes", "embed_dim", "depth", "num_heads")
    return TimmViT(
        img_size=_side(config, "image_size"),
        patch_size=_side(config, "patch_size"),
        **{name: config[name] for name in names},
    )


def _torchvision(config: dict) -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

    return TorchvisionViT(
        image_size=_side(config, "image_size"),
        patch_size=_side(config, "patch_size"),
        num_layers=config["depth"],
        num_heads=config["num_heads"],
        hidden_dim=config["embed_dim"],
        mlp_dim=4 * config["embed_dim"],
        num_classes=config["num_classes"],
    )


class _Logits(nn.Module):
    """A transformers model whose output is the logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _transformers(config: dict) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    options = ViTConfig(
        image_size=_side(config, "image_size"),
        patch_size=_side(config, "patch_size"),
        hidden_size=config["embed_dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["num_heads"],
        intermediate_size=4 * config["embed_dim"],
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=config["norm_eps"],
        num_labels=config["num_classes"],
    )
    return _Logits(ViTForImageClassification(options))


def _vit_pytorch(config: dict) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=_side(config, "image_size"),
        patch_size=_side(config, "patch_size"),
        num_classes=config["num_classes"],
        dim=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        dim_head=config["embed_dim"] // config["num_heads"],
        mlp_dim=4 * config["embed_dim"],
    )


# Their parameter names -> ours, applied in this order; transformers 4 and 5 differ in theirs.
_TORCHVISION_NAMES = (
    (r"^class_token", "cls_token"),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"^encoder\.ln\.", "norm."),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"\.ln_", ".norm"),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^heads\.head\.", "head."),
)
_TRANSFORMERS_NAMES = (
    (r"^model\.", ""),
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^vit\.(encoder\.layer|layers)\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.qkv.0."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.qkv.1."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.qkv.2."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^vit\.layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)


def _carry_over(ours: nn.Module, theirs: nn.Module, names: tuple[tuple[str, str], ...]) -> None:
    """Load our weights into their model, strictly: every parameter of both must find its counterpart."""
    source = dict(ours.state_dict())
    for key in [key for key in source if ".attn.qkv." in key]:
        for i, part in enumerate(source[key].chunk(3)):
            source[key.replace(".qkv.", f".qkv.{i}.")] = part
    state, used = {}, set()
    for key in theirs.state_dict():
        name = key
        for pattern, ours_name in names:
            name = re.sub(pattern, ours_name, name)
        state[key] = source[name]
        used.add(re.sub(r"\.qkv\.\d\.", ".qkv.", name))
    theirs.load_state_dict(state, strict=True)
    missing = set(ours.state_dict()) - used
    assert not missing, f"not carried over: {sorted(missing)}"


_VIT_PYTORCH_NOTE = (
    "no bias in qkv; LayerNorm before and after the patch projection, which is a Linear; epsilon 1e-5"
)
# Package to import, how it is built, names of its parameters (None: not the same architecture), the difference.
_Names = tuple[tuple[str, str], ...] | None
PEERS: dict[str, tuple[str, Callable[[dict], nn.Module], _Names, str]] = {
    "timm": ("timm", _timm, (), ""),
    "torchvision": ("torchvision", _torchvision, _TORCHVISION_NAMES, ""),
    "vit-pytorch": ("vit_pytorch", _vit_pytorch, None, _VIT_PYTORCH_NOTE),
    "transformers": ("transformers", _transformers, _TRANSFORMERS_NAMES, ""),
}


def installed_peers() -> list[str]:
    """Those of ``PEERS`` whose package is installed."""
    return [name for name, (package, *_) in PEERS.items() if importlib.util.find_spec(package)]


def build_peer(name: str, ours: VisionTransformer) -> Peer:
    """The counterpart of our model, with its weights, checked: equal logits to 1e-4.

    Args:
        name: a key of ``PEERS``.
        ours: on the CPU, float32; plain (no registers, mean pooling or LayerScale).

    Raises:
        UsageError: the package is not installed.
        RuntimeError: the logits differ, so that the two are not one model and must not be compared.
    """
    package, build, names, note = PEERS[name]
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f'--peers {name}: not installed; python -m pip install -e ".[peers]", or name other peers: '
            f"{' '.join(installed_peers())}"
        )
    theirs = build(ours.config)
    if names is None:
        return Peer(theirs, None, note)
    _carry_over(ours, theirs, names)
    height, width = ours.config["image_size"]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, ours.config["in_channels"], height, width, generator=generator)
    training = ours.training
    with torch.inference_mode():
        mine, reference = ours.eval()(images), theirs.eval()(images)
    ours.train(training)
    assert mine.std() > 0.01, "weights too small for the comparison to see a difference"
    error = float((mine - reference).abs().max() / reference.abs().max().clamp(min=1))
    if error > LOGIT_TOLERANCE:
        raise RuntimeError(f"{name}: its logits differ from ours by {error:.2g}: not the same model")
    return Peer(theirs.train(training), error, note)
