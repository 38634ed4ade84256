"""The autograd of x·F((x − μ)/σ): one hidden-size tensor kept, x itself, and no more passes than needed.

Written as a plain formula, autograd keeps up to five tensors and runs a dozen passes over memory. Here the
backward pass recomputes from x, and on a CPU both passes go through ``eager``.

Where others differentiate, they get the plain formula: ``torch.compile``, which recomputes and fuses by
itself, and the transforms of ``torch.func``, whose forward mode is silently wrong at second order for any
custom ``autograd.Function``.
"""

from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations import eager
from vit_gelu.activations.distributions import Distribution
from vit_gelu.activations.eager import widen


def standardise(wide: Tensor, mu: Tensor | float, sigma: Tensor | float) -> Tensor:
    """(x − μ)/σ; x itself where that changes nothing."""
    if isinstance(mu, Tensor) or mu != 0.0:
        wide = wide - mu
    return wide / sigma if isinstance(sigma, Tensor) or sigma != 1.0 else wide


def cdf_product(x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution) -> Tensor:
    """x·F((x − μ)/σ) as a plain formula, in the dtype of x."""
    wide = widen(x)
    return (wide * dist.cdf(standardise(wide, mu, sigma))).to(x.dtype)


def cdf_partials(
    x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution
) -> tuple[Tensor, Tensor, Tensor]:
    """∂y/∂x, ∂y/∂μ and ∂y/∂σ of y = x·F((x − μ)/σ), elementwise, in the widened dtype; differentiable."""
    wide = widen(x)
    z = standardise(wide, mu, sigma)
    cdf = dist.cdf(z)
    by_mu = -wide * dist.pdf(z, cdf) / sigma
    return cdf - by_mu, by_mu, by_mu * z


class CDFProduct(torch.autograd.Function):
    """y = x·F((x − μ)/σ); μ and σ are both numbers, or both tensors of shape (), (1,) or (channels,)."""

    @staticmethod
    def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution) -> Tensor:
        if eager.fits(x, mu, sigma):
            return eager.forward(x, mu, sigma, dist.name)
        return cdf_product(x, mu, sigma, dist)

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
        if (
            not torch.is_grad_enabled()
            and eager.fits(x, mu, sigma)
            and eager.fits(grad.contiguous(), 0.0, 1.0)
        ):
            return *eager.backward(grad.contiguous(), x, mu, sigma, ctx.dist.name), None
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
