"""The stochastic 0–1 map of the GELU paper (§2) as one Triton kernel each way: one pass over memory on a GPU.

The random words are those of ``bernoulli.hashed_bits``, a hash of an element's place and two seeds, so that nothing is
drawn in memory; what is kept is the result, which says where it was 0, and which the next layer keeps anyway.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vit_gelu.activations import bernoulli
from vit_gelu.activations.triton_kernels import BLOCK, BLOCKS

TO_UNIT = tl.constexpr(bernoulli.TO_UNIT)


@triton.jit
def _mixed(words):
    """``bernoulli._mixed`` of unsigned words."""
    words = words ^ (words >> 16)
    words = words * 0x7FEB352D
    words = words ^ (words >> 15)
    words = words * 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def _masked(
    x_ptr,
    seeds_ptr,  # int32, two
    out_ptr,
    count,
    SIZE: tl.constexpr,
    REPEAT: tl.constexpr,
):
    first = tl.load(seeds_ptr).to(tl.uint32, bitcast=True)
    second = tl.load(seeds_ptr + 1).to(tl.uint32, bitcast=True)
    start = tl.program_id(0).to(tl.int64) * (REPEAT * SIZE)
    for i in tl.static_range(REPEAT):
        at = start + i * SIZE + tl.arange(0, SIZE)
        inside = at < count
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        bits = _mixed(_mixed(at.to(tl.uint32) + first) ^ second).to(tl.int32, bitcast=True)
        keep = bits.to(tl.float32) * TO_UNIT < tl.erf(x * 0.7071067811865476)
        tl.store(out_ptr + at, (x * keep.to(tl.float32)).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _masked_backward(
    grad_ptr,
    y_ptr,
    out_ptr,
    count,
    SIZE: tl.constexpr,
    REPEAT: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * (REPEAT * SIZE)
    for i in tl.static_range(REPEAT):
        at = start + i * SIZE + tl.arange(0, SIZE)
        inside = at < count
        y = tl.load(y_ptr + at, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        kept = (y != 0.0).to(tl.float32)
        tl.store(out_ptr + at, (grad * kept).to(out_ptr.dtype.element_ty), mask=inside)


def forward(x: Tensor, seeds: Tensor) -> Tensor:
    """x·mask in the dtype of x, for what ``triton_kernels.fits`` accepts.

    Args:
        x: any shape.
        seeds: (2,) int32 on the device of x.
    """
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _masked[(triton.cdiv(x.numel(), BLOCK * BLOCKS),)](x, seeds, y, x.numel(), BLOCK, BLOCKS)
    return y


def backward(grad: Tensor, y: Tensor) -> Tensor:
    """``grad`` where y is not 0; both contiguous and of one dtype."""
    out = torch.empty_like(grad)
    with torch.cuda.device_of(y):
        _masked_backward[(triton.cdiv(y.numel(), BLOCK * BLOCKS),)](grad, y, out, y.numel(), BLOCK, BLOCKS)
    return out


class Masked(torch.autograd.Function):
    """x·mask; the mask counts as constant. Where x is 0 itself, the gradient is 0, not the mask."""

    @staticmethod
    def forward(x: Tensor, seeds: Tensor) -> Tensor:
        return forward(x, seeds)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled() or type(grad) is not Tensor or grad.dtype != y.dtype:
            return grad * (y != 0), None
        return backward(grad.contiguous(), y), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return tangent * (y != 0)


def masked(x: Tensor) -> Tensor:
    """x·mask; the seeds come from torch's global generator of the device."""
    return Masked.apply(x, bernoulli.seeds(x.device))
