"""Mixup and CutMix of whole batches, with soft targets.

Samples mix in pairs: positions 2k and 2k + 1 of the batch, each the other's partner; an odd last one stays
as it is. What a pair draws depends on (seed, epoch, the data set's index of its first sample) alone, so
several devices mix what one device would, as long as each has an even number of samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from scipy import special
from torch import Tensor

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

    def weights(
        self, indices: Tensor, height: int, width: int, *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """How much of itself each image keeps.

        Args:
            indices: of the samples in their data set, int64, (b,), on the CPU.
            height, width: of the images.

        Returns:
            Per pixel, float32, (b // 2, height or 1, width or 1), and per label, float32, (b // 2,).
        """
        first = indices[: len(indices) // 2 * 2 : 2]
        u = uniform(key(seed, "augment", epoch, "mixing"), first, 4).double()
        use_cutmix = u[:, 0] < 0.5 if self.mixup and self.cutmix else torch.tensor(self.cutmix > 0)
        alpha = np.where(use_cutmix.numpy(), self.cutmix, self.mixup)
        kept = torch.from_numpy(special.betaincinv(alpha, alpha, u[:, 1].numpy()))
        if not self.cutmix:
            kept = kept.float()
            return rearrange(kept, "p -> p 1 1"), kept
        box = cut_box(kept, u[:, 2], u[:, 3], height, width)
        pixels = torch.where(rearrange(use_cutmix.expand_as(kept), "p -> p 1 1"), ~box, kept[:, None, None])
        # The mean over pixels is the label's weight in both cases: of a constant, or of what the box leaves.
        return pixels.float(), pixels.double().mean((1, 2)).float()

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: floating point, (b, c, h, w).
            labels: int64, (b,), on the images' device.
            indices: of the samples in their data set, int64, (b,), on the CPU.

        Returns:
            Images like the input, and soft targets, float32, (b, num_classes), rows summing to 1.
        """
        pairs = len(images) // 2 * 2
        targets = torch.zeros(len(images), self.num_classes, device=images.device)
        pixels, kept = self.weights(indices, images.shape[2], images.shape[3], seed=seed, epoch=epoch)
        pixels = pixels.to(images.device, images.dtype, non_blocking=True)
        kept = kept.to(images.device, non_blocking=True)
        two = rearrange(images[:pairs], "(p two) c h w -> p two c h w", two=2)
        mixed = torch.lerp(two.flip(1), two, rearrange(pixels, "p h w -> p 1 1 h w"))
        label_pairs = rearrange(labels[:pairs], "(p two) -> p two", two=2)
        own = kept[:, None].expand(-1, 2).reshape(-1, 1)
        targets[:pairs].scatter_add_(1, label_pairs.reshape(-1, 1), own)
        targets[:pairs].scatter_add_(1, label_pairs.flip(1).reshape(-1, 1), 1 - own)
        mixed = rearrange(mixed, "p two c h w -> (p two) c h w")
        if pairs < len(images):
            mixed = torch.cat([mixed, images[pairs:]])
            targets[pairs:].scatter_(1, labels[pairs:, None], 1.0)
        return mixed, targets


def cut_box(kept: Tensor, u_x: Tensor, u_y: Tensor, height: int, width: int) -> Tensor:
    """CutMix's boxes: sides sqrt(1 - kept) of the image's, centres uniform, cut at the image's border.

    Args:
        kept: the share of the image that an uncut box leaves, (p,).
        u_x, u_y: uniform numbers in [0, 1) for the centres, (p,).

    Returns:
        bool, (p, height, width): True inside the box.
    """

    def inside(u: Tensor, size: int) -> Tensor:
        half = ((1 - kept).sqrt() * size).long() // 2
        centre = (u * size).long()
        low, high = (centre - half).clamp(0, size), (centre + half).clamp(0, size)
        position = torch.arange(size)
        return (position >= low[:, None]) & (position < high[:, None])

    return inside(u_y, height)[:, :, None] & inside(u_x, width)[:, None, :]
