"""Mean and standard deviation of pixels, exact."""

from math import sqrt

import numpy as np
from einops import rearrange
from torch import Tensor

# Sums of up to 256 squares of bytes stay below 2**24: exact in float32, in whatever order they are added.
EXACT_ROWS = 256
CHUNK_PIXELS = 200_000
LONGEST_ROW = 8192


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of all pixels of each channel, on the 0-1 scale.

    Of all pixels pooled: not the mean of the per-image deviations, which is smaller and is what the often
    copied (0.2023, 0.1994, 0.2010) for CIFAR-10 is. Sums are integers, so nothing is lost before the
    final division. A channel of one single value gets 1 for its deviation, so that dividing by it is safe.

    Args:
        images: uint8, shape (n, c, h, w).

    Returns:
        Means and deviations, c numbers each.

    >>> import torch
    >>> pixel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2))
    ((0.5,), (0.5,))
    """
    n, c, h, w = images.shape
    # Rows short enough that a chunk of them stays in the processor's cache.
    rows = "n (h w c)" if c * h * w <= LONGEST_ROW else "(n h) (w c)"
    width = c * h * w if c * h * w <= LONGEST_ROW else c * w
    totals = np.zeros(width, dtype=np.int64)
    squares = np.zeros_like(totals)
    for chunk in images.split(max(1, CHUNK_PIXELS // (c * h * w))):
        flat = rearrange(chunk.numpy(), f"n c h w -> {rows}")
        for start in range(0, len(flat), EXACT_ROWS):
            x = flat[start : start + EXACT_ROWS].astype(np.float32)
            totals += x.sum(0).astype(np.int64)
            squares += np.einsum("np,np->p", x, x).astype(np.int64)
    count = n * h * w
    means, deviations = [], []
    for channel in range(c):
        total, square = int(totals[channel::c].sum()), int(squares[channel::c].sum())
        means.append(total / (255 * count))
        deviations.append(sqrt(count * square - total**2) / (255 * count) or 1.0)
    return tuple(means), tuple(deviations)
