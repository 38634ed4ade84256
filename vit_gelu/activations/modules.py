"""Activations as modules: those that torch does not have, or that carry parameters or noise."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from vit_gelu.activations import functional
from vit_gelu.activations.distributions import distribution


def real(name: str, value: Any, *, positive: bool = False) -> float:
    """``value`` as a finite float.

    Raises:
        ValueError: it is no finite number, or not positive where it must be.

    >>> real("sigma", 2, positive=True)
    2.0
    """
    rule = "a positive number" if positive else "a finite number"
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be {rule}")
    if positive and value <= 0:
        raise ValueError(f"{name}={value!r}: must be {rule}")
    return float(value)


class ShapedActivation(nn.Module):
    """An activation with parameters of its own, which weight decay must leave alone.

    Each parameter holds one number per layer, or with ``num_channels`` one per channel (last dimension), and
    is marked ``no_weight_decay = True``.
    """

    def _shape_parameter(self, value: float, num_channels: int | None) -> nn.Parameter:
        if num_channels is not None and (type(num_channels) is not int or num_channels < 1):
            raise ValueError(f"num_channels={num_channels!r}: must be a positive integer, or null")
        # One element, not a scalar: sharded training refuses zero-dimensional parameters.
        parameter = nn.Parameter(torch.full((num_channels or 1,), value))
        parameter.no_weight_decay = True  # type: ignore[attr-defined]
        return parameter

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for parameter in self.parameters(recurse=False):  # copy.deepcopy drops attributes of parameters
            parameter.no_weight_decay = True  # type: ignore[attr-defined]


class GELU(nn.GELU):
    """``functional.gelu``: torch's module in a form that compiles to faster code on a CPU."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(input)


class GELUTanh(nn.GELU):
    """``functional.gelu_tanh``: torch's module with an exact left tail, and faster on a CPU."""

    def __init__(self) -> None:
        super().__init__("tanh")

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu_tanh(input)


class GELUSigmoid(nn.Module):
    """``functional.gelu_sigmoid``."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu_sigmoid(x)


class Mish(nn.Module):
    """``functional.mish``."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.mish(x)


class ReLUSquared(nn.Module):
    """``functional.relu_squared``."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_squared(x)


class ReLU(nn.ReLU):
    """``functional.relu``: torch's module in a form that compiles to faster code on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(input)


class LeakyReLU(nn.LeakyReLU):
    """``functional.leaky_relu``: torch's module in a form that compiles to faster code on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.leaky_relu(input, self.negative_slope)


class SiLU(nn.SiLU):
    """``functional.silu``: torch's module in a form that compiles to faster code on some CPUs."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return functional.silu(input)


class Hardswish(nn.Hardswish):
    """``functional.hardswish``: torch's module in a form that compiles to faster code on some CPUs."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return functional.hardswish(input)


class Softplus(nn.Module):
    """``functional.softplus``.

    Args:
        beta: sharpness, positive.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = real("beta", beta, positive=True)

    def forward(self, x: Tensor) -> Tensor:
        return functional.softplus(x, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


class PReLU(ShapedActivation):
    """``functional.prelu``; parameter ``weight``.

    Args:
        init: slope to start from.
        num_channels: learn one slope per channel of the last dimension; None: one per layer.
    """

    def __init__(self, init: float = 0.25, num_channels: int | None = None) -> None:
        super().__init__()
        self.weight = self._shape_parameter(real("init", init), num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_channels={self.weight.numel()}"


class CDFLinearUnit(ShapedActivation):
    """x·F((x − μ)/σ), ``functional.cdf_linear_unit``; parameters ``mu`` and ``log_sigma`` if learnable.

    Args:
        cdf: normal (GELU), normal_tanh (its approximation by tanh), logistic (SiLU), laplace, uniform (hard-swish, with
            sigma 3) or mish.
        mu: location; where learning starts, if learnable.
        sigma: scale, positive; likewise. σ is learned as exp(log σ), so it stays positive.
        learnable: learn μ and σ.
        num_channels: learn one pair per channel of the last dimension; None: one pair per layer.

    Raises:
        ValueError: unknown cdf, sigma not positive, or num_channels without learnable.

    >>> CDFLinearUnit("logistic")(torch.tensor([1.0]))
    tensor([0.7311])
    >>> sorted(CDFLinearUnit(learnable=True).state_dict())
    ['log_sigma', 'mu']
    """

    def __init__(
        self,
        cdf: str = "normal",
        mu: float = 0.0,
        sigma: float = 1.0,
        learnable: bool = False,
        num_channels: int | None = None,
    ) -> None:
        super().__init__()
        distribution(cdf)
        mu, sigma = real("mu", mu), real("sigma", sigma, positive=True)
        self.cdf, self.learnable = cdf, learnable
        if learnable:
            self.mu = self._shape_parameter(mu, num_channels)
            self.log_sigma = self._shape_parameter(math.log(sigma), num_channels)
        elif num_channels is not None:
            raise ValueError(f"num_channels={num_channels!r}: needs learnable=true")
        else:
            self.fixed_mu, self.fixed_sigma = mu, sigma

    def forward(self, x: Tensor) -> Tensor:
        if self.learnable:
            return functional.cdf_linear_unit(x, self.cdf, self.mu, functional.widen(self.log_sigma).exp())
        return functional.cdf_linear_unit(x, self.cdf, self.fixed_mu, self.fixed_sigma)

    def extra_repr(self) -> str:
        if self.learnable:
            return f"cdf={self.cdf!r}, learnable=True, num_channels={self.mu.numel()}"
        return f"cdf={self.cdf!r}, mu={self.fixed_mu}, sigma={self.fixed_sigma}"


class GELULearnable(CDFLinearUnit):
    """x·Φ((x − μ)/σ) with learned ``mu`` and ``log_sigma``; starts as GELU.

    Args:
        num_channels: learn one pair per channel of the last dimension; None: one pair per layer.
    """

    def __init__(self, num_channels: int | None = None) -> None:
        super().__init__("normal", learnable=True, num_channels=num_channels)


class GELUStochastic(nn.Module):
    """x·Bernoulli(Φ(x)) in training (``functional.gelu_stochastic``), exact GELU in evaluation."""

    stochastic = True

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu_stochastic(x) if self.training else functional.gelu(x)


class GatedLinearUnit(nn.Module):
    """inner(x₁) ⊗ x₂ for the halves x₁, x₂ of the last dimension: Shazeer 2020 (arXiv:2002.05202), Eq. 5.

    One linear layer in front makes both halves; the first is the gate (xW), the second the value (xV).

    Args:
        inner: the gate's activation.

    Shapes: (..., 2h) -> (..., h).

    Raises:
        ValueError: in ``forward``, the last dimension is odd.

    >>> GatedLinearUnit(nn.ReLU())(torch.tensor([-1.0, 2.0, 10.0, 20.0]))
    tensor([ 0., 40.])
    """

    gated = True

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise ValueError(f"a gated activation halves the last dimension, which is odd: {x.shape[-1]}")
        gate, value = x.chunk(2, dim=-1)
        return self.inner(gate) * value
