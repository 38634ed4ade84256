"""Activations in bfloat16 as operators of torch, by the C++ file of the same name, for processors with AMX.

One pass over memory, and past the caches where the result is large, which code that torch.compile makes cannot ask for.
"""

import torch
from torch import Tensor

from vit_gelu.cpu_kernels.build import instructions, library

# As the C++ file numbers them: distributions F of x·F((x − μ)/σ), max(x, 0)², and the rectifier of slope μ left of 0.
KINDS = ("normal", "normal_tanh", "logistic", "laplace", "uniform", "mish", "squared", "rectifier")
LEAST = 1 << 16  # numbers from which a call of its own pays


def _here() -> bool:
    return instructions() == "amx"


_here._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compiler's decorator would import dynamo now


def serves(x: Tensor) -> bool:
    """Whether this file may be used: bfloat16, contiguous and large, on a CPU with AMX and a C++ compiler."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= LEAST
        and x.is_contiguous()
        and _here()
    )


def _run(x: Tensor, grad: Tensor | None, kind: str, mu: float, sigma: float) -> Tensor:
    own = library()
    if own is None or instructions() != "amx" or x.dtype != torch.bfloat16:
        raise RuntimeError(
            f"activations of our own on a CPU take bfloat16 and a CPU with AMX, not {x.dtype} here"
        )
    x = x.contiguous()
    grad = None if grad is None else grad.to(x.dtype).contiguous()
    out = torch.empty_like(x)
    pointers = x.data_ptr(), 0 if grad is None else grad.data_ptr()
    own.activation(
        KINDS.index(kind), mu, sigma, *pointers, x.numel(), out.data_ptr(), torch.get_num_threads()
    )
    return out


def _value(x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _run(x, None, kind, mu, sigma)


def _backward(grad: Tensor, x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return _run(x, grad, kind, mu, sigma)


_operators = torch.library.Library("vit_gelu", "FRAGMENT")
_operators.define("activation(Tensor x, str kind, float mu, float sigma) -> Tensor")
_operators.define("activation_backward(Tensor grad, Tensor x, str kind, float mu, float sigma) -> Tensor")
_operators.impl("activation", _value, "CPU")
_operators.impl("activation_backward", _backward, "CPU")


@torch.library.register_fake("vit_gelu::activation", lib=_operators)
def _(x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake("vit_gelu::activation_backward", lib=_operators)
def _(grad: Tensor, x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def value(x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    """x·F((x − μ)/σ), or what the kind says, in the shape of x, rounded once. Not differentiable.

    Raises:
        RuntimeError: another dtype, or a machine without these kernels.
    """
    return torch.ops.vit_gelu.activation(x, kind, mu, sigma)


def backward(grad: Tensor, x: Tensor, kind: str, mu: float, sigma: float) -> Tensor:
    """``grad`` times the derivative of ``value`` at x; that of a rectifier may be taken at its result as well."""
    return torch.ops.vit_gelu.activation_backward(grad, x, kind, mu, sigma)
