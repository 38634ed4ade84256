"""The fixed, stratified part of the train images that model selection may look at."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vit_gelu import randomness
from vit_gelu.data.arrays import ImageArrays, Images

CHUNK_BYTES = 8 * 2**20


def seats(class_counts: list[int], fraction: float) -> list[int]:
    """How many images of each class to set aside: largest remainders, in integer arithmetic.

    The total is ``fraction`` of all images, rounded; each class gets its proportional share, rounded so
    that the total is exact (Hamilton's method, ties to the lower class). Two rules come before the exact
    total: a class of two or more images gives at least one, and every class keeps at least one.

    >>> seats([5000] * 10, 0.1) == [500] * 10, seats([3, 3, 4], 0.5), seats([1, 2, 97], 0.1)
    (True, [2, 1, 2], [0, 1, 9])
    """
    n = sum(class_counts)
    low = [int(count >= 2) for count in class_counts]
    high = [max(count - 1, 0) for count in class_counts]
    total = min(max(int(n * fraction + 0.5), sum(low)), sum(high))
    given = [
        min(max(count * total // n, least), most)
        for count, least, most in zip(class_counts, low, high, strict=True)
    ]

    def shortfall(c: int) -> int:
        return class_counts[c] * total - given[c] * n

    classes = range(len(class_counts))
    while sum(given) < total:
        given[max((c for c in classes if given[c] < high[c]), key=shortfall)] += 1
    while sum(given) > total:
        given[min((c for c in classes if given[c] > low[c]), key=shortfall)] -= 1
    return given


def stratified_split(labels: Tensor, fraction: float, seed: int, *purpose: str) -> tuple[Tensor, Tensor]:
    """Split indices in two, class by class.

    Which images are set aside depends on ``seed``, ``purpose`` and the labels alone, never on a run's
    seed: every run of a data set sees the same split.

    Args:
        labels: int64, shape (n,), values >= 0.
        fraction: share of the images to set aside, in (0, 1); see ``seats`` for how it is rounded.
        seed: of the split.
        purpose: what the split is for, so that two splits of one data set are independent.

    Returns:
        Indices kept and indices set aside, int64, each ascending, disjoint, together 0 … n-1.

    >>> kept, aside = stratified_split(torch.tensor([0, 1] * 10), 0.2, seed=0)
    >>> len(kept), len(aside), torch.tensor([0, 1] * 10)[aside].bincount().tolist()
    (16, 4, [2, 2])
    """
    classes = labels.numpy()
    aside = np.zeros(len(classes), dtype=bool)
    for label, count in enumerate(seats(np.bincount(classes).tolist(), fraction)):
        members = np.flatnonzero(classes == label)
        order = torch.randperm(len(members), generator=randomness.generator(seed, "split", *purpose, label))
        aside[members[order[:count].numpy()]] = True
    return torch.from_numpy(np.flatnonzero(~aside)), torch.from_numpy(np.flatnonzero(aside))


def divide(images: Images, kept: Tensor, aside: Tensor) -> tuple[Images, Images]:
    """The images at ``kept`` and those at ``aside``; the first reuse the memory of ``images``.

    So a large data set is never in memory twice, and half of its start is not spent on fresh memory.
    ``images`` must not be used afterwards.

    Args:
        images: what to divide.
        kept, aside: from ``stratified_split``.
    """
    taken = images.take(aside)
    if not isinstance(images, ImageArrays):
        return images.take(kept), taken
    rows = rearrange(images.images.numpy(), "n c h w -> n h w c")
    step = max(1, CHUNK_BYTES // rows[0].nbytes)
    for start in range(0, len(kept), step):
        # Indices ascend, so every row moves towards the front, and none is overwritten before it moved.
        rows[start : start + step][: len(kept) - start] = rows[kept[start : start + step].numpy()]
    return ImageArrays(images.images[: len(kept)], images.labels[kept]), taken
