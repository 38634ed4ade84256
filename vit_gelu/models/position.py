"""Position embeddings that are computed rather than learned."""

import torch
from einops import rearrange
from torch import Tensor


def sincos2d(grid: tuple[int, int], dim: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding: MoCo v3 (arXiv:2104.02057), MAE (arXiv:2111.06377).

    The frequencies are ω_i = temperature^(−i/m), i < m = dim/4. Half of the channels encode the column x,
    half the row y: sin(x·ω), cos(x·ω), sin(y·ω), cos(y·ω), m channels each.

    Args:
        grid: rows and columns of patches.
        dim: channels, a multiple of 4.

    Returns:
        float32 of shape (rows * columns, dim), patches in row-major order.

    Raises:
        ValueError: ``dim`` is no multiple of 4.

    >>> sincos2d((1, 2), 4)  # the second patch is one column to the right
    tensor([[0.0000, 1.0000, 0.0000, 1.0000],
            [0.8415, 0.5403, 0.0000, 1.0000]])
    """
    if dim % 4:
        raise ValueError(f"--model.position_embedding sincos2d needs an embed_dim divisible by 4, not {dim}")
    m = dim // 4
    omega = temperature ** -(torch.arange(m, dtype=torch.float64) / m)
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    x_angle, y_angle = (rearrange(axis, "h w -> (h w) 1") * omega for axis in (x, y))
    return torch.cat([x_angle.sin(), x_angle.cos(), y_angle.sin(), y_angle.cos()], dim=1).float()
