"""How a run begins that starts from pretrained weights: load strictly, adapt, swap the activation, say what changed."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vit_gelu.models.anneal import AnnealHandle, anneal_activations
from vit_gelu.models.pretrained import Pretrained, build_pretrained
from vit_gelu.models.swap import compare_logits, swap_activations

COMPARED_IMAGES = 256


@dataclass
class Beginning:
    """A network that training starts from.

    Attributes:
        network: with the weights loaded, and the activation that was asked for (or on its way there).
        anneal: blends the old activation into the new one; None where it is not asked for.
        lines: what was changed, a line each, for people.
        record: the same for ``record.json``; None for a network from scratch.
    """

    network: nn.Module
    anneal: AnnealHandle | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None


def begin_from_pretrained(
    pretrained: Pretrained,
    sample: Callable[[int], Tensor],
    *,
    activation: str | None,
    activation_kwargs: dict[str, Any] | None,
    annealed: bool,
    shape: dict[str, Any],
    others: dict[str, Any],
) -> Beginning:
    """Build the checkpoint's own network, load it strictly, adapt it, and only then swap its activation.

    Args:
        pretrained: the checkpoint.
        sample: n -> normalised images (n, c, h, w) on the CPU, to see what the swap does to the logits.
        activation: the new one; None, or the checkpoint's own: nothing is swapped.
        activation_kwargs: of the new one.
        annealed: blend old and new instead of swapping at once.
        shape: image_size, in_channels, patch_size (None: the checkpoint's), num_classes, zero_init_head.
        others: options of ``VisionTransformer`` that the checkpoint leaves open, or that must agree with it.

    Raises:
        ValueError: options that contradict the checkpoint, or an activation that cannot take its place.
    """
    network, changes = build_pretrained(pretrained, **shape, **others)
    lines = [change.text for change in changes]
    record: dict[str, Any] = {
        "source": pretrained.source,
        "name": pretrained.name,
        "origin": pretrained.origin,
        "sha256": pretrained.sha256,
        "activation": pretrained.options["activation"],
        "changes": list(lines),
        "swap": None,
    }
    own = pretrained.options["activation"], pretrained.options.get("activation_kwargs") or {}
    if activation is None or (activation, activation_kwargs or {}) == own:
        return Beginning(network, None, lines, record)

    # With the checkpoint's own head: a new one, at zero, would show no difference.
    before, _ = build_pretrained(pretrained, **{**shape, "num_classes": None}, **others)
    after = copy.deepcopy(before)
    swap = swap_activations(after, activation, to_kwargs=activation_kwargs)
    effect = compare_logits(before.eval(), after.eval(), sample(COMPARED_IMAGES))
    handle = None
    if annealed:
        handle = anneal_activations(network, activation, to_kwargs=activation_kwargs)
    else:
        swap_activations(network, activation, to_kwargs=activation_kwargs)
    record["swap"] = {**swap.record(), **effect.record(), "annealed": annealed}
    lines += [
        f"{swap.text}: {effect.text}" + (" if swapped at once; blended in over training" if annealed else "")
    ]
    return Beginning(network, handle, lines, record)


def anneal_share(step: int, steps: int) -> float:
    """Share of the new activation at optimizer step ``step`` (from 0) of an annealing over ``steps`` steps.

    Linear, 0 at the first step, exactly 1 from step ``steps`` on.

    >>> [anneal_share(step, 4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, step / steps)


def reduced_statistics(values: tuple[float, ...], channels: int) -> list[float]:
    """Mean or standard deviation of a checkpoint for images of another number of channels: their average, repeated."""
    if len(values) == channels:
        return list(values)
    return [sum(values) / len(values)] * channels
