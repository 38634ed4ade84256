"""What a step gets, and the last thing that is done to its images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Batch(NamedTuple):
    """What a training or evaluation step gets.

    Attributes:
        images: float32, (b, c, h, w), normalised, on the device.
        targets: int64 (b,), or float32 (b, num_classes) where labels were mixed.
        indices: int64 (b,), of the samples in their split.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


def pixels_of(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """What ``Normalize`` did, undone, for pictures: float32 on the CPU, 0-1, clipped.

    Args:
        images: normalised, (b, c, h, w), on any device.
        mean, std: per channel, of pixels scaled to 0-1.

    >>> pixels_of(torch.tensor([-2.0, -1.2, 2.0]).view(1, 1, 1, 3), (0.5,), (0.25,)).flatten()
    tensor([0.0000, 0.2000, 1.0000])
    """
    shift, scale = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in (mean, std))
    return (images.float().cpu() * scale + shift).clamp(0, 1)


class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1 per channel.

    Args:
        mean, std: per channel, of pixels scaled to 0-1.
        device: of the images.
        upsample: height and width that images are enlarged to first (bicubic, clipped to the range of pixels).

    >>> Normalize((0.5,), (0.25,))(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)).flatten()
    tensor([-2.0000, -1.2000,  2.0000])
    """

    def __init__(
        self,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        upsample: tuple[int, int] | None = None,
    ) -> None:
        m, s = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        self.scale = (1 / (255 * s)).float().to(device)
        self.shift = (-m / s).float().to(device)
        self.upsample = upsample

    def __call__(self, images: Tensor) -> Tensor:
        """(b, c, h, w) uint8 to float32, contiguous, of the same or the upsampled size."""
        pixels = images.to(torch.float32) if self.upsample is None else self.enlarge(images, self.upsample)
        return pixels.mul_(self.scale).add_(self.shift)

    @staticmethod
    def enlarge(images: Tensor, size: tuple[int, int]) -> Tensor:
        """(b, c, h, w) of any dtype to float32 of another height and width, clipped to 0-255."""
        # antialias chooses Pillow's kernel (a = -0.5); enlarging needs no filter.
        pixels = images.to(torch.float32).contiguous()
        return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 255)
