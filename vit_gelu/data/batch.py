"""What a step gets, and the last thing that is done to its images."""

from typing import NamedTuple

import torch
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


class Normalize:
    """uint8 images to float32 of mean 0 and standard deviation 1 per channel.

    Args:
        mean, std: per channel, of pixels scaled to 0-1.
        device: of the images.

    >>> Normalize((0.5,), (0.25,))(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)).flatten()
    tensor([-2.0000, -1.2000,  2.0000])
    """

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu"
    ) -> None:
        m, s = (torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        self.scale = (1 / (255 * s)).float().to(device)
        self.shift = (-m / s).float().to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(b, c, h, w) uint8 to float32, contiguous."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)
