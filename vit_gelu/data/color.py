"""Colour operations on uint8 batches, a strength per sample; each equals torchvision's of the same name.

All functions map (b, c, h, w) uint8 to the same, c being 1 or 3; strengths are (b,), on any device.
Equations are Pillow's: results are truncated, not rounded, where Pillow truncates.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.data.augment import Draw, Operation, between, replace_rows
from vit_gelu.data.transfer import send


def _per_image(value: Tensor, images: Tensor) -> Tensor:
    """A strength (b,) as float32 (b, 1, 1, 1) on the images' device."""
    return send(value.float(), images.device).view(-1, 1, 1, 1)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, plain: Tensor, factor: Tensor) -> Tensor:
    """``factor`` of the images and the rest of the plain version; beyond 1 away from it."""
    factor = _per_image(factor, images)
    return _to_uint8(images * factor + plain * (1 - factor))


def grey(images: Tensor) -> Tensor:
    """Luma, ITU-R 601-2, floored: float32, (b, 1, h, w)."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """0: black; 1: as it is."""
    return _to_uint8(images * _per_image(factor, images))


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0: grey; 1: as it is. Grey images stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, grey(images), factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """0: the mean grey everywhere; 1: as it is."""
    return _blend(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """0: smoothed by a 3 × 3 kernel; 1: as it is; 2: sharpened. Border pixels stay as they are."""
    if min(images.shape[2:]) <= 2:
        return images
    # In whole numbers, which hold the sums exactly: no thirteenth lies halfway between two levels.
    levels = images.short()
    three = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    nine = three[..., :-2] + three[..., 1:-1] + three[..., 2:]
    smooth = (nine + 4 * levels[:, :, 1:-1, 1:-1]).float().div_(13).round_()
    floats = images.float()
    middle = floats[:, :, 1:-1, 1:-1]
    middle += (smooth - middle) * (1 - _per_image(factor, images))
    return _to_uint8(floats)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the highest ``bits`` of each level are kept; (b,), whole numbers from 0 to 8."""
    step = 2 ** (8 - bits.long())
    mask = send((256 - step).to(torch.uint8), images.device)
    return images & mask.view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Levels from ``threshold`` (0-255) upwards are inverted."""
    return torch.where(images >= _per_image(threshold, images), 255 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched from its darkest to its lightest level; one of a single level stays."""
    floats = images.float()
    low, high = floats.amin((2, 3), keepdim=True), floats.amax((2, 3), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))
    return _to_uint8((floats - torch.where(flat, 0.0, low)) / scale)


def equalize(images: Tensor) -> Tensor:
    """Each channel's levels spread so that all are about equally frequent, by Pillow's integer rule."""
    b, c, h, w = images.shape
    level = rearrange(images, "b c h w -> (b c) (h w)").long()
    count = torch.zeros(b * c, 256, dtype=torch.int64, device=images.device)
    count.scatter_add_(1, level, torch.ones_like(level))
    upto = count.cumsum(1)
    lightest = count.gather(1, level.amax(1, keepdim=True))
    step = (h * w - lightest) // 255
    table = ((upto - count + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return table.gather(1, level).to(torch.uint8).view(b, c, h, w)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hue turned by ``shift`` of the colour circle, from -0.5 to 0.5. Grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    rgb = images.float() / 255
    value, span = rgb.amax(1), rgb.amax(1) - rgb.amin(1)
    red, green, blue = rgb.unbind(1)
    divisor = torch.where(span == 0, 1.0, span)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = sector + 6 * _per_image(shift, images)[:, 0]
    # Smith 1978, in the form without cases: each channel is a trapezoid over the circle.
    offset = torch.arange(5.0, 0.0, -2.0, device=images.device).view(1, 3, 1, 1)  # 5, 3, 1
    position = (offset + sector[:, None]).remainder(6)
    dip = torch.minimum(position, 4 - position).clamp_(0, 1)
    turned = value[:, None] - span[:, None] * dip
    return _to_uint8(turned * (256 - 1e-3))


def with_strength(adjust: Callable[[Tensor, Tensor], Tensor], strength: Tensor, images: Tensor) -> Tensor:
    """``adjust`` with the arguments the other way round, for ``functools.partial``."""
    return adjust(images, strength)


@dataclass(frozen=True)
class ColorJitter(Operation):
    """Brightness, contrast, saturation and hue changed, in an order drawn per sample.

    Args:
        brightness, contrast, saturation: the factor is from 1 - x (at least 0) to 1 + x.
        hue: the shift is from -hue to hue of the colour circle, at most 0.5.
    """

    name: ClassVar[str] = "color_jitter"
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self) -> None:
        for strength in (self.brightness, self.contrast, self.saturation):
            self.require(0 <= strength <= 10, "brightness, contrast and saturation must be from 0 to 10")
        self.require(0 <= self.hue <= 0.5, "hue must be from 0 to 0.5")

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        self.require(channels in (1, 3), f"needs images of 1 or 3 channels, not {channels}")

    def parameters(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Factors and hue shift, float64, (b, 4); the order in which the four are applied, int64, (b, 4)."""
        u = draw.uniform(4)
        strengths = (self.brightness, self.contrast, self.saturation)
        factors = [between(u[:, i], max(0.0, 1 - s), 1 + s) for i, s in enumerate(strengths)]
        shift = between(u[:, 3], -self.hue, self.hue)
        return torch.stack([*factors, shift], 1), draw.uniform(4, "order").argsort(1)

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        values, order = self.parameters(draw)
        steps: tuple[tuple[float, Callable[[Tensor, Tensor], Tensor]], ...] = (
            (self.brightness, adjust_brightness),
            (self.contrast, adjust_contrast),
            (self.saturation, adjust_saturation),
            (self.hue, adjust_hue),
        )
        images = images.clone()
        for turn in range(len(steps)):
            for which, (strength, adjust) in enumerate(steps):
                if strength:
                    rows = (order[:, turn] == which).nonzero()[:, 0]
                    replace_rows(images, rows, functools.partial(with_strength, adjust, values[rows, which]))
        return images
