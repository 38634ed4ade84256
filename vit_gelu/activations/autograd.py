"""The autograd of x·F((x − μ)/σ): one hidden-size tensor kept, x itself, and no more passes than needed.

Written as a plain formula, autograd keeps up to five tensors and runs a dozen passes over memory. Here the
backward pass recomputes from x. On a CPU both passes go through ``one_pass`` (with AMX), ``generated`` or,
small or without a compiler, ``eager``; on a GPU through ``triton_kernels`` where Triton is installed.

Where others differentiate, they get the plain formula: ``torch.compile``, which recomputes and fuses by
itself, and the transforms of ``torch.func``, whose forward mode is silently wrong at second order for any
custom ``autograd.Function``.
"""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations import eager, generated, one_pass
from vit_gelu.activations.distributions import Distribution
from vit_gelu.activations.eager import has_memory
from vit_gelu.activations.formulas import cdf_partials, cdf_product


@cache
def _triton_kernels() -> ModuleType | None:
    """The GPU's kernels: imported when first needed, because Triton is slow to import; None without it."""
    try:
        from vit_gelu.activations import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def kernels_for(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> ModuleType | None:
    """The module whose ``forward`` and ``backward`` take these, or None: then the plain formula serves."""
    candidates = (_triton_kernels(),) if x.is_cuda else (one_pass, generated, eager)
    return next((kernels for kernels in candidates if kernels and kernels.fits(x, mu, sigma)), None)


def triton_masks(x: Tensor) -> ModuleType | None:
    """``triton_mask``, if it takes this tensor."""
    if not x.is_cuda or kernels_for(x, 0.0, 1.0) is None:
        return None
    from vit_gelu.activations import triton_mask

    return triton_mask


class CDFProduct(torch.autograd.Function):
    """y = x·F((x − μ)/σ); μ and σ are both numbers, or both tensors of shape (), (1,) or (channels,)."""

    @staticmethod
    def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution) -> Tensor:
        kernels = kernels_for(x, mu, sigma)
        return kernels.forward(x, mu, sigma, dist.name) if kernels else cdf_product(x, mu, sigma, dist)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mu, sigma, ctx.dist = inputs
        learned = isinstance(mu, Tensor)
        ctx.numbers = () if learned else (mu, sigma)
        kept = (x, mu, sigma) if learned else (x,)
        ctx.save_for_backward(*kept)
        ctx.save_for_forward(*kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        mu, sigma = parameters or ctx.numbers
        kernels = None if torch.is_grad_enabled() else kernels_for(x, mu, sigma)
        if kernels and has_memory(grad) and type(grad) is Tensor:
            return *kernels.backward(grad.contiguous(), x, mu, sigma, ctx.dist.name), None
        by_x, by_mu, by_sigma = cdf_partials(x, mu, sigma, ctx.dist)
        grad_x = (grad * by_x).to(x.dtype)
        if not parameters:
            return grad_x, None, None, None
        grad_mu = (grad * by_mu).sum_to_size(mu.shape).to(mu.dtype)
        grad_sigma = (grad * by_sigma).sum_to_size(sigma.shape).to(sigma.dtype)
        return grad_x, grad_mu, grad_sigma, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        x, *parameters = ctx.saved_tensors
        mu, sigma = parameters or ctx.numbers
        partials = cdf_partials(x, mu, sigma, ctx.dist)
        terms = [t * p for t, p in zip(tangents[:3], partials, strict=True) if t is not None]
        return sum(terms[1:], terms[0]).to(x.dtype)
