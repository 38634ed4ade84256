"""Mixup and CutMix of whole batches, with soft targets.

Samples mix in pairs: positions 2k and 2k + 1 of the batch, each the other's partner; an odd last one stays
as it is. What a pair draws depends on (seed, epoch, the data set's index of its first sample) alone, so
several devices mix what one device would, as long as each has an even number of samples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from scipy import special
from torch import Tensor
from torch.nn import functional

from vit_gelu.data.transfer import send
from vit_gelu.randomness import key, uniform


@dataclass(frozen=True)
class Mixing:
    """Which of the two is used, and how strongly; both switched on: a fair coin per pair decides.

    Args:
        num_classes: width of the soft targets.
        mixup: Zhang et al. 2018 ("mixup: Beyond Empirical Risk Minimization", equation 1):
            x' = lambda x + (1 - lambda) x_partner with lambda ~ Beta(mixup, mixup); 0 switches it off.
        cutmix: Yun et al. 2019 ("CutMix", section 3): a box of the partner's pixels, covering
            1 - lambda of the image before it is cut at the border, lambda ~ Beta(cutmix, cutmix); labels
            are weighted by the pixels that are really shown; 0 switches it off.

    Raises:
        ValueError: a parameter is negative or not finite.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for option in ("mixup", "cutmix"):
            value = getattr(self, option)
            if not 0 <= value < float("inf"):
                raise ValueError(
                    f"--data.{option} is {value}: it must be 0 (off) or a positive number,"
                    " the parameter of Beta(a, a)"
                )

    @property
    def active(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, indices: Tensor, height: int, width: int, *, seed: int, epoch: int) -> "Shares":
        """How much of itself each image of a pair keeps.

        Args:
            indices: of the samples in their data set, int64, (b,), on the CPU.
            height, width: of the images.
        """
        first = indices[: len(indices) // 2 * 2 : 2]
        u = uniform(key(seed, "augment", epoch, "mixing"), first, 4).double()
        coin = u[:, 0] < (0.5 if self.mixup else 1.0)
        cuts = coin if self.cutmix else torch.zeros_like(coin)
        alpha = np.where(cuts.numpy(), self.cutmix, self.mixup)
        kept = torch.from_numpy(special.betaincinv(alpha, alpha, u[:, 1].numpy()))
        side = torch.where(cuts, (1 - kept).sqrt(), 0.0)
        rows, columns = box_side(side, u[:, 2], height), box_side(side, u[:, 3], width)
        blend = torch.where(cuts, 1.0, kept)
        shown = 1 - rows.sum(1) * columns.sum(1) / (height * width)
        return Shares(blend.float(), rows, columns, (blend * shown).float())

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch in place.

        Args:
            images: floating point, (b, c, h, w); overwritten.
            labels: int64, (b,), on the images' device.
            indices: of the samples in their data set, int64, (b,), on the CPU.
            seed, epoch: of the run.

        Returns:
            The same images, and soft targets, float32, (b, num_classes), rows summing to 1.
        """
        pairs = len(images) // 2 * 2
        drawn = self.draw(indices, images.shape[2], images.shape[3], seed=seed, epoch=epoch)
        blend, rows, columns, own = (send(part, images.device) for part in drawn)
        inside = rearrange(rows, "p h -> p 1 h 1") * rearrange(columns, "p w -> p 1 1 w")
        keep = rearrange(blend, "p -> p 1 1 1") * ~inside
        one, other = images[0:pairs:2], images[1:pairs:2]
        # lerp is exact where a weight is 0 or 1: a box holds the partner's very pixels.
        mixed = torch.lerp(other, one, keep.to(images.dtype))
        other.lerp_(one, (1 - keep).to(images.dtype))
        one.copy_(mixed)
        targets = functional.one_hot(labels, self.num_classes).float()
        own = own[:, None]
        one_target, other_target = targets[0:pairs:2], targets[1:pairs:2]
        mixed = torch.lerp(other_target, one_target, own)
        other_target.lerp_(one_target, 1 - own)
        one_target.copy_(mixed)
        return images, targets


class Shares(NamedTuple):
    """What each pair draws: of its own pixel an image keeps ``blend``, and nothing inside the box.

    Attributes:
        blend: float32, (p,).
        rows, columns: bool, (p, h) and (p, w): the box is where both are True; no box: nowhere.
        label: float32, (p,): the weight of an image's own label, the mean over pixels of what it keeps.
    """

    blend: Tensor
    rows: Tensor
    columns: Tensor
    label: Tensor


def box_side(side: Tensor, u: Tensor, size: int) -> Tensor:
    """One dimension of CutMix's boxes, cut at the image's border.

    Args:
        side: the box's length as a share of the image's, float64, (p,).
        u: uniform numbers in [0, 1) for the centre, float64, (p,).
        size: the image's length in pixels.

    Returns:
        bool, (p, size): which pixels are inside.

    >>> box_side(torch.tensor([0.5]), torch.tensor([0.9]), 8).int().tolist()
    [[0, 0, 0, 0, 0, 1, 1, 1]]
    """
    half = ((side * size).long() // 2)[:, None]
    centre = (u * size).long()[:, None]
    position = torch.arange(size)
    return (position >= centre - half) & (position < centre + half)
