"""Bring images to one size: resize until they cover it, then cut out the centre."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


def covering_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) with the proportions of ``size`` that covers ``target``.

    >>> covering_size((100, 200), (50, 50)), covering_size((20, 10), (30, 40))
    ((50, 100), (80, 40))
    """
    (h, w), (target_h, target_w) = size, target
    if target_h * w >= target_w * h:
        return target_h, max(target_h * w // h, target_w)
    return max(target_w * h // w, target_h), target_w


def centre(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the central window; torchvision's rounding (halves to even)."""
    return round((size[0] - target[0]) / 2), round((size[1] - target[1]) / 2)


def resize_images(images: Tensor, target: tuple[int, int]) -> Tensor:
    """Resize with a bicubic, antialiased filter until ``target`` is covered, then crop its centre.

    Args:
        images: uint8, shape (n, c, h, w).
        target: height and width in pixels.

    Returns:
        uint8, shape (n, c, *target), channels-last in memory.
    """
    n, c, h, w = images.shape
    if (h, w) == target:
        return images
    covering = covering_size((h, w), target)
    top, left = centre(covering, target)
    out = torch.empty(n, *target, c, dtype=torch.uint8)
    rows = max(1, CHUNK_BYTES // (covering[0] * covering[1] * c))
    for start in range(0, n, rows):
        chunk = images[start : start + rows].contiguous(memory_format=torch.channels_last)
        chunk = F.interpolate(chunk, size=covering, mode="bicubic", antialias=True)
        window = chunk[:, :, top : top + target[0], left : left + target[1]]
        out[start : start + rows] = rearrange(window, "n c h w -> n h w c")
    return rearrange(out, "n h w c -> n c h w")
