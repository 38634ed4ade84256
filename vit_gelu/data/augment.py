"""Augmentation of whole batches of uint8 images, on whatever device the batch is.

What happens to a sample is a pure function of (seed, epoch, the sample's index): every number comes from
``randomness.uniform``, so a sample is augmented alike in any batch, order, process or device. Rows and columns
that move are drawn on the device of the images, if it has float64; other numbers per sample on the CPU, where the
indices are, from where they follow the images. Nothing waits for the device.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.data.transfer import send
from vit_gelu.randomness import has_float64, key, uniform


@dataclass(frozen=True)
class Draw:
    """The random numbers of one operation for the samples of one batch.

    Attributes:
        seed, epoch: of the run.
        label: of the operation, unlike any other operation's in the policy.
        indices: of the samples in their data set, int64, shape (b,), on the CPU.
    """

    seed: int
    epoch: int
    label: str
    indices: Tensor

    def uniform(self, count: int, part: str = "", *, every_epoch: bool = True) -> Tensor:
        """Numbers in [0, 1), float64, shape (b, count); the same in every epoch if not ``every_epoch``."""
        counters = (self.epoch, self.label, part) if every_epoch else (self.label, part)
        return uniform(key(self.seed, "augment", *counters), self.indices, count).double()

    def select(self, rows: Tensor) -> "Draw":
        """The draw of some of the samples, given by their positions in the batch."""
        return dataclasses.replace(self, indices=self.indices[rows])

    def to(self, device: torch.device) -> "Draw":
        """The same numbers, drawn on that device if it has float64."""
        return dataclasses.replace(self, indices=where_drawn(self.indices, device))


def where_drawn(indices: Tensor, device: torch.device) -> Tensor:
    """The indices on the device, or on the CPU where the device has no float64."""
    return send(indices, device) if has_float64(device) else indices


def whole_number(u: Tensor, choices: int | Tensor) -> Tensor:
    """Uniform integers in [0, choices) from uniform float64 numbers in [0, 1).

    >>> whole_number(torch.tensor([0.0, 0.49, 0.99], dtype=torch.float64), 2).tolist()
    [0, 0, 1]
    """
    return (u * choices).long()


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers in [low, high) from uniform numbers in [0, 1)."""
    return low + u * (high - low)


@dataclass(frozen=True)
class Operation:
    """One augmentation; its fields are its arguments on the command line, in this order.

    A call maps images (b, c, h, w) uint8 to images of the same shape and dtype.
    """

    name: ClassVar[str]

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        raise NotImplementedError

    def check(self, image_size: tuple[int, int], channels: int) -> None:
        """Raise ValueError if images of this size or channel count cannot be treated so."""

    def require(self, holds: bool, rule: str) -> None:
        """Raise ValueError naming the operation and the rule that its arguments break."""
        if not holds:
            raise ValueError(f"--data.augment {self}: {rule}")

    def __str__(self) -> str:
        arguments = ", ".join(f"{f.name}={getattr(self, f.name)}" for f in dataclasses.fields(self))
        return f"{self.name}({arguments})" if arguments else self.name


@dataclass(frozen=True)
class Remap(Operation):
    """An operation that moves rows and columns and computes nothing: neighbours in a policy fuse into one."""

    def maps(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Which input row and column each output row (b, height) and column (b, width) shows; -1: outside.

        On the device of the draw's indices.
        """
        raise NotImplementedError

    def __call__(self, images: Tensor, draw: Draw) -> Tensor:
        return remap(images, *self.maps(draw, *images.shape[2:]), fill=self.outside)

    @property
    def outside(self) -> "Fill | None":
        """What pixels from outside the image show; None if there are none."""
        return None


Fill = int | str  # a grey level 0-255, or "mean": each image's own mean colour


def check_fill(operation: Operation, fill: Fill) -> None:
    operation.require(
        fill == "mean" or (isinstance(fill, int) and 0 <= fill <= 255), "fill must be 0 to 255, or mean"
    )


def fill_colour(images: Tensor, fill: Fill) -> Tensor:
    """The colour to fill with, float32, broadcastable to the images (b, c, h, w)."""
    if fill == "mean":
        return images.float().mean((2, 3), keepdim=True).round_()
    return torch.full((1, 1, 1, 1), float(fill), device=images.device)


def remap(images: Tensor, rows: Tensor, columns: Tensor, fill: Fill | None = None) -> Tensor:
    """Images made of other images' pixels: ``out[b, c, y, x] = images[b, c, rows[b, y], columns[b, x]]``.

    Args:
        images: (b, c, h, w), any dtype.
        rows: int64, (b, h); -1 where the output shows ``fill``.
        columns: int64, (b, w), likewise.
        fill: what -1 shows; None promises that there is no -1.
    """
    if fill is not None:
        # Row 0 and column 0 of the padded image are the outside: a mask over pixels costs twice the gather.
        images, rows, columns = _pad_top_left(images, fill), rows + 1, columns + 1
    rows = send(rows, images.device)
    columns = send(columns, images.device)
    b, c, h, w = images.shape
    pixel = rearrange(rows, "b y -> b y 1") * w + rearrange(columns, "b x -> b 1 x")
    pixel = rearrange(pixel, "b y x -> b 1 (y x)").expand(b, c, -1)
    out = images.reshape(b, c, h * w).gather(2, pixel)
    return out.view(b, c, rows.shape[1], columns.shape[1])


def _pad_top_left(images: Tensor, fill: Fill) -> Tensor:
    b, c, h, w = images.shape
    padded = fill_colour(images, fill).to(images.dtype).expand(b, c, h + 1, w + 1).clone()
    padded[:, :, 1:, 1:] = images
    return padded


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The map of two remappings in a row; outside stays outside.

    >>> compose(torch.tensor([[-1, 0, 1]]), torch.tensor([[2, 1, 0]])).tolist()
    [[1, 0, -1]]
    """
    return torch.where(then < 0, -1, first.gather(1, then.clamp(min=0)))


def replace_rows(images: Tensor, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to some images of a batch, in place.

    Args:
        images: (b, c, h, w); changed and returned.
        rows: positions in the batch, int64, (r,), on the CPU.
        function: from and to (r, c, h, w).
    """
    if len(rows) and images.device.type == "cpu":
        # NumPy copies whole rows: index_copy_ takes ten times as long for images of bytes.
        images.numpy()[rows.numpy()] = function(images.index_select(0, rows)).numpy()
    elif len(rows):
        there = send(rows, images.device)
        images.index_copy_(0, there, function(images.index_select(0, there)))
    return images


_Stage = list[tuple[Any, str]]  # an operation that is no Remap alone, or Remaps in a row; with their labels


class Policy:
    """Operations applied in turn to a batch: ``policy(images, indices, seed=0, epoch=3)``.

    Args:
        operations: in the order in which they are applied.
        name: what the user called it; empty for a list of operations.
    """

    def __init__(self, operations: Sequence[Operation], name: str = "") -> None:
        self.operations = tuple(operations)
        self.name = name or ", ".join(self.spec()) or "none"
        seen: Counter[str] = Counter()
        self._stages: list[_Stage] = []
        for operation in self.operations:
            seen[operation.name] += 1
            times = seen[operation.name]
            labelled = (operation, operation.name if times == 1 else f"{operation.name}#{times}")
            # One gather has one fill, so only the first of a fused stage may show pixels from outside.
            fuses = isinstance(operation, Remap) and operation.outside is None
            if fuses and self._stages and isinstance(self._stages[-1][0][0], Remap):
                self._stages[-1].append(labelled)
            else:
                self._stages.append([labelled])

    def spec(self) -> list[str]:
        """The operations with all their arguments, as the command line would take them."""
        return [str(operation) for operation in self.operations]

    def __repr__(self) -> str:
        return f"Policy({', '.join(self.spec())})"

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8, (b, c, h, w), on any device.
            indices: of these samples in their data set, int64, (b,), on the CPU.
            seed, epoch: of the run.

        Returns:
            uint8, (b, c, h, w), on the images' device.
        """
        for stage in self._stages:
            first, label = stage[0]
            if not isinstance(first, Remap):
                images = first(images, Draw(seed, epoch, label, indices))
                continue
            there = where_drawn(indices, images.device)
            maps = [op.maps(Draw(seed, epoch, label, there), *images.shape[2:]) for op, label in stage]
            rows, columns = (functools.reduce(compose, each) for each in zip(*maps, strict=True))
            images = remap(images, rows, columns, fill=first.outside)
        return images
