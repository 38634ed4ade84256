"""Attention of short sequences on a GPU: all tokens of one head in one program, forward and backward.

Fused kernels for long sequences walk through keys and values piece by piece, and their backward pass needs several
launches and a float32 copy of the queries' gradient. The tokens of a small image fit on the chip at once: each pass
reads and writes every number once, where the projections have them, and the backward pass needs nothing but qkv, from
which it computes the weights again. A bias of the projection can be added here: its gradient is a sum of what the
backward pass has at hand, and otherwise another pass over all of qkv's gradient.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vit_gelu.models.triton_shapes import beside_a_tile, fits_on_chip

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(start, row, column, stride, inside):
    return tl.load(start + row[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _plus(matrix, row, inside):
    """A row added to each of the matrix's, rounded as the matrix is; zero outside."""
    return tl.where(inside, matrix.to(tl.float32) + row[None, :], 0.0).to(matrix.dtype)


@triton.jit
def _heads(
    start,
    bias_ptr,  # BIAS only
    head,
    row,
    column,
    inside,
    n,
    h,
    d,
    WIDTH: tl.constexpr,
    ONE: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Queries, keys and values of the tile; and with one more token, the last, its rows in float32."""
    q = _load(start, row, column, 3 * h * d, inside)
    k = _load(start + h * d, row, column, 3 * h * d, inside)
    v = _load(start + 2 * h * d, row, column, 3 * h * d, inside)
    q_one = tl.zeros((WIDTH,), tl.float32)
    k_one, v_one = q_one, q_one
    if ONE:
        one = start + (n - 1) * 3 * h * d
        q_one, k_one, v_one = (
            _row(one, column, d),
            _row(one + h * d, column, d),
            _row(one + 2 * h * d, column, d),
        )
    if BIAS:
        bias = bias_ptr + head * d
        add_q, add_k, add_v = (
            _row(bias, column, d),
            _row(bias + h * d, column, d),
            _row(bias + 2 * h * d, column, d),
        )
        q, k, v = _plus(q, add_q, inside), _plus(k, add_k, inside), _plus(v, add_v, inside)
        q_one, k_one, v_one = q_one + add_q, k_one + add_k, v_one + add_v
    return q, k, v, q_one, k_one, v_one


@triton.jit
def _row(start, column, d):
    return tl.load(start + column, mask=column < d, other=0.0).to(tl.float32)


@triton.jit
def _along(matrix, row):
    """Each row of a matrix times one more, float32."""
    return tl.sum(matrix.to(tl.float32) * row[None, :], 1)


@triton.jit
def _down(factors, matrix):
    """The sum of a matrix's rows, each times its factor, float32."""
    return tl.sum(factors[:, None] * matrix.to(tl.float32), 0)


@triton.jit
def _weights(q, k, q_one, k_one, scale, n, TOKENS: tl.constexpr, ONE: tl.constexpr):
    """softmax(q·kᵀ·scale), float32: of the tile; and with one more token, its column, its row, and where they meet.

    Rows beyond the last query are not meant.
    """
    by = scale * LOG2_E
    there = tl.arange(0, TOKENS) < n
    scores = tl.where(there[None, :], tl.dot(q, tl.trans(k)) * by, float("-inf"))
    most = tl.max(scores, 1)
    column, row, corner = tl.zeros((TOKENS,), tl.float32), tl.zeros((TOKENS,), tl.float32), 0.0
    if ONE:
        column = _along(q, k_one) * by
        row = tl.where(there, _along(k, q_one) * by, float("-inf"))
        corner = tl.sum(q_one * k_one, 0) * by
        most = tl.maximum(most, column)
        most_one = tl.maximum(tl.max(row, 0), corner)
        column, row, corner = tl.exp2(column - most), tl.exp2(row - most_one), tl.exp2(corner - most_one)
        total_one = tl.sum(row, 0) + corner
        row, corner = row / total_one, corner / total_one
    tile = tl.exp2(scores - most[:, None])
    total = tl.sum(tile, 1)
    if ONE:
        total += column
        column = column / total
    return tile / total[:, None], column, row, corner


@triton.jit
def _forward(
    qkv_ptr,
    bias_ptr,  # BIAS only
    out_ptr,
    n,
    h,
    d,
    scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    ONE: tl.constexpr,
    BIAS: tl.constexpr,
):
    image = tl.program_id(0) // h
    head = tl.program_id(0) % h
    row, column = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    last = n - 1  # with ONE, beside the tile
    tokens = last if ONE else n
    inside = (row < tokens)[:, None] & (column < d)[None, :]
    start = qkv_ptr + image.to(tl.int64) * n * 3 * h * d + head * d
    to = out_ptr + image.to(tl.int64) * n * h * d + head * d
    q, k, v, q_one, k_one, v_one = _heads(
        start, bias_ptr, head, row, column, inside, n, h, d, WIDTH, ONE, BIAS
    )
    weights, by_column, by_row, corner = _weights(q, k, q_one, k_one, scale, tokens, TOKENS, ONE)
    out = tl.dot(weights.to(v.dtype), v)
    if ONE:
        out += by_column[:, None] * v_one[None, :]
        out_one = _down(by_row, v) + corner * v_one
        tl.store(to + last * h * d + column, out_one.to(v.dtype), mask=column < d)
    tl.store(to + row[:, None] * (h * d) + column[None, :], out.to(v.dtype), mask=inside)


@triton.jit
def _backward(
    grad_ptr,
    qkv_ptr,
    bias_ptr,  # BIAS only
    by_qkv_ptr,
    by_bias_ptr,  # BIAS only: the bias's gradient by image
    n,
    h,
    d,
    scale,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    ONE: tl.constexpr,
    BIAS: tl.constexpr,
):
    image = tl.program_id(0) // h
    head = tl.program_id(0) % h
    row, column = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    last = n - 1
    tokens = last if ONE else n
    inside = (row < tokens)[:, None] & (column < d)[None, :]
    packed = image.to(tl.int64) * n * 3 * h * d + head * d
    start = qkv_ptr + packed
    of_grad = grad_ptr + image.to(tl.int64) * n * h * d + head * d
    q, k, v, q_one, k_one, v_one = _heads(
        start, bias_ptr, head, row, column, inside, n, h, d, WIDTH, ONE, BIAS
    )
    grad = _load(of_grad, row, column, h * d, inside)
    grad_one = tl.zeros((WIDTH,), tl.float32)
    if ONE:
        grad_one = _row(of_grad + last * h * d, column, d)
    weights, w_column, w_row, w_corner = _weights(q, k, q_one, k_one, scale, tokens, TOKENS, ONE)
    to = by_qkv_ptr + packed + row[:, None] * (3 * h * d) + column[None, :]
    to_one = by_qkv_ptr + packed + last * 3 * h * d + column
    by_v = tl.dot(tl.trans(weights.to(v.dtype)), grad)
    by_weights = tl.dot(grad, tl.trans(v))
    mean = tl.sum(weights * by_weights, 1)
    if ONE:
        by_v += w_row[:, None] * grad_one[None, :]
        by_v_one = _down(w_column, grad) + w_corner * grad_one
        tl.store(to_one + 2 * h * d, by_v_one.to(v.dtype), mask=column < d)
    else:
        by_v_one = grad_one
    if BIAS:
        to_bias = by_bias_ptr + image * 3 * h * d + head * d + column
        tl.store(to_bias + 2 * h * d, tl.sum(by_v, 0) + by_v_one, mask=column < d)
    if ONE:
        s_column, s_row, s_corner = _along(grad, v_one), _along(v, grad_one), tl.sum(grad_one * v_one, 0)
        mean += w_column * s_column
        mean_one = tl.sum(w_row * s_row, 0) + w_corner * s_corner
        s_column = w_column * (s_column - mean) * scale
        s_row = w_row * (s_row - mean_one) * scale
        s_corner = w_corner * (s_corner - mean_one) * scale
    tl.store(to + 2 * h * d, by_v.to(v.dtype), mask=inside)
    by_scores = (weights * (by_weights - mean[:, None]) * scale).to(v.dtype)
    by_q = tl.dot(by_scores, k)
    by_k = tl.dot(tl.trans(by_scores), q)
    if ONE:
        by_q += s_column[:, None] * k_one[None, :]
        by_k += s_row[:, None] * q_one[None, :]
        by_q_one = _down(s_row, k) + s_corner * k_one
        by_k_one = _down(s_column, q) + s_corner * q_one
        tl.store(to_one, by_q_one.to(v.dtype), mask=column < d)
        tl.store(to_one + h * d, by_k_one.to(v.dtype), mask=column < d)
    else:
        by_q_one, by_k_one = grad_one, grad_one
    if BIAS:
        tl.store(to_bias, tl.sum(by_q, 0) + by_q_one, mask=column < d)
        tl.store(to_bias + h * d, tl.sum(by_k, 0) + by_k_one, mask=column < d)
    tl.store(to, by_q.to(v.dtype), mask=inside)
    tl.store(to + h * d, by_k.to(v.dtype), mask=inside)


def _sizes(n: int, d: int) -> dict[str, int]:
    one = beside_a_tile(n)
    tokens, width = (max(16, triton.next_power_of_2(size)) for size in (n - one, d))
    # A warp multiplies 16 rows at a time.
    return {"TOKENS": tokens, "WIDTH": width, "ONE": one, "num_warps": tokens // 16}


# Opaque to torch.compile: as a ``triton_op``, torch 2.11 compiles them anew, and 65 tokens took eight times as long.
@torch.library.custom_op("vit_gelu::triton_attention", mutates_args=())
def _attention(qkv: Tensor, bias: Tensor | None) -> Tensor:
    qkv = qkv.contiguous()
    b, n, _, h, d = qkv.shape
    out = _like_out(qkv, bias)
    with torch.cuda.device_of(qkv):
        _forward[(b * h,)](qkv, bias, out, n, h, d, d**-0.5, BIAS=bias is not None, **_sizes(n, d))
    return out


@torch.library.custom_op("vit_gelu::triton_attention_backward", mutates_args=())
def _attention_backward(grad: Tensor, qkv: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients for qkv, and for its bias by image, (b, 3·h·d) in float32; (b, 0) without."""
    grad, qkv = grad.contiguous(), qkv.contiguous()
    b, n, _, h, d = qkv.shape
    by_qkv, by_bias = _like_gradients(grad, qkv, bias)
    with torch.cuda.device_of(qkv):
        _backward[(b * h,)](
            *(grad, qkv, bias, by_qkv, by_bias, n, h, d, d**-0.5), BIAS=bias is not None, **_sizes(n, d)
        )
    return by_qkv, by_bias


@_attention.register_fake
def _like_out(qkv: Tensor, bias: Tensor | None) -> Tensor:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d)


@_attention_backward.register_fake
def _like_gradients(grad: Tensor, qkv: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    by_bias = qkv.new_empty(len(qkv), 0 if bias is None else bias.numel(), dtype=torch.float32)
    return torch.empty_like(qkv, memory_format=torch.contiguous_format), by_bias


def _keep(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor | None], output: Tensor
) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[arg-type]


def _differentiate(
    ctx: torch.autograd.function.BackwardCFunction, grad: Tensor
) -> tuple[Tensor, Tensor | None]:
    qkv, bias = ctx.saved_tensors  # type: ignore[misc]
    by_qkv, by_bias = _attention_backward(grad, qkv, bias)
    return by_qkv, None if bias is None else by_bias.sum(0).to(bias.dtype)


_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.vit_gelu.triton_attention)
def _(qkv: list[int], bias: list[int] | None, **_: object) -> int:
    b, n, _three, h, d = qkv
    return 4 * b * h * n * n * d


@register_flop_formula(torch.ops.vit_gelu.triton_attention_backward)
def _(grad: list[int], qkv: list[int], bias: list[int] | None, **_: object) -> int:
    b, n, _three, h, d = qkv
    return 8 * b * h * n * n * d  # without the weights that are computed again


def attention(qkv: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d)·v, (b, n, 3, h, d) -> (b, n, h·d), in half precision with float32 sums; differentiable once.

    Args:
        qkv: queries, keys and values.
        bias: (3·h·d,), added to them; its gradient is in float32.

    Raises:
        RuntimeError: more than 128 tokens, wider heads than 128, another dtype, or not on a GPU.
    """
    here = qkv.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if not (here and fits_on_chip(qkv.shape[1], qkv.shape[4], qkv.dtype)):
        raise RuntimeError(
            "attention by triton takes bfloat16 or float16, at most 128 tokens and heads of at most 128, on a GPU, "
            f"not {qkv.dtype}, {qkv.shape[1]} tokens, heads of {qkv.shape[4]}, on {qkv.device}"
        )
    return _attention(qkv, bias)
