"""Every key of a checkpoint is accounted for: used, left out for a reason given here, or refused by name."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION
from vit_gelu.models.vit import VisionTransformer

LISTED = 5  # keys that a message names


@dataclass(frozen=True)
class LeftOut:
    """Keys that are no part of the classifier.

    Attributes:
        pattern: a regular expression for the whole key.
        reason: why they may be left out.
        layouts: the conventions of naming where that holds; see ``layouts``.
    """

    pattern: str
    reason: str
    layouts: tuple[str, ...]


LEFT_OUT = (
    LeftOut(r"mask_token", "the token of masked pre-training", ("timm", "deit3", "dinov2")),
    LeftOut(
        r"decoder_(embed|norm|pred)\..+|decoder_pos_embed|decoder_blocks\..+",
        "the decoder of masked pre-training",
        ("timm",),
    ),
    LeftOut(
        r"transformer\..+|token_embedding\..+|ln_final\..+|positional_embedding|text_projection|text\..+",
        "the text tower",
        ("clip", "open_clip"),
    ),
    LeftOut(r"logit_scale|logit_bias", "compares images with texts", ("clip", "open_clip")),
    LeftOut(r"pre_logits\.fc\..+", "timm builds this model without the representation layer", ("timm name",)),
    LeftOut(r"attn_pool\..+", "timm builds this model without the attention pooling", ("timm name",)),
)


def leave_out(state: dict[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state without the keys that ``LEFT_OUT`` lists for a layout, and a note for each reason."""
    kept, notes = dict(state), []
    for rule in LEFT_OUT:
        keys = [key for key in kept if layout in rule.layouts and re.fullmatch(rule.pattern, key)]
        if keys:
            notes.append(f"left out: {_some(keys)}: {rule.reason}")
            kept = {key: value for key, value in kept.items() if key not in keys}
    return kept, notes


def shapes_of(options: dict[str, Any]) -> dict[str, torch.Size]:
    """Names and shapes of what a ``VisionTransformer`` of these options keeps, without its memory."""
    options = {**options, "seed": 0}  # none drawn from torch's generator, which is the run's
    try:
        with torch.device("meta"):
            model = VisionTransformer(**options)
    except (NotImplementedError, RuntimeError):  # an activation of the user's own may compute as it is built
        model = VisionTransformer(**options)
    return {name: value.shape for name, value in model.state_dict().items()}


def account(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], where: str) -> None:
    """Check that a state dict is exactly what a model expects.

    Args:
        expected: shapes by name.
        state: tensors by name.
        where: names the checkpoint in the message.

    Raises:
        ValueError: keys are missing or surplus, or a shape differs; the first five of each are named.
    """
    missing = [name for name in expected if name not in state]
    surplus = [name for name in state if name not in expected]
    differing = [
        f"{name} {tuple(state[name].shape)}, not {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if missing or surplus or differing:
        parts = {"missing": missing, "surplus": surplus, "of another shape": differing}
        lines = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in parts.items() if keys]
        raise ValueError(
            "\n".join([f"{OPTION} {where}: its weights are not those of the Vision Transformer:", *lines])
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:LISTED]) + (f", … ({len(keys)} in all)" if len(keys) > LISTED else "")
