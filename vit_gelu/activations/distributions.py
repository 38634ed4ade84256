"""Cumulative distribution functions F for units x·F((x − μ)/σ).

GELU weighs its input by the normal CDF; Hendrycks & Gimpel (2016, arXiv:1606.08415, §2) note that other CDFs
give other units, the logistic one SiLU. All are in standard form (location 0, scale 1), take float32 or
float64 tensors of any shape, and are finite with finite derivatives for every finite argument.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_gelu.suggest import unknown

# Φ(z) ≈ s(2u), u = √(2/π)(z + 0.044715 z³): GELU paper §2.
TANH_SCALE, CUBE = 2.0 * math.sqrt(2.0 / math.pi), 0.044715


def normal_cdf(z: Tensor) -> Tensor:
    """Φ(z) = (1 + erf(z/√2))/2, with an error that is small against 1, as in torch's GELU.

    In float64, which serves checks, erfc(−z/√2)/2: it keeps its digits in the left tail, but costs more.

    >>> print(f"{normal_cdf(torch.tensor(-10.0, dtype=torch.float64)).item():.6e}")
    7.619853e-24
    """
    if z.dtype == torch.float64:
        return 0.5 * torch.erfc(z * -math.sqrt(0.5))
    return 0.5 * (1.0 + torch.erf(z * math.sqrt(0.5)))


def normal_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """φ(z) = exp(−z²/2)/√(2π)."""
    return torch.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))


def logistic_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """F(z)·F(−z)."""
    return cdf * torch.sigmoid(-z)


def laplace_cdf(z: Tensor) -> Tensor:
    """exp(z)/2 for z ≤ 0, else 1 − exp(−z)/2."""
    left = z <= 0
    tail = 0.5 * torch.exp(torch.where(left, z, -z))  # not −|z|, whose gradient at 0 is 0
    return torch.where(left, tail, 1.0 - tail)


def laplace_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """exp(−|z|)/2 = min(F, 1 − F)."""
    return torch.minimum(cdf, 1.0 - cdf)


def uniform_cdf(z: Tensor) -> Tensor:
    """The share of [−1, 1] that lies left of z."""
    return 0.5 * z.clamp(-1.0, 1.0) + 0.5


def uniform_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """½ inside (−1, 1), 0 outside."""
    return 0.5 * ((cdf > 0.0) & (cdf < 1.0)).to(z.dtype)


def mish_cdf(z: Tensor) -> Tensor:
    """tanh(log(1 + exp(z))) = w(w + 2)/(w(w + 2) + 2) with w = exp(z); it rises from 0 to 1."""
    w = torch.exp(z.clamp(max=40.0))  # beyond, F is 1 to rounding
    p = w * (w + 2.0)
    return p / (p + 2.0)


def mish_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """4w(1 + w)/(w(w + 2) + 2)² with w = exp(z)."""
    w = torch.exp(z.clamp(max=40.0))
    return w * (1.0 + w) * (2.0 / (w * (w + 2.0) + 2.0)) ** 2


def _bounded(z: Tensor) -> Tensor:
    return z.clamp(-25.0, 25.0)  # beyond, F is 0 or 1 even in float64, and its formula might give 0·∞


def normal_tanh_cdf(z: Tensor) -> Tensor:
    """(1 + tanh u)/2 = s(2u) with u = √(2/π)(z + 0.044715 z³), s the sigmoid: no digits lost in the left tail."""
    z = _bounded(z)
    return torch.sigmoid(z * (TANH_SCALE + TANH_SCALE * CUBE * (z * z)))


def normal_tanh_pdf(z: Tensor, cdf: Tensor) -> Tensor:
    """F(z)·F(−z)·2u′ with u as above."""
    z = _bounded(z)
    return cdf * normal_tanh_cdf(-z) * (TANH_SCALE + 3.0 * TANH_SCALE * CUBE * (z * z))


@dataclass(frozen=True)
class Distribution:
    """A continuous distribution in standard form.

    Attributes:
        name: its key in ``DISTRIBUTIONS``.
        formula: F as text.
        latex: F as LaTeX.
        cdf: z -> F(z), differentiable.
        pdf: (z, F(z)) -> F′(z), differentiable; F(z) is handed over because it often saves an exponential.
    """

    name: str
    formula: str
    latex: str
    cdf: Callable[[Tensor], Tensor]
    pdf: Callable[[Tensor, Tensor], Tensor]


NORMAL = Distribution("normal", "(1 + erf(z/sqrt(2)))/2", r"\Phi(z)", normal_cdf, normal_pdf)
LOGISTIC = Distribution("logistic", "1/(1 + exp(-z))", r"\frac{1}{1 + e^{-z}}", torch.sigmoid, logistic_pdf)
LAPLACE = Distribution(
    "laplace",
    "(1 + sign(z) (1 - exp(-|z|)))/2",
    r"\tfrac12\left(1 + \operatorname{sign}(z)\,(1 - e^{-|z|})\right)",
    laplace_cdf,
    laplace_pdf,
)
UNIFORM = Distribution(
    "uniform",
    "min(max((z + 1)/2, 0), 1)",
    r"\min(\max(\tfrac{z + 1}{2}, 0), 1)",
    uniform_cdf,
    uniform_pdf,
)
MISH = Distribution("mish", "tanh(log(1 + exp(z)))", r"\tanh(\log(1 + e^z))", mish_cdf, mish_pdf)
NORMAL_TANH = Distribution(
    "normal_tanh",
    "(1 + tanh(sqrt(2/pi) (z + 0.044715 z^3)))/2",
    r"\tfrac12\left(1 + \tanh\left(\sqrt{2/\pi}\,(z + 0.044715\,z^3)\right)\right)",
    normal_tanh_cdf,
    normal_tanh_pdf,
)

DISTRIBUTIONS = {d.name: d for d in (NORMAL, LOGISTIC, LAPLACE, UNIFORM, MISH, NORMAL_TANH)}


def distribution(name: str) -> Distribution:
    """The distribution of that name.

    Raises:
        ValueError: there is none; the message names the nearest.

    >>> distribution("logistic").formula
    '1/(1 + exp(-z))'
    """
    if name not in DISTRIBUTIONS:
        raise ValueError(unknown("cdf", name, DISTRIBUTIONS))
    return DISTRIBUTIONS[name]
