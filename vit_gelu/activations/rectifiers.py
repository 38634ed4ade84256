"""ReLU and leaky ReLU for compiled code on a CPU, and for CPUs with AMX.

Left to itself, torch.compile keeps a boolean mask of the hidden tensor for their backward pass, beside the result that
the next layer keeps anyway, and Inductor writes and reads booleans without vector instructions: a whole training step
then takes up to half as long again, and ReLU would be called slower than GELU. Here the gradient comes from the sign of
the result, in floats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.activations import one_pass
from vit_gelu.activations.compiled import compiled_for_cpu
from vit_gelu.cpu_kernels import activations


def slope_at(y: Tensor, negative_slope: float) -> Tensor:
    """The derivative by the result y: 1 where y > 0, else the slope; as torch has it, at 0 too."""
    positive = y.clamp(min=0).sign()
    return positive if negative_slope == 0.0 else negative_slope + (1.0 - negative_slope) * positive


class Rectified(torch.autograd.Function):
    """x for x > 0, else slope·x, slope >= 0; keeps the result. Without ``jvp``, which torch.compile does not trace."""

    @staticmethod
    def forward(x: Tensor, negative_slope: float) -> Tensor:
        return _rectified(x, negative_slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.negative_slope = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if one_pass.serves(y):
            return activations.backward(grad, y, "rectifier", ctx.negative_slope, 1.0)[0], None
        return grad * slope_at(y, ctx.negative_slope), None


class Eager(torch.autograd.Function):
    """The same in eager code by ``one_pass``, differentiable as often as you like."""

    @staticmethod
    def forward(x: Tensor, negative_slope: float) -> Tensor:
        return activations.value(x, "rectifier", negative_slope, 1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.negative_slope = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not one_pass.fits(grad.contiguous(), 0.0, 1.0):
            return grad * slope_at(y.detach(), ctx.negative_slope), None
        return activations.backward(grad, y, "rectifier", ctx.negative_slope, 1.0)[0], None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (y,) = ctx.saved_tensors
        return tangent * slope_at(y.detach(), ctx.negative_slope)


def rectify(x: Tensor, negative_slope: float) -> Tensor:
    """x for x > 0, else slope·x: torch's own kernel, or one of the above."""
    if negative_slope >= 0 and one_pass.fits(x, 0.0, 1.0):
        return Eager.apply(x, negative_slope)
    trained = torch.is_grad_enabled() and x.requires_grad
    if trained and negative_slope >= 0 and compiled_for_cpu(x):
        return Rectified.apply(x, negative_slope)
    return _rectified(x, negative_slope)


def _rectified(x: Tensor, negative_slope: float) -> Tensor:
    if one_pass.serves(x):
        return activations.value(x, "rectifier", negative_slope, 1.0)
    return F.relu(x) if negative_slope == 0.0 else F.leaky_relu(x, negative_slope)
