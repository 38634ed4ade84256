"""One pass of a trained network over a split: exact counts, each image once."""

import contextlib
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_gelu.cli.device import autocast
from vit_gelu.data import Images
from vit_gelu.data.loader import EvalLoader
from vit_gelu.data.progress import progress
from vit_gelu.training.metrics import ExactScore, Score

# Fewer batches are over before a bar would be read.
BATCHES_WORTH_A_BAR = 20


@dataclass(frozen=True, eq=False)
class Counts:
    """What a network did with a split.

    Attributes:
        score: shares, mean loss and hits.
        confusion: int64, shape (num_classes, num_classes): how many images of true class (row) were taken
            for which class (column); sums to ``score.n``, its diagonal to ``score.correct``.
    """

    score: Score
    confusion: Tensor


@torch.inference_mode()
def count(
    net: nn.Module,
    images: Images,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device,
    upsample: tuple[int, int] | None = None,
    precision: str = "32-true",
    num_workers: int = 0,
    what: str = "evaluating",
) -> Counts:
    """Evaluate a network on a split.

    Args:
        net: images float32 (b, c, h, w) -> logits (b, num_classes); moved to the device, in evaluation mode.
        images: the split.
        num_classes: of the network and of the split.
        mean, std: per channel, of pixels scaled to 0-1, as in the network's training.
        batch_size: images per forward pass.
        device: where to run.
        upsample: height and width that batches are enlarged to, as in the network's training.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        num_workers: processes that decode image files.
        what: for the progress bar of a long pass.

    Raises:
        RuntimeError: an image was seen twice or not at all.
        OSError, ValueError: an image file cannot be read; names it.
    """
    net = net.to(device).eval()
    loader = EvalLoader(
        images,
        batch_size=batch_size,
        mean=mean,
        std=std,
        device=device,
        upsample=upsample,
        num_workers=num_workers,
    )
    score = ExactScore(num_classes).to(device)
    cells = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    seen = torch.zeros(len(images), dtype=torch.int64, device=device)
    long = len(loader) >= BATCHES_WORTH_A_BAR
    done = 0
    with progress(what, len(images), "images") if long else contextlib.nullcontext(_silent) as show:
        for batch in loader:
            with autocast(device, precision):
                logits = net(batch.images).float()
            score.update(logits, batch.targets)
            # The first of the top k, as the score takes it: the same winner where logits are equal.
            best = logits.topk(score.k, dim=1).indices[:, 0]
            cells += torch.bincount(batch.targets * num_classes + best, minlength=num_classes**2)
            seen += torch.bincount(batch.indices, minlength=len(images))
            done += len(batch.targets)
            show(done)
    total = score.compute()
    confusion = rearrange(cells.cpu(), "(true predicted) -> true predicted", true=num_classes)
    if not bool((seen == 1).all()):
        raise RuntimeError(
            f"evaluation saw {int((seen != 1).sum())} of {len(images)} images not exactly once"
        )
    assert total.n == len(images) == int(confusion.sum())
    assert total.correct == int(confusion.diagonal().sum())
    return Counts(total, confusion)


def _silent(done: int) -> None:
    """In place of a bar."""
