"""RandAugment and TrivialAugment: operations and strengths drawn per sample."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vit_gelu.data import color
from vit_gelu.data.augment import Draw, Fill, Operation, check_fill, whole_number
from vit_gelu.data.transfer import send
from vit_gelu.data.warp import INTERPOLATIONS, inverse_affine, warp

BINS = 31  # strengths are counted from 0 to 30

_COLOR: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda images, change: color.adjust_brightness(images, 1 + change),
    "color": lambda images, change: color.adjust_saturation(images, 1 + change),
    "contrast": lambda images, change: color.adjust_contrast(images, 1 + change),
    "sharpness": lambda images, change: color.adjust_sharpness(images, 1 + change),
    "posterize": color.posterize,
    "solarize": lambda images, level: color.solarize(images, 255 * level),
    "autocontrast": lambda images, _: color.autocontrast(images),
    "equalize": lambda images, _: color.equalize(images),
}
_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
NAMES = ("identity", *_GEOMETRIC, *_COLOR)
_SIGNED = (*_GEOMETRIC, "brightness", "color", "contrast", "sharpness")
_IS_SIGNED = torch.tensor([name in _SIGNED for name in NAMES])


def apply_named(
    images: Tensor, which: Tensor, strength: Tensor, interpolation: str = "nearest", fill: Fill = 0
) -> Tensor:
    """Apply to each image one operation.

    Args:
        images: uint8, (b, c, h, w).
        which: positions in ``NAMES``, int64, (b,), on the CPU.
        strength: what the operation takes: a shear as a slope, pixels, degrees, the change of a factor,
            bits, a share of the range; float64, (b,), on the CPU.
        interpolation: of the geometric ones: nearest or bilinear.
        fill: of what comes in from outside.
    """
    # Images of one operation lie side by side meanwhile: each works on a slice, and no pixel moves more than twice.
    order = which.argsort()
    which, strength = which[order], strength[order]
    counts = which.bincount(minlength=len(NAMES)).tolist()
    still, geometric = counts[0], sum(counts[1 : 1 + len(_GEOMETRIC)])
    sizes = [still, geometric, *counts[1 + len(_GEOMETRIC) :]]
    same, moved, *colored = images.index_select(0, send(order, images.device)).split(sizes)
    mine = slice(still, still + geometric)
    if geometric:
        inverse = _inverse(which[mine], strength[mine], *images.shape[2:])
        moved = warp(moved, inverse, interpolation, fill)
    strengths = strength[mine.stop :].split(sizes[2:])
    changed = [
        function(part, share) if len(part) else part
        for function, share, part in zip(_COLOR.values(), strengths, colored, strict=True)
    ]
    back = order.argsort()
    return torch.cat([same, moved, *changed]).index_select(0, send(back, images.device))


def _inverse(which: Tensor, strength: Tensor, height: int, width: int) -> Tensor:
    """Inverse maps (r, 2, 3); shears keep the top left corner, rotations the centre."""

    def of(name: str) -> Tensor:
        return torch.where(which == NAMES.index(name), strength, 0.0)

    sheared = which <= NAMES.index("shear_y")
    corner = torch.where(sheared, -0.5, 0.0)[:, None] * torch.tensor([width, height], device="cpu")
    return inverse_affine(
        -of("rotate").deg2rad(),  # positive angles turn anticlockwise, as in torchvision's rotate
        (of("translate_x").trunc(), of("translate_y").trunc()),
        torch.ones_like(strength),
        (of("shear_x").atan(), of("shear_y").atan()),
        corner,
    )


def _check(operation: Operation, interpolation: str, fill: Fill) -> None:
    operation.require(interpolation in INTERPOLATIONS, f"interpolation must be {' or '.join(INTERPOLATIONS)}")
    check_fill(operation, fill)


def _table(strengths: Mapping[str, Tensor]) -> Tensor:
    """Strength of each operation (rows) at each bin, float64; zero for those that have none."""
    return torch.stack(
        [strengths.get(name, torch.zeros(BINS, dtype=torch.float64, device="cpu")) for name in NAMES]
    )


def _steps(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, BINS, dtype=torch.float32, device="cpu").double()


@dataclass(frozen=True)
class RandAugment(Operation):
    """``num_ops`` of 14 operations in a row, all at one strength (Cubuk et al. 2020, "RandAugment").

    Operations and strengths are those of torchvision's ``RandAugment``.

    Args:
        num_ops: operations per sample, each drawn anew.
        magnitude: their strength, from 0 to 30.
        interpolation: of shears, shifts and rotations: nearest or bilinear.
        fill: what comes in from outside: a level 0-255, or ``mean``, the image's own mean colour.
    """

    name: ClassVar[str] = "randaugment"
    num_ops: int = 2
    magnitude: int = 9
    interpolation: str = "nearest"
    fill: Fill = 0

    def __post_init__(self) -> None:
        self.require(1 <= self.num_ops <= 20, "num_ops must be from 1 to 20")
        self.require(0 <= self.magnitude < BINS, f"magnitude must be from 0 to {BINS - 1}")
        _check(self, self.interpolation, self.fill)

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        self.require(channels in (1, 3), f"needs images of 1 or 3 channels, not {channels}")

    @staticmethod
    @functools.cache
    def strengths(height: int, width: int) -> Tensor:
        """Of each of ``NAMES`` at each of the bins, float64, (14, 31)."""
        factor = _steps(0, 0.9)
        return _table(
            {
                "shear_x": _steps(0, 0.3),
                "shear_y": _steps(0, 0.3),
                "translate_x": _steps(0, 150 / 331 * width),
                "translate_y": _steps(0, 150 / 331 * height),
                "rotate": _steps(0, 30),
                **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor),
                "posterize": (8 - torch.arange(BINS, device="cpu") / ((BINS - 1) / 4)).round().double(),
                "solarize": _steps(1, 0),
            }
        )

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        table = self.strengths(*images.shape[2:])[:, self.magnitude]
        u = draw.uniform(2 * self.num_ops)
        for turn in range(self.num_ops):
            which = whole_number(u[:, 2 * turn], len(NAMES))
            strength = _signed(which, table[which], u[:, 2 * turn + 1])
            images = apply_named(images, which, strength, self.interpolation, self.fill)
        return images


@dataclass(frozen=True)
class TrivialAugment(Operation):
    """One of 14 operations at a random strength (Müller and Hutter 2021, "TrivialAugment", wide space).

    Operations and strengths are those of torchvision's ``TrivialAugmentWide``, except that shifts are at
    most the image's size.

    Args:
        interpolation: of shears, shifts and rotations: nearest or bilinear.
        fill: what comes in from outside: a level 0-255, or ``mean``, the image's own mean colour.
    """

    name: ClassVar[str] = "trivialaugment"
    interpolation: str = "nearest"
    fill: Fill = 0

    def __post_init__(self) -> None:
        _check(self, self.interpolation, self.fill)

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        self.require(channels in (1, 3), f"needs images of 1 or 3 channels, not {channels}")

    @staticmethod
    @functools.cache
    def strengths(height: int, width: int) -> Tensor:
        """Of each of ``NAMES`` at each of the bins, float64, (14, 31)."""
        factor = _steps(0, 0.99)
        return _table(
            {
                "shear_x": factor,
                "shear_y": factor,
                "translate_x": _steps(0, min(32, width)),
                "translate_y": _steps(0, min(32, height)),
                "rotate": _steps(0, 135),
                **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), factor),
                "posterize": (8 - torch.arange(BINS, device="cpu") / ((BINS - 1) / 6)).round().double(),
                "solarize": _steps(1, 0),
            }
        )

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        table = self.strengths(*images.shape[2:])
        u = draw.uniform(3)
        which = whole_number(u[:, 0], len(NAMES))
        strength = _signed(which, table[which, whole_number(u[:, 1], BINS)], u[:, 2])
        return apply_named(images, which, strength, self.interpolation, self.fill)


def _signed(which: Tensor, strength: Tensor, u: Tensor) -> Tensor:
    """The strength, or in half of the cases its opposite where the operation has one."""
    return torch.where(_IS_SIGNED[which] & (u < 0.5), -strength, strength)
