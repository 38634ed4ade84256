"""Another activation in a network that exists: of any make, in place, with a report of what was changed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_gelu.models.anneal import Anneal, AnnealHandle, anneal_activations, finish_annealing
from vit_gelu.models.replacement import Swap, build_replacements, note_activation, report

__all__ = [
    "Anneal",
    "AnnealHandle",
    "Swap",
    "SwapEffect",
    "anneal_activations",
    "compare_logits",
    "finish_annealing",
    "logits_of",
    "swap_activations",
]


def swap_activations(
    model: nn.Module, to: str, *, to_kwargs: dict[str, Any] | None = None, only: str | None = None
) -> Swap:
    """Replace the activations of a network in place, each by an object of its own.

    Which ones: those of the MLPs, or of a network without MLPs all that are no gates; the rule is that of
    ``vit_gelu.models.activation_places``. Our own networks say the new activation in their ``config``; where ``only``
    leaves one with several, its ``config`` says ``mixed``, which builds no network. Configurations of others, such as
    ``hidden_act`` of transformers, stay as they are.

    Args:
        model: any network whose activations are modules: of torch, timm, torchvision, transformers or your own.
        to: a name or import path that ``build_activation`` knows.
        to_kwargs: that activation's options.
        only: glob over the names of modules; see ``find_places``.

    Raises:
        ValueError: unknown activation or option, nothing to swap (says what there is), or gated for ungated or the
            other way round. Nothing has been changed then.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    >>> print(swap_activations(model, "relu").text)
    gelu -> relu in 1 place (1)
    """
    pairs, left = build_replacements(model, to, to_kwargs, only)
    done = report(model, to, to_kwargs, pairs, left)
    note_activation(model, to, to_kwargs, pairs)
    for place, new in pairs:
        place.put(new)
    return done


@dataclass(frozen=True)
class SwapEffect:
    """How far two networks' logits are apart on the same images.

    Attributes:
        max_abs: largest difference of any logit.
        mean_abs: mean absolute difference over images and classes.
        top1_agreement: share of images for which both find the same class likeliest, a fraction.
        n: images.
    """

    max_abs: float
    mean_abs: float
    top1_agreement: float
    n: int

    @property
    def text(self) -> str:
        """``logits moved by 0.55 (max), 0.12 (mean); top-1 agreement 71.0 % of 512 images``."""
        return (
            f"logits moved by {self.max_abs:.3g} (max), {self.mean_abs:.3g} (mean); "
            f"top-1 agreement {100 * self.top1_agreement:.1f} % of {self.n:,} images"
        )

    def record(self) -> dict[str, Any]:
        """As it stands in ``record.json``."""
        return {
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "top1_agreement": self.top1_agreement,
            "n": self.n,
        }


Logits = nn.Module | Callable[[Tensor], Any] | Tensor


def compare_logits(before: Logits, after: Logits, images: Tensor, *, batch_size: int = 256) -> SwapEffect:
    """What a change of the network did to its logits.

    Args:
        before, after: networks, put into evaluation mode meanwhile, or the logits themselves, (n, classes): of a
            network that is changed in place, take them with ``logits_of`` before.
        images: float, (n, c, h, w), as the networks take them; moved to each network's device.
        batch_size: images at a time.

    Raises:
        ValueError: no images, logits of different shapes, or some that are not finite.

    >>> a, b = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, 2.5], [0.0, 2.0]])
    >>> compare_logits(a, b, torch.empty(2, 1, 1, 1))
    SwapEffect(max_abs=3.0, mean_abs=1.375, top1_agreement=0.5, n=2)
    """
    if len(images) == 0:
        raise ValueError("compare_logits: no images")
    both = []
    for when, what in (("before", before), ("after", after)):
        logits = (
            what if isinstance(what, Tensor) else logits_of(what, images, batch_size=batch_size)
        ).double()
        if not bool(logits.isfinite().all()):
            raise ValueError(f"compare_logits: logits {when} are not all finite")
        both.append(logits.cpu())
    a, b = both
    if a.shape != b.shape or len(a) != len(images):
        raise ValueError(
            f"compare_logits: logits of shapes {tuple(a.shape)} and {tuple(b.shape)} for {len(images)} images"
        )
    moved = (a - b).abs()
    agreement = (a.argmax(dim=1) == b.argmax(dim=1)).double().mean()
    return SwapEffect(float(moved.max()), float(moved.mean()), float(agreement), len(images))


@torch.no_grad()
def logits_of(model: nn.Module | Callable[[Tensor], Any], images: Tensor, *, batch_size: int = 256) -> Tensor:
    """Logits of a network in evaluation mode, on the CPU; modes are left as they were.

    Args:
        model: images -> logits, or an output with ``.logits``, as transformers' models return.
        images: float, (n, c, h, w).
        batch_size: images at a time.
    """
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    modes = {m: m.training for m in model.modules()} if isinstance(model, nn.Module) else {}
    if isinstance(model, nn.Module):
        model.eval()
    try:
        parts = []
        for part in images.split(batch_size):
            if parameter is not None:
                part = part.to(parameter.device, parameter.dtype)
            out = model(part)
            parts.append(getattr(out, "logits", out).float().cpu())
        return torch.cat(parts)
    finally:
        for module, training in modes.items():
            module.training = training
