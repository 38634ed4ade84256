"""Attention of short sequences on a GPU: all tokens of one head in one program, forward and backward.

Fused kernels for long sequences walk through keys and values piece by piece, and their backward pass needs several
launches and a float32 copy of the queries' gradient. The tokens of a small image fit on the chip at once: each pass
reads and writes every number once, where the projections have them, and the backward pass needs nothing but qkv, from
which it computes the weights again.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vit_gelu.models.attention_kernels import fits_on_chip

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(start, row, column, stride, inside):
    return tl.load(start + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _weights(q, k, scale, n, TOKENS: tl.constexpr):
    """softmax(q·kᵀ·scale) over the keys that there are, float32; rows beyond the last query are not meant."""
    scores = tl.dot(q, tl.trans(k)) * (scale * LOG2_E)
    scores = tl.where((tl.arange(0, TOKENS) < n)[None, :], scores, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _forward(qkv_ptr, out_ptr, n, h, d, scale, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    image = tl.program_id(0) // h
    head = tl.program_id(0) % h
    row, column = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    inside = (row < n)[:, None] & (column < d)[None, :]
    start = qkv_ptr + image.to(tl.int64) * n * 3 * h * d + head * d
    q = _load(start, row, column, 3 * h * d, inside)
    k = _load(start + h * d, row, column, 3 * h * d, inside)
    v = _load(start + 2 * h * d, row, column, 3 * h * d, inside)
    weights = _weights(q, k, scale, n, TOKENS)
    out = tl.dot(weights.to(v.dtype), v)
    to = out_ptr + image.to(tl.int64) * n * h * d + head * d
    tl.store(to + row[:, None] * (h * d) + column[None, :], out.to(v.dtype), mask=inside)


@triton.jit
def _backward(grad_ptr, qkv_ptr, by_qkv_ptr, n, h, d, scale, TOKENS: tl.constexpr, WIDTH: tl.constexpr):
    image = tl.program_id(0) // h
    head = tl.program_id(0) % h
    row, column = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    inside = (row < n)[:, None] & (column < d)[None, :]
    packed = image.to(tl.int64) * n * 3 * h * d + head * d
    start = qkv_ptr + packed
    q = _load(start, row, column, 3 * h * d, inside)
    k = _load(start + h * d, row, column, 3 * h * d, inside)
    v = _load(start + 2 * h * d, row, column, 3 * h * d, inside)
    grad = _load(grad_ptr + image.to(tl.int64) * n * h * d + head * d, row, column, h * d, inside)
    weights = _weights(q, k, scale, n, TOKENS)
    to = by_qkv_ptr + packed + row[:, None] * (3 * h * d) + column[None, :]
    by_v = tl.dot(tl.trans(weights.to(v.dtype)), grad)
    tl.store(to + 2 * h * d, by_v.to(v.dtype), mask=inside)
    by_weights = tl.dot(grad, tl.trans(v))
    by_scores = weights * (by_weights - tl.sum(weights * by_weights, 1)[:, None]) * scale
    by_scores = by_scores.to(v.dtype)
    tl.store(to, tl.dot(by_scores, k).to(v.dtype), mask=inside)
    tl.store(to + h * d, tl.dot(tl.trans(by_scores), q).to(v.dtype), mask=inside)


def _sizes(n: int, d: int) -> dict[str, int]:
    tokens, width = (max(16, triton.next_power_of_2(size)) for size in (n, d))
    # A warp multiplies 16 rows at a time.
    return {"TOKENS": tokens, "WIDTH": width, "num_warps": tokens // 16}


# Opaque to torch.compile: as a ``triton_op``, torch 2.11 compiles them anew, and 65 tokens took eight times as long.
@torch.library.custom_op("vit_gelu::triton_attention", mutates_args=())
def _attention(qkv: Tensor) -> Tensor:
    qkv = qkv.contiguous()
    b, n, _, h, d = qkv.shape
    out = _like_out(qkv)
    with torch.cuda.device_of(qkv):
        _forward[(b * h,)](qkv, out, n, h, d, d**-0.5, **_sizes(n, d))
    return out


@torch.library.custom_op("vit_gelu::triton_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor) -> Tensor:
    grad, qkv = grad.contiguous(), qkv.contiguous()
    b, n, _, h, d = qkv.shape
    by_qkv = torch.empty_like(qkv)
    with torch.cuda.device_of(qkv):
        _backward[(b * h,)](grad, qkv, by_qkv, n, h, d, d**-0.5, **_sizes(n, d))
    return by_qkv


@_attention.register_fake
def _like_out(qkv: Tensor) -> Tensor:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d)


@_attention_backward.register_fake
def _(grad: Tensor, qkv: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _differentiate(ctx: torch.autograd.function.BackwardCFunction, grad: Tensor) -> Tensor:
    return _attention_backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.vit_gelu.triton_attention)
def _(qkv: list[int], **_: object) -> int:
    b, n, _three, h, d = qkv
    return 4 * b * h * n * n * d


@register_flop_formula(torch.ops.vit_gelu.triton_attention_backward)
def _(grad: list[int], qkv: list[int], **_: object) -> int:
    b, n, _three, h, d = qkv
    return 8 * b * h * n * n * d  # without the weights that are computed again


def attention(qkv: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v, (b, n, 3, h, d) -> (b, n, h·d), in half precision with float32 sums; differentiable once.

    Raises:
        RuntimeError: more than 128 tokens, wider heads than 128, another dtype, or not on a GPU.
    """
    here = qkv.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not (here and fits_on_chip(qkv.shape[1], qkv.shape[4], qkv.dtype)):
        raise RuntimeError(
            "attention by triton takes bfloat16 or float16, at most 128 tokens and heads of at most 128, on a GPU, "
            f"not {qkv.dtype}, {qkv.shape[1]} tokens, heads of {qkv.shape[4]}, on {qkv.device}"
        )
    return _attention(qkv)
