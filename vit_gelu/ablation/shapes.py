"""Values of the known activations in closed form, for pictures; no network is needed to draw one."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

Array = NDArray[np.float64]


def _laplace(x: Array, mu: float = 0.0, sigma: float = 1.0) -> Array:
    z = (x - mu) / sigma
    return x * np.where(z < 0, 0.5 * np.exp(-np.abs(z)), 1 - 0.5 * np.exp(-np.abs(z)))


# Options are those of the activations; one that learns its shape has none that could be drawn beforehand.
_SHAPES: dict[str, Callable[..., Array]] = {
    "gelu": lambda x: x * ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_sigmoid": lambda x: x * expit(1.702 * x),
    "gelu_stochastic": lambda x: x * ndtr(x),
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * expit(x),
    "laplace_lu": lambda x, mu=0.0, sigma=1.0: _laplace(x, mu, sigma),
    "leaky_relu": lambda x, negative_slope=0.01: np.where(x > 0, x, negative_slope * x),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "softplus": lambda x, beta=1.0: np.logaddexp(0, beta * x) / beta,
    "tanh": np.tanh,
    "identity": lambda x: x,
}


def shape(name: str, options: dict[str, Any] | None, x: Array) -> Array | None:
    """Values of an activation, float64, shape of ``x``; None for one that is no fixed function of a number.

    Args:
        name: as in a record.
        options: its ``activation_kwargs``.
        x: float64, any shape.
    """
    if name not in _SHAPES:
        return None
    try:
        fixed = {k: v for k, v in (options or {}).items() if (k, v) != ("learnable", False)}
        return np.asarray(_SHAPES[name](x, **fixed), dtype=np.float64)
    except TypeError:  # an option that this table does not know changes the shape
        return None
