"""Φ for half-precision numbers in compiled code, where erf would be a large part of a training step.

float16 and bfloat16 hold three digits; what is computed here, in float32, has four or more. The one exponential serves
Φ and its density both, so that GELU's backward pass needs one instead of two. Left of 0 the error is relative, as
erf's is not: the small negative values of GELU keep their digits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations.compiled import compiled_for_cpu

# Φ(−u) = exp(−u²/2)·t·(c₀ + c₁t + … + c₅t⁵) with t = 1/(1 + pu), the form of Abramowitz & Stegun 26.2.17. Minimax fit
# of the relative error on [0, 14], exact at 0: 4.3e-6.
P = 0.3072691473502696
C = (
    0.12284068366110794,
    0.11845280649178788,
    0.1370615869707613,
    0.005389538692819908,
    0.19180311948119955,
    -0.0755477352976767,
)
_PEAK = 1.0 / math.sqrt(2.0 * math.pi)


def serves(x: Tensor) -> bool:
    """Whether this file should be used: half precision, compiled, on a CPU."""
    return x.dtype in (torch.bfloat16, torch.float16) and compiled_for_cpu(x)


# exp(s) on [−104/64, 0], minimax fit of the relative error, exact at 0: 2.5e-6 after the 64th power. torch's own
# vectorised exponential is a call, around which all registers are saved.
_E = (
    1.0,
    0.9999983546945589,
    0.4999771361974503,
    0.16655532632141384,
    0.04140182897458518,
    0.007985771970597938,
    0.0011271584859332828,
    8.723443594516045e-05,
)


def _bell(z: Tensor) -> Tensor:
    """exp(−z²/2) = exp(−z²/128)⁶⁴, 0 where float32 has no smaller number; relative error below 7e-6 for |z| < 5.

    Written alike in both passes, so that the compiler computes it once.
    """
    s = torch.clamp_min(z * z * (-0.5 / 64), -104 / 64)
    return _polynomial(_E, s).pow(8).pow(8)  # power * power would be traced as two of them, and 64 in the end


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Any:
    """Σ cₖxᵏ by Horner's rule."""
    value: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def _cdf(z: Tensor, bell: Tensor) -> Tensor:
    t = 1.0 / (1.0 + P * z.abs())
    tail = bell * t * _polynomial(C, t)
    return torch.where(z > 0, 1.0 - tail, tail)


class _NormalCDF(torch.autograd.Function):
    """Φ(z), differentiated as Φ and not as the fit. Without ``jvp``, which torch.compile does not trace."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return _cdf(z, _bell(z))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (_bell(z) * _PEAK)


def normal_cdf(z: Tensor) -> Tensor:
    """Φ(z) for float32 z that came from half precision.

    Relative error below 1.2e-5 for −5 < z ≤ 0, and 5e-5 left of it; absolute above.

    >>> print(f"{normal_cdf(torch.tensor(-4.0)).item():.4e}")  # 3.1671e-05
    3.1671e-05
    """
    return _NormalCDF.apply(z) if torch.is_grad_enabled() and z.requires_grad else _cdf(z, _bell(z))


def normal_cdf_and_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """Φ(z) and φ(z) with one exponential, not to be differentiated further; errors as ``normal_cdf``'s.

    >>> [f"{v.item():.4f}" for v in normal_cdf_and_pdf(torch.tensor(1.0))]
    ['0.8413', '0.2420']
    """
    bell = _bell(z)
    return _cdf(z, bell), bell * _PEAK
