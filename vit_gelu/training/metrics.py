"""Evaluation that is exact on any number of processes: integer counts, summed once."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


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


class ExactScore(Metric):
    """Top-1 and top-5 accuracy and mean cross-entropy of a split.

    The states are an int64 count of images and of hits and a float64 sum of losses, each summed over
    processes once, at the end. No mean of means: with loaders that do not pad, the result is that of a single
    process, to the last image. With fewer than five classes "top-5" is the top-``num_classes``.

    Args:
        num_classes: number of classes, at least 2.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    correct: Tensor
    correct5: Tensor
    count: Tensor
    loss_sum: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.k = min(5, num_classes)
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct5", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

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
        self.count += labels.numel()
        self.loss_sum += F.cross_entropy(logits, labels, reduction="none").sum(dtype=torch.float64)

    def compute(self) -> Score:
        """The score over all processes' batches.

        Raises:
            ValueError: no image was counted.
        """
        n = int(self.count)
        if n == 0:
            raise ValueError("no image was evaluated: the split is empty")
        correct, correct5 = int(self.correct), int(self.correct5)
        return Score(correct / n, correct5 / n, float(self.loss_sum) / n, n, correct, correct5)


class ExactLoss(Metric):
    """Mean of a loss over the images of a split: an int64 count and a float64 sum, each summed over processes once."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    count: Tensor
    loss_sum: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """Add a batch: one loss per image, shape (b,); an empty batch counts nothing."""
        self.count += losses.numel()
        self.loss_sum += losses.sum(dtype=torch.float64)

    def compute(self) -> MaskedScore:
        """The mean over all processes' batches.

        Raises:
            ValueError: no image was counted.
        """
        n = int(self.count)
        if n == 0:
            raise ValueError("no image was evaluated: the split is empty")
        return MaskedScore(float(self.loss_sum) / n, n)
