"""Evaluation that is exact on any number of processes: integer counts, summed once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from vit_gelu.randomness import has_float64


class Score(NamedTuple):
    """The outcome of one pass over a split; shares are fractions 0–1, the loss is in nats per image."""

    top1: float
    top5: float
    loss: float
    n: int
    correct: int
    correct5: int

    @property
    def merit(self) -> float:
        """What the best checkpoint has most of."""
        return self.top1

    def figures(self) -> dict[str, float]:
        """What is logged."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5}


class MaskedScore(NamedTuple):
    """The outcome of one pass of masked pre-training over a split: the mean loss per image."""

    loss: float
    n: int

    @property
    def merit(self) -> float:
        """What the best checkpoint has most of."""
        return -self.loss

    def figures(self) -> dict[str, float]:
        """What is logged."""
        return {"loss": self.loss}


def sum_dtype(device: torch.device) -> torch.dtype:
    """What losses are summed in on a device: float64, or float32 where there is none."""
    return torch.float64 if has_float64(device) else torch.float32


class _Sums(Metric):
    """A sum of losses and an int64 count, each summed over processes once, at the end.

    Args:
        dtype: of the sum, see ``sum_dtype``.
    """

    full_state_update = False
    is_differentiable = False

    count: Tensor
    loss_sum: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _add(self, losses: Tensor) -> None:
        self.count += losses.numel()
        self.loss_sum += losses.sum(dtype=self.loss_sum.dtype)

    def _counted(self) -> int:
        """The number of images.

        Raises:
            ValueError: there was none.
        """
        n = int(self.count)
        if n == 0:
            raise ValueError("no image was evaluated: the split is empty")
        return n


class ExactScore(_Sums):
    """Top-1 and top-5 accuracy and mean cross-entropy of a split.

    The states are an int64 count of images and of hits and a float64 sum of losses, each summed over
    processes once, at the end. No mean of means: with loaders that do not pad, the result is that of a single
    process, to the last image. With fewer than five classes "top-5" is the top-``num_classes``.

    Args:
        num_classes: number of classes, at least 2.
        dtype: of the sum of losses, see ``sum_dtype``.
    """

    higher_is_better = None

    correct: Tensor
    correct5: Tensor

    def __init__(self, num_classes: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype)
        self.k = min(5, num_classes)
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct5", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: shape (b, num_classes), any float dtype; taken in float32.
            labels: int64 class indices, shape (b,). An empty batch counts nothing.
        """
        logits = logits.float()
        best = logits.topk(self.k, dim=1).indices == labels[:, None]
        self.correct += best[:, 0].sum()
        self.correct5 += best.any(dim=1).sum()
        self._add(F.cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> Score:
        """The score over all processes' batches.

        Raises:
            ValueError: no image was counted.
        """
        n = self._counted()
        correct, correct5 = int(self.correct), int(self.correct5)
        return Score(correct / n, correct5 / n, float(self.loss_sum) / n, n, correct, correct5)


class ExactLoss(_Sums):
    """Mean of a loss over the images of a split.

    Args:
        dtype: of the sum, see ``sum_dtype``.
    """

    higher_is_better = False

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype)

    def update(self, losses: Tensor) -> None:
        """Add a batch: one loss per image, shape (b,); an empty batch counts nothing."""
        self._add(losses)

    def compute(self) -> MaskedScore:
        """The mean over all processes' batches.

        Raises:
            ValueError: no image was counted.
        """
        n = self._counted()
        return MaskedScore(float(self.loss_sum) / n, n)
