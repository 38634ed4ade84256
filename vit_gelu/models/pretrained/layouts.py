"""Whose names a state dict uses, and the same weights under timm's names, which are ours."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION

State = dict[str, Tensor]

# In this order: a later name may contain an earlier one.
TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^heads\.pre_logits\.", "pre_logits.fc."),
    (r"^heads\.head\.", "head."),
)
CLIP = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def layout_of(state: State) -> str:
    """``timm``, ``deit3``, ``dinov2``, ``torchvision``, ``clip``, ``open_clip`` or ``transformers``; else empty."""
    if any(key.startswith("visual.trunk.") for key in state):
        return "open_clip"
    if "visual.class_embedding" in state or {"class_embedding", "conv1.weight"} <= state.keys():
        return "clip"
    if any("embeddings.patch_embeddings." in k or "embeddings.patch_embedding." in k for k in state):
        return "transformers"
    if "encoder.pos_embedding" in state:
        return "torchvision"
    if "patch_embed.proj.weight" not in state:
        return ""
    if "register_tokens" in state or any(".mlp.w12." in key for key in state):
        return "dinov2"
    if any(re.search(r"\.gamma_[12]$", key) for key in state):
        return "deit3"
    return "timm"


def to_timm_names(state: State, where: str) -> tuple[State, str]:
    """A state dict under timm's names, and the layout that it had. Keys that have no such name keep theirs.

    Raises:
        ValueError: it is no Vision Transformer's, or in a layout that is not read.
    """
    layout = layout_of(state)
    if layout in CONVERSIONS:
        return CONVERSIONS[layout](state), layout
    if layout == "transformers":
        raise ValueError(
            f"{OPTION} {where}: is in the layout of the transformers library, which is not read; "
            "timm has the same weights under a name of its own"
        )
    raise ValueError(
        f"{OPTION} {where}: not a Vision Transformer of a known layout (timm, torchvision, CLIP, DINOv2, "
        f"Google's .npz); its first keys: {', '.join(list(state)[:5])}"
    )


def _renamed(rules: tuple[tuple[str, str], ...], state: State) -> State:
    out = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def _dinov2(state: State) -> State:
    """facebookresearch/dinov2: w12 and w3 of its SwiGLU, registers that have no position of their own."""
    out = _renamed(((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")), state)
    if "register_tokens" in out:
        # Registers stand between class token and patches, and no position is added to them.
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    return out


def _clip(state: State) -> State:
    """openai/CLIP and open_clip: the image tower stands under ``visual.`` unless it stands alone."""
    if "visual.class_embedding" in state:
        # The text tower's names are those of the image tower; only what is under visual. is renamed.
        tower = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
        rest = {k: v for k, v in state.items() if not k.startswith("visual.")}
    else:
        tower, rest = dict(state), {}
    tower["cls_token"] = tower.pop("class_embedding")[None, None]
    if "positional_embedding" in tower:
        tower["pos_embed"] = tower.pop("positional_embedding")[None]
    if "proj" in tower:
        weight = tower.pop("proj").T.contiguous()
        tower |= {"head.weight": weight, "head.bias": torch.zeros(len(weight))}
    return {**_renamed(CLIP, tower), **rest}


def _open_clip(state: State) -> State:
    """open_clip around one of timm's models: ``visual.trunk`` is timm's, its head stands beside it."""
    out = {k.removeprefix("visual.trunk."): v for k, v in state.items()}
    if "visual.head.proj.weight" in out:
        weight = out.pop("visual.head.proj.weight")
        bias = out.pop("visual.head.proj.bias", torch.zeros(len(weight)))
        out |= {"head.weight": weight, "head.bias": bias}
    return out


CONVERSIONS: dict[str, Callable[[State], State]] = {
    "timm": dict,
    "deit3": lambda state: _renamed(((r"\.gamma_([12])$", r".ls\1.gamma"),), state),
    "dinov2": _dinov2,
    "torchvision": lambda state: _renamed(TORCHVISION, state),
    "clip": _clip,
    "open_clip": _open_clip,
}
