"""Activations as operators of torch, by the C++ file of the same name, for processors with AMX.

One pass over memory, and past the caches where the result is large, which code that torch.compile makes cannot ask for.
"""

import torch
from torch import Tensor

from vit_gelu.cpu_kernels import build

# As the C++ file numbers them: distributions F of x·F((x − μ)/σ), max(x, 0)², and the rectifier of slope μ left of 0.
KINDS = ("normal", "normal_tanh", "logistic", "laplace", "uniform", "mish", "squared", "rectifier")
DTYPES = (torch.bfloat16, torch.float32)
LEAST = 1 << 16  # numbers from which a call of its own pays


def _here() -> bool:
    return build.kind_here() == "amx" and build.library() is not None


_here._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler's decorator would import dynamo now


def serves(x: Tensor) -> bool:
    """Whether this file may be used: of ``DTYPES``, contiguous and large, on a CPU with AMX and a C++ compiler."""
    return (
        x.dtype in DTYPES and x.device.type == "cpu" and x.numel() >= LEAST and x.is_contiguous() and _here()
    )


def _run(
    x: Tensor, grad: Tensor | None, kind: str, mu: float, sigma: float, sums: Tensor | None = None
) -> Tensor:
    own = build.library() if _here() else None
    if own is None or x.dtype not in DTYPES:
        raise RuntimeError(
            f"our own activations on a CPU take bfloat16 or float32 and a CPU with AMX, not {x.dtype} here"
        )
    x = x.contiguous()
    grad = None if grad is None else grad.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    inputs = x.data_ptr(), 0 if grad is None else grad.data_ptr(), x.numel()
    outputs = out.data_ptr(), 0 if sums is None else sums.data_ptr()
    wide = x.dtype == torch.float32
    own.activation(KINDS.index(kind), wide, mu, sigma, *inputs, *outputs, torch.get_num_threads())
    return out


def _value(x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _run(x, None, kind, mu, sigma)


def _backward(grad: Tensor, x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _run(x, grad, kind, mu, sigma)


def _learned_value(x: Tensor, kind: str, mu: Tensor, sigma: Tensor) -> Tensor:
    return _run(x, None, kind, mu.item(), sigma.item())


def _learned_backward(
    grad: Tensor, x: Tensor, kind: str, mu: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.empty(2, dtype=torch.float32)
    by_x = _run(x, grad, kind, mu.item(), sigma.item(), sums)
    by_mu, by_sigma = (s.clone().view(t.shape) for s, t in zip(sums, (mu, sigma), strict=True))
    return by_x, by_mu, by_sigma


_operators = torch.library.Library("vit_gelu", "FRAGMENT")
_operators.define("activation(Tensor x, str kind, float mu, float sigma) -> Tensor")
_operators.define("activation_backward(Tensor grad, Tensor x, str kind, float mu, float sigma) -> Tensor")
_operators.define("learned_activation(Tensor x, str kind, Tensor mu, Tensor sigma) -> Tensor")
_operators.define(
    "learned_activation_backward(Tensor grad, Tensor x, str kind, Tensor mu, Tensor sigma)"
    " -> (Tensor, Tensor, Tensor)"
)
_operators.impl("activation", _value, "CPU")
_operators.impl("activation_backward", _backward, "CPU")
_operators.impl("learned_activation", _learned_value, "CPU")
_operators.impl("learned_activation_backward", _learned_backward, "CPU")


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("vit_gelu::activation", lib=_operators)
def _(x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _like(x)


@torch.library.register_fake("vit_gelu::activation_backward", lib=_operators)
def _(grad: Tensor, x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _like(x)


@torch.library.register_fake("vit_gelu::learned_activation", lib=_operators)
def _(x: Tensor, kind: str, mu: Tensor, sigma: Tensor) -> Tensor:
    return _like(x)


@torch.library.register_fake("vit_gelu::learned_activation_backward", lib=_operators)
def _(grad: Tensor, x: Tensor, kind: str, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), _like(mu), _like(sigma)


def value(x: Tensor, kind: str, mu: Tensor | float, sigma: Tensor | float) -> Tensor:
    """x·F((x − μ)/σ), or what the kind says, in the shape of x, rounded once. Not differentiable.

    Args:
        x: of ``DTYPES``, any shape.
        kind: of ``KINDS``.
        mu, sigma: two numbers, or, for a distribution, two float32 tensors of one element.

    Raises:
        RuntimeError: another dtype, or a machine without these kernels.
    """
    if isinstance(mu, Tensor) and isinstance(sigma, Tensor):
        return torch.ops.vit_gelu.learned_activation(x, kind, mu, sigma)
    return torch.ops.vit_gelu.activation(x, kind, mu, sigma)


def backward(
    grad: Tensor, x: Tensor, kind: str, mu: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``grad`` times the derivatives of ``value`` by x and, if they are tensors, by μ and σ.

    That of a rectifier may be taken at its result as well.
    """
    if isinstance(mu, Tensor) and isinstance(sigma, Tensor):
        return torch.ops.vit_gelu.learned_activation_backward(grad, x, kind, mu, sigma)
    return torch.ops.vit_gelu.activation_backward(grad, x, kind, mu, sigma), None, None
