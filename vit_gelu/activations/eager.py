"""x·F((x − μ)/σ) and its gradients in eager code on a CPU, about as fast as single torch calls allow.

Two things cost time there: traffic with memory, and slow functions. So the work is done in pieces that stay
in a core's cache, and through those kernels of torch that are vectorised (a comparison that writes floats is,
one that writes booleans is not; nor is broadcasting from one element). Each call costs microseconds,
so the pieces must not be small either. Nothing here can be differentiated;
results equal the plain formulas to float rounding of x.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_gelu.activations.distributions import CUBE, TANH_SCALE

PIECE = 1 << 16  # elements: 256 KiB of float32
SHARED_PIECE = 1 << 23  # with several threads
aten = torch.ops.aten
_CUBE = CUBE / TANH_SCALE**2
HALF, ONE = torch.tensor(0.5), torch.tensor(1.0)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, others as they are: what formulas are evaluated in."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def widen(x: Tensor) -> Tensor:
    """The tensor in ``wide_dtype``."""
    return x.to(wide_dtype(x.dtype))


def as_is(v: Tensor, out: Tensor) -> Tensor:
    """v."""
    return v


def normal(v: Tensor, core: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """½ + erf(v)/2 for v = z/√2; in float64, rarely for speed and often for checks, erfc(−v)/2."""
    if v.dtype == torch.float64:
        return torch.erfc(-v, out=out).mul_(0.5)
    return torch.add(HALF, torch.erf(v, out=out), alpha=0.5, out=out)


def normal_slope(v: Tensor, core: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """exp(−v²), which leaves 1/√π to do."""
    return torch.mul(v, v, out=out).neg_().exp_().mul_(grad)


def logistic(v: Tensor, core: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """The sigmoid."""
    return torch.sigmoid(v, out=out)


def logistic_slope(v: Tensor, core: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """F − F²."""
    return aten.sigmoid_backward.grad_input(grad, cdf, grad_input=out)


def laplace_tail(v: Tensor, out: Tensor) -> Tensor:
    """exp(−|v|)."""
    return torch.abs(v, out=out).neg_().exp_()


def laplace(v: Tensor, tail: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """1 − tail/2 right of 0, else tail/2."""
    signed = aten.leaky_relu_backward.grad_input(tail, v, -1.0, False, grad_input=spare)  # −tail for v ≤ 0
    return torch.gt(v, v.new_zeros(v.shape[-1]), out=out).sub_(signed, alpha=0.5)


def laplace_slope(v: Tensor, tail: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """The tail, which leaves ½ to do."""
    return torch.mul(tail, grad, out=out)


def uniform(v: Tensor, core: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """½ + v inside, for v = z/2."""
    return torch.clamp(v, -0.5, 0.5, out=out).add_(0.5)


def uniform_slope(v: Tensor, core: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """1 for |v| < ½."""
    return aten.hardtanh_backward.grad_input(grad, v, -0.5, 0.5, grad_input=out)


def sigmoid(v: Tensor, out: Tensor) -> Tensor:
    """1/(1 + exp(−v))."""
    return torch.sigmoid(v, out=out)


def mish(v: Tensor, s: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """m/(1 − m) with m = s − s²/2, s the sigmoid: tanh(log(1 + exp(v))), with all digits in the left tail."""
    m = torch.addcmul(s, s, s, value=-0.5, out=out)
    return m.div_(torch.add(ONE, m, alpha=-1.0, out=spare))


def mish_slope(v: Tensor, s: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """s(1 − F²), s the sigmoid."""
    return aten.tanh_backward.grad_input(grad, cdf, grad_input=out).mul_(s)


def normal_tanh_argument(v: Tensor, out: Tensor) -> Tensor:
    """2u = v + cv³ for v = 2√(2/π)·z."""
    return torch.addcmul(v, v, torch.mul(v, v, out=out), value=_CUBE, out=out)


def normal_tanh(v: Tensor, u2: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """The sigmoid of 2u."""
    return torch.sigmoid(u2, out=out)


def normal_tanh_slope(v: Tensor, u2: Tensor, cdf: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """F(v)·F(−v)·(1 + 3cv²)."""
    slope = torch.sigmoid(u2.neg_(), out=u2).mul_(cdf).mul_(grad)
    return torch.addcmul(slope, slope, torch.mul(v, v, out=out), value=3.0 * _CUBE, out=out)


@dataclass(frozen=True)
class Kernels:
    """One distribution in terms of v = scale·z.

    Attributes:
        cdf: (v, core, out, spare) -> F, in ``out``.
        slope: (v, core, F, grad, out) -> grad·F′(v)/factor, in ``out``.
        core: (v, out) -> what both of them need.
        scale, factor: what the vectorised functions of torch leave to do.
        unit_backward: (grad, v) -> grad·(F + v·F′(v)), if torch has it in one, and fast.
    """

    cdf: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    core: Callable[[Tensor, Tensor], Tensor] = as_is
    scale: float = 1.0
    factor: float = 1.0
    unit_backward: Callable[..., Tensor] | None = None


KERNELS = {
    "normal": Kernels(normal, normal_slope, scale=math.sqrt(0.5), factor=1.0 / math.sqrt(math.pi)),
    "logistic": Kernels(logistic, logistic_slope, unit_backward=aten.silu_backward.grad_input),
    "laplace": Kernels(laplace, laplace_slope, laplace_tail, factor=0.5),
    "uniform": Kernels(uniform, uniform_slope, scale=0.5),
    "mish": Kernels(mish, mish_slope, sigmoid),
    "normal_tanh": Kernels(normal_tanh, normal_tanh_slope, normal_tanh_argument, scale=TANH_SCALE),
}


def has_memory(t: Tensor) -> bool:
    """False for what transforms of torch.func and tracers hand over: wrappers without memory."""
    try:
        t.data_ptr()
    except RuntimeError:
        return False
    return True


def _plain(t: Tensor) -> bool:
    contiguous = type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.is_contiguous()
    return contiguous and has_memory(t)


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used: plain contiguous tensors on a CPU, and tame parameters.

    μ must be finite, and σ not so small that (x − μ)/σ overflows.
    """
    parameters = [t for t in (mu, sigma) if isinstance(t, Tensor)]
    if not all(_plain(t) for t in (x, *parameters)) or any(t.dim() > 1 for t in parameters):
        return False
    # Numbers stay numbers: as tensors they would take longer to ask than a small activation to compute.
    finite = bool(mu.isfinite().all()) if isinstance(mu, Tensor) else math.isfinite(mu)
    wide = bool((sigma > 1e-20).all()) if isinstance(sigma, Tensor) else sigma > 1e-20
    return finite and wide


class Scratch:
    """Wide tensors that serve piece after piece: new ones would have to be fetched into the cache."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, like: Tensor) -> Tensor:
        kept = self.tensors.get(name)
        if kept is None or kept.shape != like.shape:
            dtype = torch.promote_types(like.dtype, torch.float32)
            kept = self.tensors[name] = torch.empty_like(like, dtype=dtype)
        return kept

    def widen(self, name: str, piece: Tensor) -> Tensor:
        """The piece itself, or its float32 copy."""
        half = piece.dtype in (torch.float16, torch.bfloat16)
        return self(name, piece).copy_(piece) if half else piece


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching pieces of contiguous tensors of one shape, as views (rows, channels)."""
    channels = max(1, tensors[0].shape[-1])
    # Threads meet after each operation on each piece, and wait if one is away: larger pieces, fewer waits.
    rows = max(1, (PIECE if torch.get_num_threads() == 1 else SHARED_PIECE) // channels)
    return zip(*(t.view(-1, channels).split(rows) for t in tensors), strict=True)


class Line:
    """v = slope·x + offset with slope = scale/σ: one of each per channel, or a slope alone, if μ is 0."""

    def __init__(self, x: Tensor, mu: Tensor | float, sigma: Tensor | float, scale: float) -> None:
        self.slope: Tensor | float = scale / sigma
        self.offset: Tensor | None = None
        if isinstance(mu, Tensor) or mu != 0.0:
            dtype = torch.promote_types(x.dtype, torch.float32)
            self.slope, self.offset = (
                torch.as_tensor(t, dtype=dtype).expand(max(1, x.shape[-1])).contiguous()
                for t in (self.slope, -mu * self.slope)
            )

    def __call__(self, wide: Tensor, out: Tensor) -> Tensor:
        if self.offset is not None and isinstance(self.slope, Tensor):
            return torch.addcmul(self.offset, wide, self.slope, out=out)
        return wide if self.slope == 1.0 else torch.mul(wide, self.slope, out=out)


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    kernels, scratch = KERNELS[name], Scratch()
    line = Line(x, mu, sigma, kernels.scale)
    y = torch.empty_like(x)
    for x_piece, y_piece in pieces(x, y):
        wide = scratch.widen("x", x_piece)
        v = line(wide, scratch("v", wide))
        core = kernels.core(v, scratch("core", wide))
        # Slow functions write where memory must be fetched: it arrives while they calculate.
        out = y_piece if wide is x_piece else scratch("y", wide)
        kernels.cdf(v, core, out, scratch("spare", wide)).mul_(wide)
        if out is not y_piece:
            y_piece.copy_(out)
    return y


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for x, μ and σ, the latter two None if numbers; ``grad`` contiguous as x is."""
    kernels, scratch = KERNELS[name], Scratch()
    line = Line(x, mu, sigma, kernels.scale)
    steepness = line.slope * kernels.factor
    unit_backward = kernels.unit_backward if line.offset is None else None
    over = None if isinstance(mu, Tensor) and mu.numel() == 1 else 0  # sums: of all elements, or of the rows
    grad_x = torch.empty_like(x)
    by_mu, by_sigma = [], []
    for grad_piece, x_piece, result in pieces(grad, x, grad_x):
        wide, weight = scratch.widen("x", x_piece), scratch.widen("grad", grad_piece)
        v = line(wide, scratch("v", wide))
        out = result if wide is x_piece else scratch("result", wide)
        if unit_backward:
            unit_backward(weight, v, grad_input=out)
        else:
            core, slope = kernels.core(v, scratch("core", wide)), scratch("slope", wide)
            kernels.cdf(v, core, out, scratch("spare", wide))
            kernels.slope(v, core, out, weight, slope).mul_(wide)  # −(grad·∂y/∂μ)/steepness
            out.mul_(weight)
            if isinstance(steepness, Tensor):
                out.addcmul_(slope, steepness)
            else:
                out.add_(slope, alpha=steepness)
            if isinstance(mu, Tensor):
                by_mu.append(slope.sum(over))
                by_sigma.append(slope.mul_(v).sum(over))
        if out is not result:
            result.copy_(out)
    if not isinstance(mu, Tensor) or not isinstance(sigma, Tensor):
        return grad_x, None, None
    grad_mu = torch.stack(by_mu).sum(0).view_as(mu) * (-kernels.scale * kernels.factor) / sigma
    grad_sigma = torch.stack(by_sigma).sum(0).view_as(sigma) * -kernels.factor / sigma
    return grad_x, grad_mu.to(mu.dtype), grad_sigma.to(sigma.dtype)
