"""The architecture behind a bare state dict, from its names and shapes."""

import math
import re
from typing import Any

from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION
from vit_gelu.models.stem import RESNET_LAYERS
from vit_gelu.models.vit import VIT_SIZES

HEAD_WIDTH = 64
FOREIGN = {
    "dist_token": "a distillation token and two heads (DeiT)",
    "head_dist.": "a distillation token and two heads (DeiT)",
    "attn_pool.": "attention pooling (SigLIP)",
}


def infer_options(
    state: dict[str, Tensor],
    layout: str,
    where: str,
    image_size: tuple[int, int] | None = None,
    num_heads: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Options of ``VisionTransformer`` for a state dict under timm's names, and what had to be assumed.

    Args:
        state: see ``layouts.to_timm_names``.
        layout: what it was before.
        where: names the checkpoint in messages.
        image_size: that it was trained on; needed only where the position embeddings are not of a square grid,
            or are none.
        num_heads: where the file says it.

    Raises:
        ValueError: parts that the shapes do not explain, or that our ViT has not.
    """
    kernel = state.get("patch_embed.proj.weight")
    if kernel is None or kernel.ndim != 4:
        raise ValueError(f"{OPTION} {where}: has no patch_embed.proj.weight of four dimensions")
    for key, what in FOREIGN.items():
        if any(name.startswith(key) for name in state):
            raise ValueError(
                f"{OPTION} {where}: has {what}, which our ViT has not, so such a file is not read; timm's own "
                "weights can be trained: --model.name timm/NAME --model.pretrained timm"
            )
    notes: list[str] = []
    dim = kernel.shape[0]
    depth = 1 + max((int(m[1]) for k in state if (m := re.match(r"blocks\.(\d+)\.", k))), default=-1)
    if depth == 0:
        raise ValueError(f"{OPTION} {where}: has no blocks.0")
    stem, stride, in_channels = _stem(state, where)
    patch = (kernel.shape[2] * stride, kernel.shape[3] * stride)
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    grid, no_embed_class = _grid(state, layout, patch, where, image_size)
    if "pos_embed" not in state and image_size is None:
        notes.append(f"image_size {grid[0] * patch[0]}: assumed, there are no position embeddings to tell")
    class_token = "cls_token" in state
    fc_norm = "fc_norm.weight" in state
    pooling = "mean" if fc_norm or not class_token else "cls"
    options: dict[str, Any] = {
        "image_size": [grid[0] * patch[0], grid[1] * patch[1]],
        "patch_size": list(patch),
        "in_channels": in_channels,
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "embed_dim": dim,
        "depth": depth,
        "pooling": pooling,
        "class_token": class_token,
        "position_embedding": "learned" if "pos_embed" in state else "none",
        "no_embed_class": no_embed_class,
        "register_tokens": registers,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state,
        "pre_norm": "norm_pre.weight" in state,
        "fc_norm": fc_norm,
        "norm_eps": _norm_eps(state, layout, notes),
        "representation_size": _rows(state, "pre_logits.fc.weight"),
        "stem": stem,
    }
    if class_token:
        notes.append(f"pooling {pooling}: assumed from the place of the last norm")
    options["num_heads"] = num_heads or _heads(state, dim, depth, where, notes)
    options |= _mlp(state, layout, where, notes)
    return options, notes


def is_clips(state: dict[str, Tensor], layout: str) -> bool:
    """Whether it is an image tower of CLIP: by its names, or by the norm before the blocks, which others have not."""
    return layout == "clip" or "norm_pre.weight" in state


def _norm_eps(state: dict[str, Tensor], layout: str, notes: list[str]) -> float:
    eps = 1e-5 if is_clips(state, layout) else 1e-6
    if layout == "timm":
        whose = "as CLIP's" if eps == 1e-5 else "as most ViTs have it"
        notes.append(f"norm_eps {eps:g}: assumed, {whose}")
    return eps


def _rows(state: dict[str, Tensor], key: str) -> int | None:
    return state[key].shape[0] if key in state else None


def _stem(state: dict[str, Tensor], where: str) -> tuple[str, int, int]:
    """Name of the stem, its stride, channels of the images."""
    convolutions = [k for k in state if re.fullmatch(r"patch_embed\.convs\.\d+\.conv\.weight", k)]
    if convolutions:
        return "conv", 2 ** len(convolutions), state["patch_embed.convs.0.conv.weight"].shape[1]
    prefix = "patch_embed.backbone."
    if not any(key.startswith(prefix) for key in state):
        return "patch", 1, state["patch_embed.proj.weight"].shape[1]
    first = state.get(f"{prefix}conv.weight", state.get(f"{prefix}stem.conv.weight"))
    blocks = {
        (int(m[1]), int(m[2]))
        for k in state
        if (m := re.match(rf"{re.escape(prefix)}stages\.(\d+)\.blocks\.(\d+)\.", k))
    }
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    layers = tuple(sum(stage == i for stage, _ in blocks) for i in range(stages))
    for name, known in RESNET_LAYERS.items():
        if layers == known and first is not None:
            return name, 4 * 2 ** max(0, len(layers) - 1), first.shape[1]
    raise ValueError(
        f"{OPTION} {where}: its stem, with stages of {layers} blocks, is none of {', '.join(RESNET_LAYERS)}"
    )


def _grid(
    state: dict[str, Tensor],
    layout: str,
    patch: tuple[int, int],
    where: str,
    image_size: tuple[int, int] | None,
) -> tuple[tuple[int, int], bool]:
    """Rows and columns of patches, and whether class and register tokens are without a position."""
    given = (image_size[0] // patch[0], image_size[1] // patch[1]) if image_size else None
    if "pos_embed" not in state:
        return given or (max(1, 224 // patch[0]), max(1, 224 // patch[1])), False
    tokens = state["pos_embed"].shape[1]
    prefix = ("cls_token" in state) + (state["reg_token"].shape[1] if "reg_token" in state else 0)
    # DINOv2 gives its registers no position, and the class token's has been added to it in renaming.
    with_position = (0,) if layout == "dinov2" and "reg_token" in state else tuple({prefix, 0})
    fits = []
    for embedded in with_position:
        patches = tokens - embedded
        side = math.isqrt(max(patches, 0))
        if given and given[0] * given[1] == patches:
            fits.append((given, embedded < prefix))
        elif not given and side > 0 and side * side == patches:
            fits.append(((side, side), embedded < prefix))
    if len(fits) == 1:
        return fits[0]
    if image_size and given:
        hint = f"images of {image_size[0]}x{image_size[1]} make {given[0]} x {given[1]}"
    else:
        both = "both with and" if fits else "neither with nor"
        hint = f"{both} without its {prefix} class and register tokens a square grid"
        hint += "; a timm folder with config.json says which grid it is"
    raise ValueError(f"{OPTION} {where}: has {tokens} position embeddings, {hint}")


def _heads(state: dict[str, Tensor], dim: int, depth: int, where: str, notes: list[str]) -> int:
    if "blocks.0.attn.q_norm.weight" in state:
        return dim // state["blocks.0.attn.q_norm.weight"].shape[0]
    for name, size in VIT_SIZES.items():
        if (size.embed_dim, size.depth) == (dim, depth):
            notes.append(f"num_heads {size.num_heads}: assumed, as of {name}")
            return size.num_heads
    if dim % HEAD_WIDTH:
        raise ValueError(
            f"{OPTION} {where}: its number of heads cannot be told from its shapes (width {dim} is no multiple "
            f"of {HEAD_WIDTH}); a timm folder with config.json says it"
        )
    notes.append(f"num_heads {dim // HEAD_WIDTH}: assumed, heads of width {HEAD_WIDTH}")
    return dim // HEAD_WIDTH


def _mlp(state: dict[str, Tensor], layout: str, where: str, notes: list[str]) -> dict[str, Any]:
    try:
        units, hidden = state["blocks.0.mlp.fc1.weight"].shape[0], state["blocks.0.mlp.fc2.weight"].shape[1]
    except KeyError as key:
        raise ValueError(f"{OPTION} {where}: has no {key.args[0]}") from None
    if units == hidden:
        notes.append("activation gelu (exact): assumed, the file does not say")
        return {"mlp_hidden": hidden, "activation": "gelu"}
    if units == 2 * hidden and layout == "dinov2":
        return {"mlp_hidden": hidden, "activation": "swiglu"}  # dinov2 has no other gated MLP
    raise ValueError(
        f"{OPTION} {where}: its MLPs are gated ({units} units into {hidden}), by an activation that the file "
        "does not name; a timm folder with config.json says it"
    )
