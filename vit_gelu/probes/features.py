"""What every probe starts from and ends with."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """A frozen network's features of the images of a split.

    Attributes:
        values: float, shape (n, d).
        labels: int64, shape (n,), on the same device.

    Raises:
        ValueError: shapes that do not fit, no image, or values that are not finite.
    """

    values: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.labels.shape != self.values.shape[:1]:
            raise ValueError(
                f"features of shape {tuple(self.values.shape)} and labels of shape {tuple(self.labels.shape)}: "
                "must be (n, d) and (n,)"
            )
        if not len(self.labels):
            raise ValueError("a probe needs at least one image in every split that it uses")
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError("the network's features are not finite: there is nothing to probe")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> "Features":
        """The rows at ``indices``, int64."""
        return Features(self.values[indices], self.labels[indices])


class Hits(NamedTuple):
    """How often a probe's first guess was right; ``top1`` is a fraction 0–1."""

    top1: float
    n: int
    correct: int


def hits(predicted: Tensor, labels: Tensor) -> Hits:
    """Count, for predicted and true labels, int64 of shape (n,).

    >>> hits(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2, 2]))
    Hits(top1=0.75, n=4, correct=3)
    """
    correct = int((predicted == labels).sum())
    return Hits(correct / len(labels), len(labels), correct)


def standardisation(values: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population, plus ``eps``) of each feature, each (1, d).

    A feature that never changes keeps a deviation of 1 where ``eps`` is 0, so that it becomes 0.
    """
    mean = values.mean(dim=0, keepdim=True)
    deviation = (values - mean).square().mean(dim=0, keepdim=True).sqrt() + eps
    return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))
