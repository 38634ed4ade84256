"""Oracles: every activation in arbitrary precision, and the devices to test on."""

from collections.abc import Callable

import mpmath as mp
import pytest
import torch

mp.mp.dps = 60


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request) -> str:
    return request.param


def normal(z):
    return mp.erfc(-z / mp.sqrt(2)) / 2


def logistic(z):
    return 1 / (1 + mp.exp(-z))


def laplace(z):
    return mp.exp(z) / 2 if z < 0 else 1 - mp.exp(-z) / 2


def uniform(z):
    return min(max((z + 1) / 2, mp.mpf(0)), mp.mpf(1))


def mish(z):
    return mp.tanh(mp.log1p(mp.exp(z)))


def normal_tanh(z):
    return (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (z + mp.mpf("0.044715") * z**3))) / 2


CDFS = {
    "normal": normal,
    "logistic": logistic,
    "laplace": laplace,
    "uniform": uniform,
    "mish": mish,
    "normal_tanh": normal_tanh,
}

# Name -> (function, points where its slope jumps).
ORACLES: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "gelu": (lambda x: x * normal(x), ()),
    "gelu_tanh": (lambda x: x * normal_tanh(x), ()),
    "gelu_sigmoid": (lambda x: x * logistic(mp.mpf("1.702") * x), ()),
    "relu": (lambda x: max(x, mp.mpf(0)), (0.0,)),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), ()),
    "silu": (lambda x: x * logistic(x), ()),
    "gelu_learnable": (lambda x: x * normal(x), ()),
    "gelu_stochastic": (lambda x: x * normal(x), ()),  # in evaluation
    "laplace_lu": (lambda x: x * laplace(x), ()),
    "leaky_relu": (lambda x: x if x > 0 else mp.mpf("0.01") * x, (0.0,)),
    "prelu": (lambda x: x if x > 0 else x / 4, (0.0,)),
    "relu_squared": (lambda x: max(x, mp.mpf(0)) ** 2, ()),
    "mish": (lambda x: x * mish(x), ()),
    "hardswish": (lambda x: x * min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6, (-3.0, 3.0)),
    "softplus": (lambda x: mp.log1p(mp.exp(x)), ()),
    "tanh": (mp.tanh, ()),
    "identity": (lambda x: x, ()),
}


class Oracle:
    """y(x) and dy/dx of a name, as floats correct to the last bit of float64."""

    def __init__(self, function: Callable, kinks: tuple[float, ...]) -> None:
        self.function, self.kinks = function, kinks

    def value(self, x: float) -> float:
        return float(self.function(mp.mpf(x)))

    def slope(self, x: float) -> float:
        step = mp.mpf(10) ** -25
        return float((self.function(x + step) - self.function(x - step)) / (2 * step))


@pytest.fixture
def oracle() -> Callable[[str], Oracle]:
    return lambda name: Oracle(*ORACLES[name])


@pytest.fixture
def cdf_oracle() -> Callable[..., Oracle]:
    """The member of the CDF family with this F, μ and σ."""

    def make(cdf: str, mu: float, sigma: float) -> Oracle:
        kinks = (mu - sigma, mu + sigma) if cdf == "uniform" else ()
        return Oracle(lambda x: x * CDFS[cdf]((x - mp.mpf(mu)) / mp.mpf(sigma)), kinks)

    return make
