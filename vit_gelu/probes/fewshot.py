"""Few-shot linear evaluation: ViT paper (arXiv:2010.11929), §4.1, "Metrics".

Regularised least squares from frozen features to targets {−1, 1}^K, solved in closed form. What the paper leaves
open follows its authors' code (google-research/big_vision, evaluators/fewshot_lsr.py): features standardised with the
few images' own mean and deviation, a constant feature of 100 for the bias (so that it is hardly regularised), and a
strength of 2¹⁰.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_gelu.probes.features import Features, Hits, hits, standardisation
from vit_gelu.randomness import generator

L2 = 2.0**10
BIAS = 100.0
EPS = 1e-5  # added to the deviation
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class FewShot:
    """What learning from a few images per class came to.

    Attributes:
        shots: images per class.
        hits: of each draw of the images.
    """

    shots: int
    hits: tuple[Hits, ...]

    @property
    def mean(self) -> float:
        """Top-1 as a fraction, over the draws."""
        return statistics.fmean(h.top1 for h in self.hits)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the draws; None of a single one."""
        return statistics.stdev(h.top1 for h in self.hits) if len(self.hits) > 1 else None


def draw(labels: Tensor, shots: int, class_names: Sequence[str], seed: int) -> Tensor:
    """Indices of ``shots`` random images of every class; a draw of fewer is part of a draw of more.

    Args:
        labels: int64, shape (n,), on the CPU.
        shots: images per class.
        class_names: one per label.
        seed: of the draw.

    Raises:
        ValueError: a class has fewer images.

    >>> draw(torch.tensor([0, 1, 0, 1, 1]), 2, ["a", "b"], seed=0).shape
    torch.Size([4])
    """
    counts = torch.bincount(labels, minlength=len(class_names)).tolist()
    if min(counts) < shots:
        label = counts.index(min(counts))
        raise ValueError(
            f"--shots {shots}: class {class_names[label]!r} has {counts[label]} training images; "
            + (f"at most {counts[label]}" if counts[label] else "every class needs some")
        )
    taken = []
    for label in range(len(class_names)):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(seed, "split", "few-shot", label))
        taken.append(members[order[:shots]])
    return torch.cat(taken)


def least_squares(values: Tensor, targets: Tensor, l2: float) -> Tensor:
    """The weights (d, k) that minimise |values · weights − targets|² + l2 · |weights|², in closed form.

    Args:
        values: (n, d).
        targets: (n, k).
        l2: > 0.
    """
    n, d = values.shape
    # Two forms of one solution: whichever matrix is smaller.
    if n >= d:
        gram = values.mT @ values + l2 * torch.eye(d, dtype=values.dtype, device=values.device)
        return torch.linalg.solve(gram, values.mT @ targets)
    gram = values @ values.mT + l2 * torch.eye(n, dtype=values.dtype, device=values.device)
    return values.mT @ torch.linalg.solve(gram, targets)


def fewshot_probe(
    train: Features,
    judges: Features,
    class_names: Sequence[str],
    shots: Sequence[int],
    *,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> list[FewShot]:
    """Learn from a few images per class, several times, and judge; computed in float64.

    Args:
        train: where the few images are drawn from.
        judges: other images.
        class_names: one per label.
        shots: numbers of images per class.
        seeds: of the draws.
        l2: see ``least_squares``.

    Returns:
        One result per number of shots, in their order.

    Raises:
        ValueError: a class has fewer images than shots.
    """
    labels, test = train.labels.cpu(), judges.values.double()
    results = []
    for number in shots:
        found = []
        for seed in seeds:
            few = train.take(draw(labels, number, class_names, seed).to(train.labels.device))
            values = few.values.double()
            mean, deviation = standardisation(values, EPS)
            targets = 2.0 * torch.nn.functional.one_hot(few.labels, len(class_names)).double() - 1.0
            weights = least_squares(_with_bias((values - mean) / deviation), targets, l2)
            scores = _with_bias((test - mean) / deviation) @ weights
            found.append(hits(scores.argmax(dim=1), judges.labels))
        results.append(FewShot(number, tuple(found)))
    return results


def _with_bias(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, 1), value=BIAS)
