"""Patch projections that start by decorrelating the pixels of the data at hand."""

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.models.stem import PatchEmbed
from vit_gelu.models.vit import VisionTransformer
from vit_gelu.randomness import generator

TOKEN_STD = 0.5


@torch.no_grad()
def whiten_patches(net: VisionTransformer, images: Tensor, *, seed: int, eps: float = 0.01) -> None:
    """Set the patch projection so that its outputs over these images' patches have covariance ∝ identity.

    Neighbouring pixels are nearly equal, so the first layer otherwise spends many steps on undoing that. With
    the second moments of the flattened patches, E[p·pᵀ] = E·Λ·Eᵀ, the kernel becomes s·Q·E·(Λ + ε)^(−1/2)·Eᵀ:
    ZCA whitening (Bell & Sejnowski 1997, "The independent components of natural scenes are edge filters"),
    then a random rotation into the tokens' width, Q with orthonormal columns (rows, if the width is smaller).
    s makes the mean square of a token's entries 0.25. The bias becomes 0; both are trained afterwards. Whitening
    the first layer from training images is how the airbench CIFAR networks start (Jordan 2024,
    arXiv:2404.00498, §3.2).

    Args:
        net: with a stem of plain patches.
        images: float, (n, c, h, w), normalised as in training, without augmentation; labels are not used.
        seed: of the run; fixes Q.
        eps: added to the variances, so that directions without any are not blown up.

    Raises:
        ValueError: the stem is not one of plain patches.
    """
    embed = net.patch_embed
    if not isinstance(embed, PatchEmbed):
        raise ValueError("--model.whiten_patches: needs --model.stem patch")
    kernel = embed.proj.weight
    height, width = kernel.shape[2:]
    patches = rearrange(images.double(), "n c (y h) (x w) -> (n y x) (c h w)", h=height, w=width)
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    whitening = directions @ torch.diag((variances + eps).rsqrt()) @ directions.T
    dim, pixels = kernel.shape[0], patches.shape[1]
    draw = torch.randn(
        max(dim, pixels), min(dim, pixels), generator=generator(seed, "init", "patch_embed.whitening")
    )
    rotation = torch.linalg.qr(draw.double())[0]
    if dim < pixels:
        rotation = rotation.T
    scale = TOKEN_STD * max(1.0, dim / pixels) ** 0.5
    kernel.copy_((scale * rotation @ whitening).view_as(kernel))
    if embed.proj.bias is not None:
        embed.proj.bias.zero_()
