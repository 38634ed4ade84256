"""Random erasing."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.data.augment import Draw, Fill, Operation, fill_colour, replace_rows, whole_number
from vit_gelu.data.transfer import send
from vit_gelu.data.warp import random_boxes


@dataclass(frozen=True)
class Erase(Operation):
    """A random box is overwritten in some samples (Zhong et al. 2020, "Random Erasing", algorithm 1).

    Equals torchvision's ``erase``. A box that does not fit in ten attempts leaves the image as it is.

    Args:
        p: the probability that a sample is erased.
        min_area, max_area: the box's area as a share of the image's.
        ratio: width / height is from 1 / ratio to ratio, uniform in its logarithm.
        fill: a level 0-255; ``mean``, the image's own mean colour; or ``noise``, a random level per pixel
            and channel.
    """

    name: ClassVar[str] = "erase"
    p: float = 0.25
    min_area: float = 0.02
    max_area: float = 1 / 3
    ratio: float = 3.3
    fill: Fill = "mean"

    def __post_init__(self) -> None:
        self.require(0 <= self.p <= 1, "p must be from 0 to 1")
        self.require(0 < self.min_area <= self.max_area < 1, "areas must be above 0 and below 1, min first")
        self.require(1 <= self.ratio <= 100, "ratio must be from 1 to 100")
        level = isinstance(self.fill, int) and 0 <= self.fill <= 255
        self.require(level or self.fill in ("mean", "noise"), "fill must be 0 to 255, mean or noise")

    def boxes(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Whether each sample is erased, bool, (b,); top, left, height and width of its box, int64, (b,)."""
        fits, h, w = random_boxes(
            draw, self.min_area, self.max_area, self.ratio, height, width, strictly_inside=True
        )
        u = draw.uniform(3, "place")
        top, left = whole_number(u[:, 1], height - h + 1), whole_number(u[:, 2], width - w + 1)
        return (u[:, 0] < self.p) & fits, top, left, h, w

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        height, width = images.shape[2:]
        erased, top, left, h, w = self.boxes(draw, height, width)
        rows = erased.nonzero()[:, 0]
        y, x = torch.arange(height), torch.arange(width)
        inside_y = (y >= top[rows, None]) & (y < (top + h)[rows, None])
        inside_x = (x >= left[rows, None]) & (x < (left + w)[rows, None])
        inside_y = rearrange(send(inside_y, images.device), "b y -> b 1 y 1")
        inside_x = rearrange(send(inside_x, images.device), "b x -> b 1 1 x")

        def overwritten(chosen: Tensor) -> Tensor:
            if self.fill == "noise":
                # So many numbers are drawn where the images are.
                there = draw.select(rows).to(images.device)
                levels = whole_number(there.uniform(chosen[0].numel(), "noise"), 256)
                paint = send(levels.to(torch.uint8), images.device).view(chosen.shape)
            else:
                paint = fill_colour(chosen, self.fill).to(torch.uint8)
            return torch.where(inside_y & inside_x, paint, chosen)

        return replace_rows(images.clone(), rows, overwritten)
