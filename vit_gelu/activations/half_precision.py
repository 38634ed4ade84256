"""Φ for half-precision numbers in compiled code on a CPU, where erf would be a large part of a training step.

float16 and bfloat16 hold three digits; what is computed here, in float32, has five. The one exponential serves Φ
and its density both, so that GELU's backward pass needs one instead of two. Left of 0 the error is relative, as erf's
is not: the small negative values of GELU keep their digits.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations.compiled import compiled_for_cpu

# Φ(−u) = exp(−u²/2)·t·(c₀ + c₁t + … + c₅t⁵) with t = 1/(1 + pu), the form of Abramowitz & Stegun 26.2.17. Minimax fit
# of the relative error on [0, 14], exact at 0: 4.3e-6.
_P = 0.3072691473502696
_C = (
    0.12284068366110794,
    0.11845280649178788,
    0.1370615869707613,
    0.005389538692819908,
    0.19180311948119955,
    -0.0755477352976767,
)


def serves(x: Tensor) -> bool:
    """Whether this file should be used: half precision, compiled, on a CPU."""
    return x.dtype in (torch.bfloat16, torch.float16) and compiled_for_cpu(x)


def _bell(z: Tensor) -> Tensor:
    """exp(−z²/2): written alike in both passes, so that the compiler computes it once."""
    return torch.exp(-0.5 * z * z)


def _cdf(z: Tensor) -> Tensor:
    t = 1.0 / (1.0 + _P * z.abs())
    polynomial = _C[-1]
    for c in reversed(_C[:-1]):
        polynomial = polynomial * t + c
    tail = _bell(z) * t * polynomial
    return torch.where(z > 0, 1.0 - tail, tail)


class _NormalCDF(torch.autograd.Function):
    """Φ(z), differentiated as Φ and not as the fit. Without ``jvp``, which torch.compile does not trace."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return _cdf(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (_bell(z) * (1.0 / math.sqrt(2.0 * math.pi)))


def normal_cdf(z: Tensor) -> Tensor:
    """Φ(z) for float32 z that came from half precision; relative error below 5e-6 for z ≤ 0, absolute above.

    >>> print(f"{normal_cdf(torch.tensor(-4.0)).item():.4e}")  # 3.1671e-05
    3.1671e-05
    """
    return _NormalCDF.apply(z) if torch.is_grad_enabled() and z.requires_grad else _cdf(z)
