"""x·F((x − μ)/σ) and its gradients in eager code on a CPU, about as fast as single torch calls allow.

Two things cost time there: memory that is new for every operation, and slow transcendental functions. So the
work is done in place, in pieces (small ones that stay in the cache, if there is one thread), and through
those kernels of torch that are fast (exp2 instead of exp). Nothing here can be differentiated; results equal
the plain formulas to float rounding of x.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.activations import distributions

PIECE = 1 << 18  # elements: 1 MiB of float32
LOG2_E = math.log2(math.e)


def widen(x: Tensor) -> Tensor:
    """float32 for half-precision tensors, others as they are: what formulas are evaluated in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normal(z: Tensor) -> Tensor:
    """Φ(z) = gelu(z)/z: torch's GELU has the fastest erf. 0/0 is ½; so is NaN, which x brings back."""
    if z.dtype == torch.float64:  # rarely for speed, often for checks
        return distributions.normal_cdf(z)
    z = z.clamp(-1e30, 1e30)  # gelu(−∞) is NaN, and ½ is not Φ(−∞)
    return F.gelu(z).div_(z).nan_to_num_(nan=0.5)


def normal_with_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """Φ(z) and φ(z)."""
    log2_peak = z.new_full((), -0.5 * math.log2(2.0 * math.pi))
    return normal(z), torch.addcmul(log2_peak, z, z, value=-0.5 * LOG2_E).exp2_()


def logistic_with_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """s(z) and s(z) − s(z)²."""
    cdf = torch.sigmoid(z)
    return cdf, torch.addcmul(cdf, cdf, cdf, value=-1.0)


def laplace(z: Tensor) -> Tensor:
    """½ + sign(z)(½ − exp(−|z|)/2)."""
    return laplace_with_pdf(z)[0]


def laplace_with_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """½ + sign(z)(½ − exp(−|z|)/2) and exp(−|z|)/2."""
    pdf = z.abs().mul_(-LOG2_E).sub_(1.0).exp2_()
    return torch.rsub(pdf, 0.5).copysign_(z).add_(0.5), pdf


def uniform_with_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """The share of [−1, 1] left of z, and ½ inside."""
    inside = torch.ops.aten.hardtanh_backward(torch.full_like(z, 0.5), z, -1.0, 1.0)
    return distributions.uniform_cdf(z), inside


def mish(z: Tensor) -> Tensor:
    """p/(p + 2) with p = w(w + 2), w = exp(z)."""
    return mish_with_pdf(z)[0]


def mish_with_pdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """p/(p + 2) and 4w(1 + w)/(p + 2)² with p = w(w + 2), w = exp(z)."""
    w = z.clamp(max=40.0).mul_(LOG2_E).exp2_()
    p = torch.addcmul(w, w, w, value=0.5).mul_(2.0)
    half = 2.0 / (p + 2.0)
    return p.mul_(half).mul_(0.5), torch.addcmul(w, w, w).mul_(half).mul_(half)


@dataclass(frozen=True)
class Kernels:
    """One distribution's functions of z: F, (F, F′), and, where torch has them, z·F(z) and its backward."""

    cdf: Callable[[Tensor], Tensor]
    cdf_with_pdf: Callable[[Tensor], tuple[Tensor, Tensor]]
    unit: Callable[[Tensor], Tensor] | None = None
    unit_backward: Callable[[Tensor, Tensor], Tensor] | None = None


KERNELS = {
    "normal": Kernels(normal, normal_with_pdf, F.gelu, torch.ops.aten.gelu_backward),
    "logistic": Kernels(torch.sigmoid, logistic_with_pdf, F.silu, torch.ops.aten.silu_backward),
    "laplace": Kernels(laplace, laplace_with_pdf),
    "uniform": Kernels(distributions.uniform_cdf, uniform_with_pdf),
    "mish": Kernels(mish, mish_with_pdf),
}


def has_memory(t: Tensor) -> bool:
    """False for what transforms of torch.func and tracers hand over: wrappers without memory."""
    try:
        t.data_ptr()
    except RuntimeError:
        return False
    return True


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used: plain contiguous tensors on a CPU, and tame parameters.

    μ must be finite, and σ not so small that (x − μ)/σ overflows.
    """
    mu, sigma = torch.as_tensor(mu), torch.as_tensor(sigma)
    plain = all(
        type(t) in (Tensor, torch.nn.Parameter)
        and t.device.type == "cpu"
        and has_memory(t)
        and t.is_contiguous()
        for t in (x, mu, sigma)
    )
    return plain and max(mu.dim(), sigma.dim()) <= 1 and bool((mu.isfinite() & (sigma > 1e-20)).all())


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching pieces of contiguous tensors of one shape, as views (rows, channels)."""
    channels = max(1, tensors[0].shape[-1]) if tensors[0].dim() else 1
    # Threads meet after each operation on each piece, and wait if one is away: larger pieces, fewer waits.
    size = PIECE if torch.get_num_threads() == 1 else 32 * PIECE
    rows = max(1, size // channels)
    return zip(*(t.view(-1, channels).split(rows) for t in tensors), strict=True)


def _standardise(wide: Tensor, mu: Tensor | float, sigma: Tensor | float) -> Tensor:
    if isinstance(mu, Tensor) and isinstance(sigma, Tensor):
        return torch.addcmul(-mu / sigma, wide, 1.0 / sigma)
    z = wide if mu == 0.0 else wide - mu
    return z if sigma == 1.0 else z / sigma


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    kernels = KERNELS[name]
    y = torch.empty_like(x)
    for x_piece, out in _pieces(x, y):
        wide = widen(x_piece)
        z = _standardise(wide, mu, sigma)
        if kernels.unit and not isinstance(mu, Tensor) and mu == 0.0:
            torch.mul(kernels.unit(z), sigma, out=out)
        else:
            torch.mul(kernels.cdf(z), wide, out=out)
    return y


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for x, μ and σ, the latter two None if numbers; ``grad`` contiguous as x is."""
    kernels = KERNELS[name]
    grad_x = torch.empty_like(x)
    by_mu, by_sigma = [], []
    for grad_piece, x_piece, out in _pieces(grad, x, grad_x):
        wide = widen(x_piece)
        z = _standardise(wide, mu, sigma)
        if kernels.unit_backward and not isinstance(mu, Tensor) and mu == 0.0:
            out.copy_(kernels.unit_backward(widen(grad_piece), z))
            continue
        cdf, pdf = kernels.cdf_with_pdf(z)
        steep = pdf.mul_(wide)  # x·F′(z) = −σ·∂y/∂μ
        if isinstance(mu, Tensor) and isinstance(sigma, Tensor):
            torch.mul(cdf.addcmul_(steep, 1.0 / sigma), grad_piece, out=out)
            steep.mul_(grad_piece)
            by_mu.append(steep.sum_to_size(mu.shape))
            by_sigma.append(steep.mul_(z).sum_to_size(sigma.shape))
        else:
            torch.mul(cdf.add_(steep.div_(sigma)), grad_piece, out=out)
    if not isinstance(mu, Tensor) or not isinstance(sigma, Tensor):
        return grad_x, None, None
    grad_mu, grad_sigma = (-torch.stack(sums).sum(0) / sigma for sums in (by_mu, by_sigma))
    return grad_x, grad_mu.to(mu.dtype), grad_sigma.to(sigma.dtype)
