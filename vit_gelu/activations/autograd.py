"""The autograd of x·F((x − μ)/σ) and of elementwise functions, keeping one hidden-size tensor: the input.

Written as plain formulas, autograd would keep up to five. Under ``torch.compile`` the plain formulas are
used: the compiler recomputes elementwise operations in the backward pass by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations.distributions import Distribution


def widen(x: Tensor) -> Tensor:
    """float32 for half-precision tensors, others as they are: what formulas are evaluated in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Elementwise(torch.autograd.Function):
    """y = value(x), with dy/dx = slope(x) recomputed from x.

    ``slope`` must be differentiable itself (double backward) and may return a wider dtype than x.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, ctx.slope = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return (grad * ctx.slope(x)).to(x.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        return (tangent * ctx.slope(x)).to(x.dtype)


def cdf_product(x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution) -> Tensor:
    """x·F((x − μ)/σ) as a plain formula, in the dtype of x."""
    wide = widen(x)
    return (wide * dist.cdf((wide - mu) / sigma)).to(x.dtype)


def cdf_partials(
    x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution
) -> tuple[Tensor, Tensor, Tensor]:
    """∂y/∂x, ∂y/∂μ and ∂y/∂σ of y = x·F((x − μ)/σ), elementwise, in the widened dtype."""
    wide = widen(x)
    z = (wide - mu) / sigma
    by_mu = -wide * (dist.pdf(z) / sigma)
    return dist.cdf(z) - by_mu, by_mu, by_mu * z


class CDFProduct(torch.autograd.Function):
    """y = x·F((x − μ)/σ) with tensors μ and σ that broadcast against x; keeps x, μ and σ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mu: Tensor, sigma: Tensor, dist: Distribution) -> Tensor:
        return cdf_product(x, mu, sigma, dist)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mu, sigma, ctx.dist = inputs
        ctx.save_for_backward(x, mu, sigma)
        ctx.save_for_forward(x, mu, sigma)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mu, sigma = ctx.saved_tensors
        by_x, by_mu, by_sigma = cdf_partials(x, mu, sigma, ctx.dist)
        grad_mu = (grad * by_mu).sum_to_size(mu.shape).to(mu.dtype)
        grad_sigma = (grad * by_sigma).sum_to_size(sigma.shape).to(sigma.dtype)
        return (grad * by_x).to(x.dtype), grad_mu, grad_sigma, None

    @staticmethod
    def jvp(
        ctx: Any, tangent: Tensor | None, tangent_mu: Tensor | None, tangent_sigma: Tensor | None, _: None
    ) -> Tensor:
        x, mu, sigma = ctx.saved_tensors
        tangents = (tangent, tangent_mu, tangent_sigma)
        partials = cdf_partials(x, mu, sigma, ctx.dist)
        terms = [t * p for t, p in zip(tangents, partials, strict=True) if t is not None]
        return sum(terms[1:], terms[0]).to(x.dtype)
