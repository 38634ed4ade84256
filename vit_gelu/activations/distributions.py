"""Cumulative distribution functions for x·F((x − μ)/σ), written so that tails keep their relative accuracy.

GELU weighs its input by the normal CDF; Hendrycks & Gimpel (2016, arXiv:1606.08415, §2) note that other CDFs
give other units: the logistic one gives SiLU. All are in standard form (location 0, scale 1).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_gelu.suggest import unknown


@dataclass(frozen=True)
class Distribution:
    """A continuous distribution in standard form.

    Attributes:
        name: its key in ``DISTRIBUTIONS``.
        cdf: F(z), elementwise, float32 or float64; differentiable, and finite with finite gradients for
            every finite z.
        pdf: F′(z), likewise.
        formula: F as text.
        latex: F as LaTeX.
    """

    name: str
    cdf: Callable[[Tensor], Tensor]
    pdf: Callable[[Tensor], Tensor]
    formula: str
    latex: str


def normal_cdf(z: Tensor) -> Tensor:
    """Φ(z) = erfc(−z/√2)/2; erfc, not 1 + erf, because the latter is 0 below z ≈ −5.5 in float32.

    >>> print(f"{normal_cdf(torch.tensor(-10.0, dtype=torch.float64)).item():.6e}")
    7.619853e-24
    """
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def normal_pdf(z: Tensor) -> Tensor:
    """φ(z) = exp(−z²/2)/√(2π)."""
    return torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def logistic_pdf(z: Tensor) -> Tensor:
    """s(z)·s(−z) with s the sigmoid; the product keeps both tails, s·(1 − s) would lose the right one."""
    return torch.sigmoid(z) * torch.sigmoid(-z)


def laplace_cdf(z: Tensor) -> Tensor:
    """exp(z)/2 for z ≤ 0, else 1 − exp(−z)/2."""
    tail = 0.5 * torch.exp(-z.abs())
    return torch.where(z > 0, 1.0 - tail, tail)


def laplace_pdf(z: Tensor) -> Tensor:
    """exp(−|z|)/2."""
    return 0.5 * torch.exp(-z.abs())


def cauchy_cdf(z: Tensor) -> Tensor:
    """½ + arctan(z)/π, as the angle of the point (−z, 1) so that the left tail keeps its digits."""
    return torch.atan2(torch.ones_like(z), -z) / math.pi


def cauchy_pdf(z: Tensor) -> Tensor:
    """1/(π(1 + z²))."""
    return 1.0 / (math.pi * (1.0 + z * z))


def uniform_cdf(z: Tensor) -> Tensor:
    """The share of [−1, 1] left of z."""
    return 0.5 * (z.clamp(-1.0, 1.0) + 1.0)


def uniform_pdf(z: Tensor) -> Tensor:
    """½ inside (−1, 1), 0 outside."""
    return 0.5 * (z.abs() < 1.0).to(z.dtype)


DISTRIBUTIONS = {
    d.name: d
    for d in (
        Distribution("normal", normal_cdf, normal_pdf, "erfc(-z/sqrt(2))/2", r"\Phi(z)"),
        Distribution("logistic", torch.sigmoid, logistic_pdf, "1/(1 + exp(-z))", r"\frac{1}{1 + e^{-z}}"),
        Distribution(
            "laplace",
            laplace_cdf,
            laplace_pdf,
            "(1 + sign(z)(1 - exp(-|z|)))/2",
            r"\tfrac12\left(1 + \operatorname{sign}(z)(1 - e^{-|z|})\right)",
        ),
        Distribution(
            "cauchy", cauchy_cdf, cauchy_pdf, "1/2 + arctan(z)/pi", r"\tfrac12 + \tfrac1\pi\arctan z"
        ),
        Distribution(
            "uniform",
            uniform_cdf,
            uniform_pdf,
            "clamp((z + 1)/2, 0, 1)",
            r"\min(\max(\tfrac{z + 1}{2}, 0), 1)",
        ),
    )
}


def distribution(name: str) -> Distribution:
    """The distribution of that name.

    Raises:
        ValueError: there is none; the message names the nearest.

    >>> distribution("normal").formula
    'erfc(-z/sqrt(2))/2'
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(unknown("cdf", name, DISTRIBUTIONS))
    return DISTRIBUTIONS[name]
