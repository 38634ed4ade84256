"""A network that training starts from, and what a swapped activation does to it."""

import copy
from dataclasses import dataclass, field
from typing import Any

from vit_gelu.models.anneal import AnnealHandle, anneal_activations
from vit_gelu.models.build import Network
from vit_gelu.models.swap import SwapEffect, compare_logits, swap_activations

COMPARED_IMAGES = 256


@dataclass
class Beginning:
    """A network that training starts from.

    Attributes:
        network: with its weights, and the activation that was asked for (or on its way there).
        anneal: blends the old activation into the new one; None where it is not asked for.
        lines: what was changed, a line each, for people.
        record: the same for ``record.json``; None for a network from scratch.
    """

    network: Network
    anneal: AnnealHandle | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None

    def say_first(self, lines: list[str]) -> None:
        """Put lines about the images in front."""
        self.lines[:0] = lines
        if self.record is not None:
            self.record["images"] = list(lines)

    def say(self, lines: list[str]) -> None:
        """Add lines about what is trained."""
        self.lines += lines
        if self.record is not None:
            self.record["trained"] = list(lines)


def swap_and_say(
    beginning: Beginning, before: Network, options: dict[str, Any], data: Any, anneal_steps: int | None
) -> None:
    """Swap the activation of the beginning's network, and say what that does to the network ``before``."""
    activation, kwargs = options["activation"], options["activation_kwargs"]
    after = copy.deepcopy(before)
    try:
        swap = swap_activations(after, activation, to_kwargs=kwargs)
    except ValueError as error:
        raise ValueError(f"--activation {activation}: {error}") from None
    effect = compare_logits(before, after, data.sample_images(COMPARED_IMAGES))
    if anneal_steps is not None:
        beginning.anneal = anneal_activations(beginning.network, activation, to_kwargs=kwargs)
    else:
        swap_activations(beginning.network, activation, to_kwargs=kwargs)
    assert beginning.record is not None
    beginning.record["swap"] = {
        **swap.record(),
        **_effect_record(effect, before),
        "annealed": anneal_steps is not None,
        "anneal_steps": anneal_steps,
    }
    how = " (with the checkpoint's own head)" if _has_logits(before) else ""
    how += f"; blended in over {anneal_steps:,} steps" if anneal_steps is not None else ""
    beginning.lines.append(f"{swap.text}: {_effect_text(effect, before)}{how}")


def _has_logits(network: Network) -> bool:
    return bool(network.config.get("num_classes"))


def _effect_record(effect: SwapEffect, network: Network) -> dict[str, Any]:
    record = effect.record()
    return record if _has_logits(network) else {**record, "top1_agreement": None}


def _effect_text(effect: SwapEffect, network: Network) -> str:
    if _has_logits(network):
        return effect.text
    return (
        f"features moved by {effect.max_abs:.3g} (max), {effect.mean_abs:.3g} (mean) on {effect.n:,} images"
    )
