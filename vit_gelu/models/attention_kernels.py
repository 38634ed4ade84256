"""softmax(q·kᵀ/√d)·v in several ways, equal but for rounding; which is fastest depends on shape and device.

All take queries, keys and values packed as the qkv projection leaves them, (b, n, 3, h, d), and give
(b, n, h·d), as the output projection wants them: the copies between the two layouts are part of the cost.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit_gelu.activations.compiled import compiled_for_cpu
from vit_gelu.cpu_kernels.attention import attention as own_attention
from vit_gelu.cpu_kernels.build import instructions

Kernel = Callable[[Tensor, float], Tensor]


def explicit(qkv: Tensor, dropout: float) -> Tensor:
    """Written out, with one batch dimension for images and heads."""
    q, k, v = qkv.unbind(2)
    return _explicit(q, k, v, dropout)


def _explicit(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Queries (b, m, h, d), keys and values (b, n, h, d) -> (b, m, h·d)."""
    b, d = q.shape[0], q.shape[-1]
    # One batch dimension: a batch of plain products is faster than matmul on four dimensions.
    q, k, v = (rearrange(part, "b n h d -> (b h) n d") for part in (q, k, v))
    weights = _softmax(_scores(q * d**-0.5, k))  # (b·h, m, n)
    return rearrange(torch.bmm(F.dropout(weights, dropout), v), "(b h) m d -> b m (h d)", b=b)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension.

    Compiled for a CPU without gradients it is written out, by a product and not a division: torch.compile would
    recognise attention otherwise and put the fused kernel in its place, which is not what was asked for, and slower
    where this was chosen.
    """
    if not compiled_for_cpu(scores) or torch.is_grad_enabled():
        return scores.softmax(dim=-1)
    weights = (scores.float() - scores.amax(dim=-1, keepdim=True).float()).exp()
    return (weights * (1.0 / weights.sum(dim=-1, keepdim=True))).to(scores.dtype)


class _Scores(torch.autograd.Function):
    """q·kᵀ, (b, m, d), (b, n, d) -> (b, m, n). Without ``jvp``, which torch.compile does not trace."""

    @staticmethod
    def forward(q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(q, k.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        return torch.bmm(grad, k), torch.bmm(grad.mT, q)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """q·kᵀ. Autograd leaves the gradient of k transposed, and compiled code would put it in order number by number."""
    if compiled_for_cpu(q) and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return _Scores.apply(q, k)
    return torch.bmm(q, k.mT)


def matmul(qkv: Tensor, dropout: float) -> Tensor:
    """Written out on four dimensions, as most libraries do; the scale goes to the scores."""
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    weights = F.dropout((q @ k.mT * qkv.shape[-1] ** -0.5).softmax(dim=-1), dropout)
    return rearrange(weights @ v, "b h n d -> b n (h d)")


def strided(qkv: Tensor, dropout: float) -> Tensor:
    """Written out without copies: each product reads and writes where the projections have their numbers.

    On a CPU, without dropout, and differentiable once; opaque to torch.compile, which leaves it as it is.
    """
    _without(dropout)
    return _strided(qkv)[0]


def _without(dropout: float) -> None:
    if dropout:
        raise RuntimeError("this kernel has no dropout")


def in_cache(qkv: Tensor, dropout: float, wanted: str) -> Tensor:
    """Each head at a time, its matrices in the cache: bfloat16 on a CPU with AMX or AVX-512-BF16, without dropout.

    Args:
        qkv: as for all.
        dropout: 0.
        wanted: ``amx`` or ``avx512``; a CPU has one of them here, AMX if it can.

    Raises:
        RuntimeError: not for this machine, dtype or size of heads; or with dropout.
    """
    _without(dropout)
    here = _instructions()
    if here not in (wanted, None):
        raise RuntimeError(f"attention by {wanted}: this CPU has {here}")
    return own_attention(qkv)


@torch.compiler.assume_constant_result
def _instructions() -> str | None:
    return instructions()


def on_chip(qkv: Tensor, dropout: float, bias: Tensor | None = None) -> Tensor:
    """Each head's tokens at once, by Triton: half precision on a GPU, up to 128 tokens, without dropout.

    Args:
        qkv: as for all.
        dropout: 0.
        bias: (3·h·d,), to be added to qkv.

    Raises:
        RuntimeError: no Triton; not for this device, dtype or shape; or with dropout.
    """
    _without(dropout)
    try:
        from vit_gelu.models.triton_attention import attention
    except ImportError as error:
        raise RuntimeError(f"attention by triton: {error}") from None
    return attention(qkv, bias)


def fused(qkv: Tensor, dropout: float, backend: SDPBackend | None = None) -> Tensor:
    """torch's fused kernel: the one that torch picks, or one of its back ends.

    Raises:
        RuntimeError: the back end cannot do it for this device, dtype or shape.
    """
    q, k, v = qkv.unbind(2)
    return _fused(q, k, v, dropout, backend)


def _fused(q: Tensor, k: Tensor, v: Tensor, dropout: float, backend: SDPBackend | None = None) -> Tensor:
    """Queries (b, m, h, d), keys and values (b, n, h, d) -> (b, m, h·d)."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if backend is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return rearrange(out, "b h n d -> b n (h d)")


def few_queries(q: Tensor, k: Tensor, v: Tensor, dropout: float, kernel: str) -> Tensor:
    """Attention of a few tokens, such as the class token alone, to all.

    Args:
        q: (b, m, h, d).
        k, v: (b, n, h, d).
        dropout: of the attention weights.
        kernel: a name in ``KERNELS``; the three that write attention out do so in one way here.

    Returns:
        (b, m, h·d).
    """
    if kernel == "sdpa" or kernel in BACKENDS:
        return _fused(q, k, v, dropout, BACKENDS.get(kernel))
    return _explicit(q, k, v, dropout)


BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
KERNELS: dict[str, Kernel] = {
    "explicit": explicit,
    "matmul": matmul,
    "strided": strided,
    "amx": partial(in_cache, wanted="amx"),
    "avx512": partial(in_cache, wanted="avx512"),
    "triton": on_chip,
    "sdpa": fused,
    **{name: partial(fused, backend=backend) for name, backend in BACKENDS.items()},
}
WITHOUT_DROPOUT = ("strided", "amx", "avx512", "triton")


def _product(a: Tensor, b: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """out = scale·(a @ b) for batches of matrices with any row strides, without a copy of any of them."""
    torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


@torch.library.custom_op("vit_gelu::strided_attention", mutates_args=())
def _strided(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Output (b, n, h·d), and the attention weights (h, b, n, n), which the backward pass needs."""
    qkv = qkv.contiguous()
    b, n, _, h, d = qkv.shape
    q, k, v = qkv.unbind(2)
    weights, out = qkv.new_empty(h, b, n, n), qkv.new_empty(b, n, h, d)
    with torch.autocast(qkv.device.type, enabled=False):
        for i in range(h):
            _product(q[:, :, i], k[:, :, i].mT, weights[i], d**-0.5)
        weights = weights.softmax(dim=-1)
        for i in range(h):
            _product(weights[i], v[:, :, i], out[:, :, i])
    return out.view(b, n, h * d), weights


@torch.library.custom_op("vit_gelu::strided_attention_backward", mutates_args=())
def _strided_backward(grad: Tensor, qkv: Tensor, weights: Tensor) -> Tensor:
    """The gradient for qkv, (b, n, 3, h, d), from that for the output."""
    qkv, grad = qkv.contiguous(), grad.contiguous().view(qkv[:, :, 0].shape)
    grad_qkv, by_weights = torch.empty_like(qkv), torch.empty_like(weights)
    (q, k, v), (grad_q, grad_k, grad_v) = qkv.unbind(2), grad_qkv.unbind(2)
    h, d = qkv.shape[3:]
    with torch.autocast(qkv.device.type, enabled=False):
        for i in range(h):
            _product(weights[i].mT, grad[:, :, i], grad_v[:, :, i])
            _product(grad[:, :, i], v[:, :, i].mT, by_weights[i])
        # In place: new memory for a tensor of this size costs more than the arithmetic.
        by_scores = torch.ops.aten._softmax_backward_data.out(
            by_weights, weights, -1, weights.dtype, grad_input=by_weights
        )
        for i in range(h):
            _product(by_scores[i], k[:, :, i], grad_q[:, :, i], d**-0.5)
            _product(by_scores[i].mT, q[:, :, i], grad_k[:, :, i], d**-0.5)
    return grad_qkv


@_strided.register_fake
def _(qkv: Tensor) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d), qkv.new_empty(h, b, n, n)


@_strided_backward.register_fake
def _(grad: Tensor, qkv: Tensor, weights: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]
) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _backward(ctx: torch.autograd.function.BackwardCFunction, grad: Tensor, _: None) -> Tensor:
    return _strided_backward(grad, *ctx.saved_tensors)


_strided.register_autograd(_backward, setup_context=_keep)
