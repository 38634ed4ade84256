"""x·F((x − μ)/σ), ReLU's family and their gradients in one pass over memory: bfloat16 and float32 on a CPU with AMX.

The kernels are those of ``cpu_kernels.activations``, for eager and compiled code alike.
"""

from typing import Any

import torch
from torch import Tensor

from vit_gelu.activations import eager
from vit_gelu.cpu_kernels import activations


def _suit(mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether μ and σ are two numbers, or two float32 tensors of one element."""
    if isinstance(mu, Tensor) and isinstance(sigma, Tensor):
        return all(t.numel() == 1 and t.dtype == torch.float32 for t in (mu, sigma))
    return not isinstance(mu, Tensor) and not isinstance(sigma, Tensor)


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used in eager code: as ``eager.fits``, a large tensor, one μ and one σ."""
    return (
        not torch.compiler.is_compiling()
        and activations.serves(x)
        and _suit(mu, sigma)
        and eager.fits(x, mu, sigma)
    )


def serves(x: Tensor, mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0) -> bool:
    """Whether ``compiled`` should be used."""
    return torch.compiler.is_dynamo_compiling() and activations.serves(x) and _suit(mu, sigma)


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    return activations.value(x, name, mu, sigma)


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for x, μ and σ, the latter two None if numbers."""
    return activations.backward(grad, x, name, mu, sigma)


class OnePass(torch.autograd.Function):
    """For compiled code: ``forward`` and ``backward``; keeps x. Without ``jvp``: see ``Rectified``."""

    @staticmethod
    def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
        return activations.value(x, name, mu, sigma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mu, sigma, ctx.name = inputs
        learned = isinstance(mu, Tensor)
        ctx.numbers = () if learned else (mu, sigma)
        ctx.save_for_backward(*((x, mu, sigma) if learned else (x,)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        mu, sigma = parameters or ctx.numbers
        return *activations.backward(grad, x, ctx.name, mu, sigma), None


def compiled(x: Tensor, name: str, mu: Tensor | float = 0.0, sigma: Tensor | float = 1.0) -> Tensor:
    """``forward`` in compiled code, differentiable once."""
    if torch.is_grad_enabled():
        return OnePass.apply(x, mu, sigma, name)
    return activations.value(x, name, mu, sigma)
