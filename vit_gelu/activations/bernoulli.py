"""The stochastic 0–1 mask of the GELU paper (§2) on a CPU.

Three things are slow there: floats at random (one costs more than GELU's forward and backward together),
comparisons that write booleans, and products with booleans. So in eager code random words give two numbers each, and
masks are floats while work is done with them, bytes while they are kept. In compiled code the words are a hash of
their place, which is vectorised as torch's are not, and no mask is kept: the result says where it was 0.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations import eager
from vit_gelu.activations.distributions import normal_cdf

# 32 random bits r, as an integer from −2³¹, become a number strictly between −1 and 1: P(r < erf(x/√2)) = Φ(x),
# and where float32 says that erf is ±1, the outcome is sure.
TO_UNIT = 2.0**-31 * (1.0 - 2.0**-24)


def random_bits(x: Tensor) -> Tensor:
    """int32 of x's shape from torch's global generator of the CPU, two from each draw."""
    like = x.reshape(-1)[: (x.numel() + 1) // 2]  # so that vmap may draw anew for each sample
    words = torch.empty_like(like, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits: no division
    try:
        return words.view(torch.int32)[: x.numel()].view(x.shape)
    except RuntimeError:  # torch 2.11 cannot look at the bits of a tensor under vmap
        return torch.empty_like(x, dtype=torch.int32).random_(-(2**31), 2**31 - 1)


def hashed_bits(x: Tensor, seeds: Tensor) -> Tensor:
    """int32 of x's shape, as if at random: two rounds of an integer hash, with a seed each, of the place in x.

    The rounds are "lowbias32" (Wellons 2018, "Prospecting for Hash Functions"): xors with itself shifted, and products.
    """
    place = torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape)
    return _mixed(_mixed(place + seeds[0]) ^ seeds[1])


def _mixed(words: Tensor) -> Tensor:
    # Masked, because the shift of a signed number copies its sign.
    words = words ^ ((words >> 16) & 0xFFFF)
    words = words * 0x7FEB352D
    words = words ^ ((words >> 15) & 0x1FFFF)
    words = words * (0x846CA68B - 2**32)
    return words ^ ((words >> 16) & 0xFFFF)


class Hashed(torch.autograd.Function):
    """x·mask for compiled code; keeps the result, as the next layer does. Without ``jvp``: see ``Rectified``."""

    @staticmethod
    def forward(x: Tensor, seeds: Tensor) -> Tensor:
        return x * _threshold(x, hashed_bits(x, seeds)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return grad * y.abs().sign(), None


def seeds(device: torch.device) -> Tensor:
    """Two int32 for ``hashed_bits``, from torch's global generator of the device."""
    return torch.randint(-(2**31), 2**31 - 1, (2,), dtype=torch.int32, device=device)


def hashed(x: Tensor) -> Tensor:
    """x·mask for compiled code on a CPU; the seeds come from torch's global generator.

    Where x is 0 itself, the gradient is 0, not the mask.
    """
    return Hashed.apply(x, seeds(x.device))


def _threshold(x: Tensor, bits: Tensor) -> Tensor:
    """Where 32 random bits say yes, with probability Φ(x)."""
    return bits.float() * TO_UNIT < torch.erf(x.float() * math.sqrt(0.5))


def formula(x: Tensor) -> Tensor:
    """A boolean mask of x's shape, each element with probability Φ(x); for transforms and any layout."""
    x = eager.widen(x)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.rand_like(x, dtype=torch.float32) < normal_cdf(x)
    return _threshold(x, random_bits(x))


def draw(x: Tensor) -> Tensor:
    """``formula`` for what ``eager.fits`` accepts: the same mask, sooner."""
    mask = torch.empty_like(x, dtype=torch.bool)
    scratch = eager.Scratch()
    for x_piece, bits, keep in eager.pieces(x, random_bits(x), mask):
        threshold, number = scratch("threshold", x_piece), scratch("number", x_piece)
        torch.erf(threshold.copy_(x_piece).mul_(math.sqrt(0.5)), out=threshold)
        number.copy_(bits).mul_(TO_UNIT)
        keep.copy_(torch.gt(threshold, number, out=threshold))
    return mask


def multiply(x: Tensor, mask: Tensor) -> Tensor:
    """x·mask in the dtype of x; both contiguous."""
    y = torch.empty_like(x)
    for x_piece, keep, out in eager.pieces(x, mask, y):
        torch.mul(x_piece, out.copy_(keep.view(torch.uint8)), out=out)
    return y


class Masked(torch.autograd.Function):
    """x·mask; the mask counts as constant and is all that is kept."""

    @staticmethod
    def forward(x: Tensor, mask: Tensor) -> Tensor:
        return multiply(x, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, mask = inputs
        ctx.save_for_backward(mask)
        ctx.save_for_forward(mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not eager.fits(grad.contiguous(), 0.0, 1.0):
            return grad * mask, None
        return multiply(grad.contiguous(), mask), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (mask,) = ctx.saved_tensors
        return tangent * mask
