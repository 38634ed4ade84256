"""The linear layers of the blocks, in the form that compiles to the fastest code on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit_gelu.activations.compiled import compiled_for_cpu
from vit_gelu.cpu_kernels import products
from vit_gelu.cpu_kernels.build import instructions, library


def _product_then_bias(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    out = F.linear(x, weight)
    return out + bias.to(out.dtype)


class _Compiled(torch.autograd.Function):
    """x·Wᵀ + b with the products of the backward pass in front of the sum for b. Without ``jvp``: see ``Rectified``.

    The compiler follows the order. A gradient that is summed first is computed twice, once for the sum and once for
    the products; and a bias inside the product of half-precision matrices is copied to every row of the result first.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _product_then_bias(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        by_x, by_weight, by_bias = ctx.needs_input_grad
        grad_x = (rows @ weight).view_as(x) if by_x else None
        grad_weight = rows.mT @ x.flatten(0, -2) if by_weight else None
        return grad_x, grad_weight, rows.sum(0, dtype=ctx.bias_dtype) if by_bias else None


class _Own(torch.autograd.Function):
    """The same in bfloat16 by ``cpu_kernels.products``: the sums for weight and bias stay in float32."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = products.product(x.flatten(0, -2), weight.to(x.dtype), bias.float(), turned=True)
        return out.unflatten(0, x.shape[:-1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        by_x, by_weight, by_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if by_x:
            grad_x = products.product(rows, weight.to(x.dtype), turned=False).view_as(x)
        if by_weight:
            grad_weight, grad_bias = products.weight_gradient(rows, x.flatten(0, -2))
            grad_weight = grad_weight.to(weight.dtype)
        elif by_bias:
            grad_bias = rows.sum(0, dtype=torch.float32)
        grad_bias = grad_bias.to(ctx.bias_dtype) if by_bias and grad_bias is not None else None
        return grad_x, grad_weight, grad_bias


def computed_by(device_type: str, *, bfloat16: bool, compiled: bool) -> str:
    """What multiplies in ``Linear`` layers with bias: ``amx`` or ``avx512``, our own kernels, or ``torch``."""
    own = instructions() if device_type == "cpu" and bfloat16 and compiled else None
    return own or "torch"


@torch.compiler.assume_constant_result
def _kernels_here() -> bool:
    return library() is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b, shapes (..., i), (o, i), (o,) -> (..., o)."""
    if bias is None or x.dim() < 2 or not compiled_for_cpu(x):
        return F.linear(x, weight, bias)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    own = dtype == torch.bfloat16 and (autocast or weight.dtype == dtype) and _kernels_here()
    if not torch.is_grad_enabled():
        return _Own.forward(x.to(dtype), weight, bias) if own else _product_then_bias(x, weight, bias)
    if own:
        return _Own.apply(x.to(dtype), weight, bias)
    return _Compiled.apply(x.to(dtype), weight.to(dtype), bias)


class Linear(nn.Linear):
    """torch's layer, computed by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def may_be_split(layer: nn.Module) -> bool:
    """Whether the weights say all that a layer does: a ``Linear``, with nothing around it and no hook on it."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is Linear and not any(hooks)
