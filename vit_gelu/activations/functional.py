"""Activations as pure functions of tensors.

Each takes a floating tensor of any shape and returns one of the same shape and dtype (the gated ones halve
the last dimension). float16 and bfloat16 are evaluated in float32 and rounded once. Their derivatives are in
``derivatives``, under the same names.

For |x| ≤ 1e4 outputs and gradients are finite and right in every dtype (``relu_squared`` overflows float16
beyond 256, as its formula does); NaN gives NaN. Infinities are not promised their limits: like torch's GELU,
x·F(x) may give NaN there (0·∞).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.activations import bernoulli, eager, half_precision, one_pass
from vit_gelu.activations.autograd import CDFProduct, triton_masks
from vit_gelu.activations.compiled import compiled_for_cpu
from vit_gelu.activations.distributions import (
    LOGISTIC,
    MISH,
    NORMAL,
    NORMAL_TANH,
    Distribution,
    distribution,
)
from vit_gelu.activations.eager import widen
from vit_gelu.activations.formulas import cdf_product
from vit_gelu.activations.rectifiers import rectify

SIGMOID_SCALE = 1.702  # GELU paper §2


def gelu(x: Tensor) -> Tensor:
    """x·Φ(x), Φ the standard normal CDF, by erf: Hendrycks & Gimpel 2016 (arXiv:1606.08415), §2.

    This is torch's kernel. It forms Φ as 1 + erf, so its error is absolute (float rounding of x), not relative:
    below x ≈ −5 (float32) the tiny negative values lose their digits. On a CPU with AMX it is ``one_pass``, and in
    half precision, compiled for a CPU, ``half_precision``: they are faster, and keep them.

    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    own = half_precision.serves(x) or one_pass.serves(x) or one_pass.fits(x, 0.0, 1.0)
    return _cdf_product(x, 0.0, 1.0, NORMAL) if own else F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """x·(1 + tanh(√(2/π)(x + 0.044715 x³)))/2: GELU paper §2, its first approximation.

    One more member of ``cdf_linear_unit``, computed as x·s(2√(2/π)(x + 0.044715 x³)), s the logistic sigmoid. Not
    torch's kernel, which loses the digits of the left tail and is slow on CPUs.

    >>> gelu_tanh(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1588,  0.0000,  0.8412])
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        # Exported: other programs know this operator.
        return F.gelu(x, approximate="tanh")
    return _cdf_product(x, 0.0, 1.0, NORMAL_TANH)


def gelu_sigmoid(x: Tensor) -> Tensor:
    """x·s(1.702 x), s the logistic sigmoid: GELU paper §2, its second approximation ("quick GELU").

    >>> gelu_sigmoid(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1542,  0.0000,  0.8458])
    """
    return _cdf_product(x, 0.0, 1.0 / SIGMOID_SCALE, LOGISTIC)


def relu(x: Tensor) -> Tensor:
    """max(x, 0): Nair & Hinton 2010 (ICML).

    >>> relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0., 0., 1.])
    """
    return rectify(x, 0.0)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x for x > 0, else α(exp(x) − 1): Clevert et al. 2015 (arXiv:1511.07289).

    >>> elu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.6321,  0.0000,  1.0000])
    """
    return F.elu(x, alpha)


def silu(x: Tensor) -> Tensor:
    """x·s(x), s the logistic sigmoid: GELU paper §2; Elfwing et al. 2017 (arXiv:1702.03118).

    >>> silu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.2689,  0.0000,  0.7311])
    """
    return one_pass.compiled(x, "logistic") if one_pass.serves(x) else F.silu(x)


def cdf_linear_unit(
    x: Tensor, cdf: str = "normal", mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0
) -> Tensor:
    """x·F((x − μ)/σ) for a distribution function F: the family that GELU paper §2 suggests.

    ``normal`` is GELU, ``logistic`` SiLU, ``uniform`` with σ = 3 hard-swish; σ → 0 with μ = 0 is ReLU.

    Args:
        x: floating, any shape (..., c).
        cdf: one of ``DISTRIBUTIONS``.
        mu: location; a number, or a tensor of shape (1,) or (c,).
        sigma: scale (not the standard deviation, unless F is normal), positive; like ``mu``.

    Raises:
        ValueError: no such distribution.

    >>> x = torch.tensor([-1.0, 0.0, 1.0])
    >>> torch.allclose(cdf_linear_unit(x, "logistic"), silu(x))
    True
    """
    return _cdf_product(x, mu, sigma, distribution(cdf))


def _cdf_product(x: Tensor, mu: Tensor | float, sigma: Tensor | float, dist: Distribution) -> Tensor:
    if x.dim() == 0:  # parameters of shape (1,) would broadcast it
        return _cdf_product(x[None], mu, sigma, dist)[0]
    if one_pass.serves(x, mu, sigma):
        return one_pass.compiled(x, dist.name, mu, sigma)
    tensors = [t for t in (x, mu, sigma) if isinstance(t, Tensor)]
    if torch.compiler.is_compiling() or not all(eager.has_memory(t) for t in tensors):
        return cdf_product(x, mu, sigma, dist)
    if isinstance(mu, Tensor) or isinstance(sigma, Tensor):
        dtype = eager.wide_dtype(x.dtype)
        mu = torch.as_tensor(mu, dtype=dtype, device=x.device)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device)
        if mu.shape != sigma.shape:
            mu, sigma = (t.contiguous() for t in torch.broadcast_tensors(mu, sigma))
    return CDFProduct.apply(x, mu, sigma, dist)


def gelu_learnable(x: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """x·Φ((x − μ)/σ), σ = exp(log σ): GELU paper §2, "we could use μ and σ as learnable parameters".

    Args:
        x: floating, shape (..., c).
        mu, log_sigma: shape (1,) or (c,).

    >>> gelu_learnable(torch.tensor([-1.0, 0.0, 1.0]), torch.zeros(1), torch.zeros(1))
    tensor([-0.1587,  0.0000,  0.8413])
    """
    return cdf_linear_unit(x, "normal", mu, widen(log_sigma).exp())


def laplace_lu(x: Tensor, mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0) -> Tensor:
    """x·F((x − μ)/σ) with F the Laplace CDF; see ``cdf_linear_unit``.

    >>> laplace_lu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1839,  0.0000,  0.8161])
    """
    return cdf_linear_unit(x, "laplace", mu, sigma)


def gelu_stochastic(x: Tensor) -> Tensor:
    """x·m with m ~ Bernoulli(Φ(x)), drawn anew at each call: the stochastic 0–1 map of GELU paper §2.

    Its expectation is GELU. The gradient is m; the mask counts as constant. Draws come from torch's global
    generator of the device, with 24 bits or more; only the mask is kept for the backward pass, or the result, which
    the next layer keeps as well (``bernoulli``, ``triton_mask``).

    >>> _ = torch.manual_seed(0)
    >>> gelu_stochastic(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 9.0]))
    tensor([-1., -1., -0.,  1.,  1.,  9.])
    """
    if compiled_for_cpu(x):
        return bernoulli.hashed(x)
    plain = not torch.compiler.is_compiling() and x.dim() > 0 and eager.has_memory(x)
    if plain and (masks := triton_masks(x)) is not None:
        return masks.masked(x)
    if plain and eager.fits(x, 0.0, 1.0):
        return bernoulli.Masked.apply(x, bernoulli.draw(x.detach()))
    return x * bernoulli.formula(x.detach())


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x for x > 0, else slope·x: Maas et al. 2013 (ICML workshop).

    >>> leaky_relu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.0100,  0.0000,  1.0000])
    """
    return rectify(x, negative_slope)


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """x for x > 0, else a·x with a learned: He et al. 2015 (arXiv:1502.01852), Eq. 1.

    Args:
        x: floating, shape (..., c).
        weight: a, shape (1,), or (c,) for one per channel of the last dimension (torch's own counts
            channels along dimension 1, which would be a ViT's tokens).

    >>> prelu(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.25]))
    tensor([-0.2500,  0.0000,  1.0000])
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):  # it would round x to half precision
            return prelu(x, weight)
    weight = weight.to(x.dtype)
    if weight.numel() == 1:
        return F.prelu(x, weight)
    return F.prelu(x.reshape(-1, x.shape[-1]), weight).reshape(x.shape)


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)²: So et al. 2021, "Primer" (arXiv:2109.08668).

    >>> relu_squared(torch.tensor([-1.0, 0.0, 3.0]))
    tensor([0., 0., 9.])
    """
    if one_pass.serves(x):
        return one_pass.compiled(x, "squared")
    positive = rectify(x, 0.0)
    return positive * positive  # not .square(), which autocast turns into float32


def mish(x: Tensor) -> Tensor:
    """x·tanh(log(1 + exp(x))): Misra 2019 (arXiv:1908.08681).

    tanh(log(1 + exp(x))) rises from 0 to 1 like a CDF, so this is one more member of ``cdf_linear_unit``. Not
    torch's kernel: its double backward is NaN from x ≈ 45 on, and it is slow on CPUs.

    >>> mish(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.3034,  0.0000,  0.8651])
    """
    return _cdf_product(x, 0.0, 1.0, MISH)


def hardswish(x: Tensor) -> Tensor:
    """x·min(max(x + 3, 0), 6)/6: Howard et al. 2019, MobileNetV3 (arXiv:1905.02244), §5.2.

    >>> hardswish(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([-0., 0., 3.])
    """
    return one_pass.compiled(x, "uniform", 0.0, 3.0) if one_pass.serves(x) else F.hardswish(x)


SOFTPLUS_THRESHOLD = 40.0  # torch's 20 is 2e-9 off there, which float64 sees


def softplus(x: Tensor, beta: float = 1.0) -> Tensor:
    """log(1 + exp(βx))/β: Dugas et al. 2000 (NIPS).

    >>> softplus(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([0.3133, 0.6931, 1.3133])
    """
    return F.softplus(x, beta, SOFTPLUS_THRESHOLD).to(x.dtype)


def tanh(x: Tensor) -> Tensor:
    """tanh(x).

    >>> tanh(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.7616,  0.0000,  0.7616])
    """
    return torch.tanh(x)


def identity(x: Tensor) -> Tensor:
    """x: what is left of the network without its nonlinearity.

    >>> identity(torch.tensor([-1.0, 2.0]))
    tensor([-1.,  2.])
    """
    return x
