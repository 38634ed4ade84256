"""Operations that resample pixels: affine transforms, and crops resized to the image's size."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional

from vit_gelu.data.augment import Draw, Fill, Operation, between, check_fill, fill_colour, whole_number
from vit_gelu.data.transfer import send

INTERPOLATIONS = ("nearest", "bilinear")
ATTEMPTS = 10  # at a crop or box that fits, as in torchvision


def inverse_affine(
    angle: Tensor,
    translate: tuple[Tensor, Tensor],
    scale: Tensor,
    shear: tuple[Tensor, Tensor],
    centre: Tensor | None = None,
) -> Tensor:
    """Where each output pixel comes from, if the image is sheared, scaled, rotated and then moved.

    The forward map is T C R(angle) S(scale) SHy SHx C^-1, with torchvision's signs: y points down, angles
    turn clockwise, SHx = [[1, -tan], [0, 1]].

    Args:
        angle: radians, (b,).
        translate: x and y in pixels, (b,) each.
        scale: (b,).
        shear: x and y in radians, (b,) each.
        centre: x and y of the fixed point, in pixels from the image's centre, (b, 2); None: that centre.

    Returns:
        float64, (b, 2, 3): input (x, y) from output (x, y, 1), all in pixels from the image's centre.
    """
    one, zero = torch.ones_like(angle), torch.zeros_like(angle)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, 1).double().view(-1, 2, 2)

    rotate = matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())
    shear_x = matrix(one, -shear[0].tan(), zero, one)
    shear_y = matrix(one, zero, -shear[1].tan(), one)
    inverse = torch.linalg.inv(scale.double().view(-1, 1, 1) * rotate @ shear_y @ shear_x)
    fixed = torch.zeros(1, 2, 1, dtype=torch.float64) if centre is None else centre.double()[:, :, None]
    moved = fixed + torch.stack(translate, 1).double()[:, :, None]
    return torch.cat([inverse, fixed - inverse @ moved], 2)


def warp(images: Tensor, inverse: Tensor, interpolation: str, fill: Fill) -> Tensor:
    """Resample images by affine maps.

    Args:
        images: uint8, (b, c, h, w).
        inverse: from ``inverse_affine``, (b, 2, 3), on the CPU.
        interpolation: nearest or bilinear.
        fill: what lies outside the image.

    Returns:
        uint8, (b, c, h, w), rounded.
    """
    h, w = images.shape[2:]
    inverse = send(inverse.float(), images.device)
    x = torch.arange(w, device=images.device) - (w - 1) / 2
    y = torch.arange(h, device=images.device) - (h - 1) / 2
    points = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones_like(x).expand(h, w)])
    # grid_sample counts from -1 to 1 between the image's outer edges.
    half = torch.stack([inverse[:, 0] / (w / 2), inverse[:, 1] / (h / 2)], 1)
    grid = rearrange(half @ points.view(3, h * w), "b xy (h w) -> b h w xy", h=h)
    floats = images.float()
    outside = fill_colour(images, fill) if fill != 0 else None
    if outside is not None:
        floats = floats - outside
    out = functional.grid_sample(floats, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    if outside is not None:
        out = out + outside
    return out.round_().to(torch.uint8)


@dataclass(frozen=True)
class Affine(Operation):
    """A small rotation, scaling, shear and shift about the image's centre, each uniform in a range.

    Equals torchvision's ``affine``, except that shifts need not be whole pixels.

    Args:
        degrees: the rotation is from -degrees to degrees.
        scale: the factor is from 1 - scale to 1 + scale.
        shear: the horizontal shear is from -shear to shear, in degrees.
        translate: the shift is from -translate to translate, as a share of width and height.
        interpolation: bilinear or nearest.
        fill: what comes in from outside: a level 0-255, or ``mean``, the image's own mean colour.
    """

    name: ClassVar[str] = "affine"
    degrees: float = 14.0
    scale: float = 0.15
    shear: float = 8.0
    translate: float = 0.1
    interpolation: str = "bilinear"
    fill: Fill = 0

    def __post_init__(self) -> None:
        self.require(0 <= self.degrees <= 180, "degrees must be from 0 to 180")
        self.require(0 <= self.scale < 1, "scale must be at least 0 and below 1")
        self.require(0 <= self.shear < 90, "shear must be at least 0 and below 90 degrees")
        self.require(0 <= self.translate <= 1, "translate must be from 0 to 1")
        self.require(
            self.interpolation in INTERPOLATIONS, f"interpolation must be {' or '.join(INTERPOLATIONS)}"
        )
        check_fill(self, self.fill)

    def parameters(self, draw: Draw, height: int, width: int) -> dict[str, Tensor]:
        """Each sample's angle and shear (degrees), scale, and shift (pixels), float64, (b,)."""
        signed = between(draw.uniform(5), -1, 1).unbind(1)
        return {
            "angle": signed[0] * self.degrees,
            "scale": 1 + signed[1] * self.scale,
            "shear": signed[2] * self.shear,
            "x": signed[3] * self.translate * width,
            "y": signed[4] * self.translate * height,
        }

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        p = self.parameters(draw, images.shape[2], images.shape[3])
        shear = (p["shear"].deg2rad(), torch.zeros_like(p["shear"]))
        inverse = inverse_affine(p["angle"].deg2rad(), (p["x"], p["y"]), p["scale"], shear)
        return warp(images, inverse, self.interpolation, self.fill)


@dataclass(frozen=True)
class RandomResizedCrop(Operation):
    """A window of random area and shape, resized to the image's size (bilinear, antialiased).

    Equals torchvision's ``resized_crop``; as augmentation: Szegedy et al. 2015 (Inception), section 6.

    Args:
        min_area, max_area: the window's area as a share of the image's.
        ratio: width / height is from 1 / ratio to ratio, uniform in its logarithm.
    """

    name: ClassVar[str] = "random_resized_crop"
    min_area: float = 0.08
    max_area: float = 1.0
    ratio: float = 4 / 3

    def __post_init__(self) -> None:
        self.require(0 < self.min_area <= self.max_area <= 1, "areas must be above 0, up to 1, min first")
        self.require(1 <= self.ratio <= 100, "ratio must be from 1 to 100")

    def windows(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of each sample's window, int64, (b,)."""
        fits, h, w = random_boxes(
            draw, self.min_area, self.max_area, self.ratio, height, width, strictly_inside=False
        )
        # None of the attempts fitted: the largest window in the middle whose shape is allowed.
        most = min(width, round(height * self.ratio)), min(height, round(width * self.ratio))
        w, h = torch.where(fits, w, most[0]), torch.where(fits, h, most[1])
        u = draw.uniform(2, "place")
        top = torch.where(fits, whole_number(u[:, 0], height - h + 1), (height - h) // 2)
        left = torch.where(fits, whole_number(u[:, 1], width - w + 1), (width - w) // 2)
        return top, left, h, w

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        _, c, height, width = images.shape
        top, left, h, w = self.windows(draw, height, width)
        rows = resize_weights(send(top, images.device), h, height)
        columns = resize_weights(send(left, images.device), w, width)
        wide = rearrange(images.float(), "b c y x -> b (c y) x") @ columns.mT
        wide = rearrange(wide, "b (c y) x -> b c y x", c=c)
        return einsum(rows, wide, "b out y, b c y x -> b c out x").round_().to(torch.uint8)


def random_boxes(
    draw: Draw,
    min_area: float,
    max_area: float,
    ratio: float,
    height: int,
    width: int,
    *,
    strictly_inside: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first of ten random boxes that fits the image.

    Returns:
        Whether any fits, bool, (b,); its height and width, int64, (b,).
    """
    u = rearrange(draw.uniform(2 * ATTEMPTS), "b (attempt two) -> two b attempt", two=2)
    area = between(u[0], min_area, max_area) * height * width
    shape = between(u[1], -math.log(ratio), math.log(ratio)).exp()
    w, h = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
    spare = 1 if strictly_inside else 0
    fits = (w > 0) & (h > 0) & (w <= width - spare) & (h <= height - spare)
    first = fits.int().argmax(1, keepdim=True)
    return fits.any(1), h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]


def resize_weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """How much of each input pixel each output pixel shows when a stretch is resized to the whole size.

    A triangle filter, as wide as an input or output pixel, whichever is larger (antialiasing).

    Args:
        start: the stretch's first pixel, int64, (b,), on any device.
        length: of the stretch in pixels, int64, (b,), on any device.
        size: of input and output in pixels.

    Returns:
        float32, (b, size out, size in), rows summing to 1, on the device of ``start``.
    """
    length = send(length, start.device)
    ratio = rearrange(length.float() / size, "b -> b 1 1")
    pixel = torch.arange(size, device=start.device)
    inside = pixel - start[:, None]
    centre = (pixel + 0.5)[None, :, None] * ratio
    away = (rearrange(inside, "b i -> b 1 i") + 0.5 - centre) / ratio.clamp(min=1)
    weights = (1 - away.abs()).clamp_(min=0)
    weights = weights * rearrange((inside >= 0) & (inside < length[:, None]), "b i -> b 1 i")
    return weights / weights.sum(2, keepdim=True)
