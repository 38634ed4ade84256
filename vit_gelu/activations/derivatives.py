"""First derivatives of the activations in ``functional``, under the same names, in closed form.

Each takes what its function takes and returns dy/dx elementwise, in float32 or wider. They are differentiable
themselves (the double backward of our own autograd functions goes through them) and finite for |x| ≤ 1e4.
At a kink the value is the one that torch's backward uses: the limit from the left.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.activations.distributions import distribution
from vit_gelu.activations.eager import widen
from vit_gelu.activations.formulas import cdf_partials

SIGMOID_SCALE = 1.702


def gelu(x: Tensor) -> Tensor:
    """Φ(x) + x·φ(x).

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0833,  0.5000,  1.0833])
    """
    return cdf_linear_unit(x, "normal")


def gelu_tanh(x: Tensor) -> Tensor:
    """(1 + tanh u)/2 + x·(1 − tanh² u)·u′/2 with u = √(2/π)(x + 0.044715 x³).

    >>> gelu_tanh(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0830,  0.5000,  1.0830])
    """
    return cdf_linear_unit(x, "normal_tanh")


def gelu_sigmoid(x: Tensor) -> Tensor:
    """s(ax) + ax·s(ax)·s(−ax) with a = 1.702, s the sigmoid.

    >>> gelu_sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0678,  0.5000,  1.0678])
    """
    return silu(SIGMOID_SCALE * widen(x))


def relu(x: Tensor) -> Tensor:
    """1 for x > 0, else 0.

    >>> relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0., 0., 1.])
    """
    return (x > 0).to(widen(x).dtype)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """1 for x > 0, else α·exp(x).

    >>> elu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3679, 1.0000, 1.0000])
    """
    wide = widen(x)
    return torch.where(x > 0, 1.0, alpha * torch.exp(wide.clamp(max=0.0)))


def silu(x: Tensor) -> Tensor:
    """s(x) + x·s(x)·s(−x), s the sigmoid.

    >>> silu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0723, 0.5000, 0.9277])
    """
    return cdf_linear_unit(x, "logistic")


def cdf_linear_unit(
    x: Tensor, cdf: str = "normal", mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0
) -> Tensor:
    """F(z) + x·F′(z)/σ with z = (x − μ)/σ.

    >>> cdf_linear_unit(torch.tensor([-1.0, 0.0, 1.0]), "uniform")
    tensor([0.0000, 0.5000, 1.0000])
    """
    return cdf_partials(x, mu, sigma, distribution(cdf))[0]


def gelu_learnable(x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Φ(z) + x·φ(z)/σ with z = (x − μ)/σ, σ = exp(log σ).

    >>> gelu_learnable(torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(1), torch.zeros(1))
    tensor([-0.0833,  0.5000,  1.0833])
    """
    return cdf_linear_unit(x, "normal", mu, log_sigma.exp())


def laplace_lu(x: Tensor, mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0) -> Tensor:
    """F(z) + x·F′(z)/σ with F the Laplace CDF.

    >>> laplace_lu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return cdf_linear_unit(x, "laplace", mu, sigma)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """1 for x > 0, else the slope.

    >>> leaky_relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0100, 0.0100, 1.0000])
    """
    return torch.where(x > 0, 1.0, negative_slope * torch.ones_like(widen(x)))


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """1 for x > 0, else a.

    >>> prelu(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.25]))
    tensor([0.2500, 0.2500, 1.0000])
    """
    return torch.where(x > 0, 1.0, weight).to(widen(x).dtype)


def relu_squared(x: Tensor) -> Tensor:
    """2·max(x, 0).

    >>> relu_squared(torch.tensor([-1.0, 0.0, 3.0]))
    tensor([0., 0., 6.])
    """
    return 2.0 * F.relu(widen(x))


def mish(x: Tensor) -> Tensor:
    """t + x·s(x)·(1 − t²) with t = tanh(log(1 + exp(x))), s the sigmoid.

    >>> mish(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.0592, 0.6000, 1.0490])
    """
    return cdf_linear_unit(x, "mish")


def hardswish(x: Tensor) -> Tensor:
    """0 up to −3, 1 from 3 on, (2x + 3)/6 between.

    >>> hardswish(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    wide = widen(x)
    inside = (2.0 * wide.clamp(-3.0, 3.0) + 3.0) / 6.0
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, inside))


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """s(βx), s the sigmoid.

    >>> softplus(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.2689, 0.5000, 0.7311])
    """
    return torch.sigmoid(beta * widen(x))


def tanh(x: Tensor) -> Tensor:
    """1 − tanh²(x).

    >>> tanh(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.4200, 1.0000, 0.4200])
    """
    return 1.0 - torch.tanh(widen(x)).square()


def identity(x: Tensor) -> Tensor:
    """1.

    >>> identity(torch.tensor([-1.0, 2.0]))
    tensor([1., 1.])
    """
    return torch.ones_like(widen(x))
