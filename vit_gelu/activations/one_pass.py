"""x·F((x − μ)/σ), ReLU's family and their gradients in one pass over memory: bfloat16 on a CPU with AMX.

The kernels are those of ``cpu_kernels.activations``, for eager and compiled code alike.
"""

from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations.eager import has_memory
from vit_gelu.cpu_kernels import activations


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used in eager code: a large plain tensor, and numbers for μ and σ."""
    numbers = not isinstance(mu, Tensor) and not isinstance(sigma, Tensor) and sigma > 1e-20
    return numbers and type(x) in (Tensor, torch.nn.Parameter) and activations.serves(x) and has_memory(x)


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    return activations.value(x, name, float(mu), float(sigma))


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, None, None]:
    """The gradient for x."""
    return activations.backward(grad, x, name, float(mu), float(sigma)), None, None


class OnePass(torch.autograd.Function):
    """For compiled code: see ``cpu_kernels.activations.value``; keeps x. Without ``jvp``: see ``Rectified``."""

    @staticmethod
    def forward(x: Tensor, name: str, mu: float, sigma: float) -> Tensor:
        return activations.value(x, name, mu, sigma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.options = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return activations.backward(grad, x, *ctx.options), None, None, None


def compiled(x: Tensor, name: str, mu: float = 0.0, sigma: float = 1.0) -> Tensor:
    """``cpu_kernels.activations.value``, differentiable once."""
    trained = torch.is_grad_enabled() and x.requires_grad
    return OnePass.apply(x, name, mu, sigma) if trained else activations.value(x, name, mu, sigma)


def serves(x: Tensor) -> bool:
    """Whether ``compiled`` should be used."""
    return torch.compiler.is_dynamo_compiling() and activations.serves(x)
