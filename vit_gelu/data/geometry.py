"""Operations that move whole rows and columns of pixels: crops and flips."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vit_gelu.data.augment import Draw, Fill, Remap, check_fill, whole_number

PADDING_MODES = ("reflect", "edge", "constant")


@dataclass(frozen=True)
class RandomCrop(Remap):
    """A window of the image's own size, at a random place in the image padded on all sides.

    Equals torchvision's ``pad`` and ``crop``; as augmentation: He et al. 2015 (ResNet), section 4.2.

    Args:
        padding: pixels on each side, smaller than the image; the largest shift.
        mode: what the padding shows: ``reflect`` (the border pixel not repeated), ``edge`` or ``constant``.
        fill: of ``constant`` padding: a level 0-255, or ``mean``, the image's own mean colour.
    """

    name: ClassVar[str] = "random_crop"
    padding: int = 4
    mode: str = "reflect"
    fill: Fill = 0

    def __post_init__(self) -> None:
        self.require(self.padding >= 0, "padding must be at least 0")
        self.require(self.mode in PADDING_MODES, f"mode must be {', '.join(PADDING_MODES)}")
        check_fill(self, self.fill)

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        self.require(
            self.padding < min(image_size),
            f"padding must be smaller than the image, {image_size[0]}x{image_size[1]}:"
            f" at most {min(image_size) - 1}",
        )

    @property
    def outside(self) -> Fill | None:
        return self.fill if self.mode == "constant" else None

    def shifts(self, draw: Draw) -> Tensor:
        """Top and left of the window in the padded image, int64, (b, 2), from 0 to 2 x padding."""
        return whole_number(draw.uniform(2), 2 * self.padding + 1)

    def maps(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor]:
        top, left = self.shifts(draw).unbind(1)
        return self._map(top, height), self._map(left, width)

    def _map(self, start: Tensor, size: int) -> Tensor:
        source = start[:, None] + torch.arange(-self.padding, size - self.padding, device=start.device)
        if self.mode == "constant":
            return torch.where((source < 0) | (source >= size), -1, source)
        if self.mode == "edge":
            return source.clamp_(0, size - 1)
        return (size - 1) - ((size - 1) - source.abs_()).abs_()


@dataclass(frozen=True)
class _Mirror(Remap):
    """Left and right exchanged in some samples. Equals torchvision's ``horizontal_flip``."""

    def flipped(self, draw: Draw) -> Tensor:
        """Which samples are flipped, bool, (b,)."""
        raise NotImplementedError

    def maps(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(height, device=draw.indices.device).expand(len(draw.indices), height)
        columns = torch.arange(width, device=draw.indices.device)
        return rows, torch.where(self.flipped(draw)[:, None], columns.flip(0), columns)


@dataclass(frozen=True)
class Flip(_Mirror):
    """Left and right exchanged with probability ``p``, drawn anew in every epoch.

    Args:
        p: from 0 to 1.
    """

    name: ClassVar[str] = "flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        self.require(0 <= self.p <= 1, "p must be from 0 to 1")

    def flipped(self, draw: Draw) -> Tensor:
        return draw.uniform(1)[:, 0] < self.p


@dataclass(frozen=True)
class AlternatingFlip(_Mirror):
    """Half of the samples, drawn once for the run, are flipped in even epochs, the other half in odd ones.

    Two epochs in a row show every image both ways round (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a
    single GPU", section 3.6).
    """

    name: ClassVar[str] = "alternating_flip"

    def flipped(self, draw: Draw) -> Tensor:
        return (draw.uniform(1, every_epoch=False)[:, 0] < 0.5) ^ bool(draw.epoch % 2)
