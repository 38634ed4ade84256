"""Position embeddings for another grid, patch kernels for another patch: as the checkpoint's origin does it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Resizing:
    """How an origin resizes.

    Attributes:
        mode: of ``torch.nn.functional.interpolate``, for both.
        antialias: a wider filter where the grid shrinks, for both.
        align_corners: corners of the old grid stay corners of the new, for position embeddings.
    """

    mode: str
    antialias: bool
    align_corners: bool

    @property
    def text(self) -> str:
        parts = [self.mode]
        parts += ["antialiased"] if self.antialias else []
        parts += ["corners aligned"] if self.align_corners else []
        return " ".join(parts[:1]) + "".join(f", {part}" for part in parts[1:])


RESIZINGS = {
    # resample_abs_pos_embed and resample_patch_embed.
    "timm": Resizing("bicubic", antialias=True, align_corners=False),
    # vit_jax and big_vision: scipy.ndimage.zoom with order 1, which maps corners to corners; kernels by
    # tf.image.resize, bilinear.
    "google": Resizing("bilinear", antialias=False, align_corners=True),
    # interpolate_embeddings; torchvision does not resize kernels.
    "torchvision": Resizing("bicubic", antialias=False, align_corners=True),
    "vit_gelu": Resizing("bicubic", antialias=True, align_corners=False),
    # FlexiViT was trained under this resizing (arXiv:2212.08013, §3), and timm keeps it.
    "flexivit": Resizing("bilinear", antialias=False, align_corners=False),
}


def resize_position_embedding(
    table: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], resizing: Resizing
) -> Tensor:
    """A position embedding for another grid; what stands before the patches (class, registers) is kept.

    Args:
        table: (1, prefix + rows * columns, dim).
        old_grid, new_grid: rows, columns.
        resizing: one of ``RESIZINGS``.

    Returns:
        (1, prefix + new rows * new columns, dim), of the table's dtype; the table itself for an equal grid.
    """
    if old_grid == new_grid:
        return table
    prefix = table.shape[1] - old_grid[0] * old_grid[1]
    assert prefix >= 0, (table.shape, old_grid)
    image = rearrange(table[:, prefix:].float(), "1 (h w) d -> 1 d h w", h=old_grid[0])
    resized = F.interpolate(
        image,
        size=new_grid,
        mode=resizing.mode,
        antialias=resizing.antialias,
        align_corners=resizing.align_corners,
    )
    return torch.cat([table[:, :prefix], rearrange(resized, "1 d h w -> 1 (h w) d").to(table.dtype)], dim=1)


def resize_patch_kernel(kernel: Tensor, new_size: tuple[int, int], resizing: Resizing) -> Tensor:
    """FlexiViT's PI-resize (Beyer et al. 2022, arXiv:2212.08013, §3).

    With B the matrix that resizes a patch x, the new kernel is ŵ = (Bᵀ)⁺·w: of all kernels the one whose
    products with resized patches, ⟨B·x, ŵ⟩, come closest to ⟨x, w⟩; they are equal where the patch grows.

    Args:
        kernel: (dim, channels, height, width).
        new_size: height, width.
        resizing: one of ``RESIZINGS``.

    Returns:
        (dim, channels, *new_size), of the kernel's dtype; computed in float64.
    """
    height, width = kernel.shape[2:]
    if (height, width) == new_size:
        return kernel
    pixels = rearrange(torch.eye(height * width, dtype=torch.float64), "n (h w) -> n 1 h w", h=height)
    resized = F.interpolate(
        pixels, size=new_size, mode=resizing.mode, antialias=resizing.antialias, align_corners=False
    )
    b = rearrange(resized, "n 1 h w -> (h w) n")
    flat = rearrange(kernel.double(), "d c h w -> d c (h w)") @ torch.linalg.pinv(b)
    return rearrange(flat, "d c (h w) -> d c h w", h=new_size[0]).to(kernel.dtype)
