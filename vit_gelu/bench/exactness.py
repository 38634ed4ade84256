"""How far an activation is from its own formula in float64: output, gradient of the input, of the parameters."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PIECE = 1 << 22  # elements that go through float64 at a time


def _worst(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def errors_against_float64(
    function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor, grad: Tensor
) -> dict[str, Any]:
    """Largest errors against the same module in float64 on the same (rounded) input.

    A stochastic module must be in evaluation mode: in training there is no value to be near to.

    Args:
        function: what is judged: ``module``, or compiled code of it.
        module: the activation; works on each sample (first dimension) by itself.
        x: input, shape (b, ..., c).
        grad: of the output.

    Returns:
        ``forward``, ``gradient``: largest absolute errors; ``forward_rounded``, ``gradient_rounded``: those of
        the exact values rounded once to the dtype of x, which nothing can beat; ``parameters``: largest error of
        a parameter's gradient over the largest gradient of that parameter, None without parameters.
    """
    x = x.detach().requires_grad_()
    parameters = list(module.parameters())
    y = function(x)
    grad_x, *grads = torch.autograd.grad(y, [x, *parameters], grad, allow_unused=True)
    exact_module = copy.deepcopy(module).double()
    exact_grads = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
    worst = dict.fromkeys(("forward", "forward_rounded", "gradient", "gradient_rounded"), 0.0)
    samples = max(1, PIECE // max(1, x[0].numel()))
    with torch.enable_grad():
        for start in range(0, len(x), samples):
            part = slice(start, start + samples)
            wide = x[part].detach().double().requires_grad_()
            exact_y = exact_module(wide)
            exact_x, *by_parameter = torch.autograd.grad(
                exact_y, [wide, *exact_module.parameters()], grad[part].double(), allow_unused=True
            )
            for total, term in zip(exact_grads, by_parameter, strict=True):
                if term is not None:
                    total += term
            exact_y = exact_y.detach()
            errors = {
                "forward": _worst(y[part].detach(), exact_y),
                "forward_rounded": _worst(exact_y.to(y.dtype), exact_y),
                "gradient": _worst(grad_x[part], exact_x),
                "gradient_rounded": _worst(exact_x.to(x.dtype), exact_x),
            }
            # max() would drop a NaN that comes second.
            worst = {k: v if v != v or v > worst[k] else worst[k] for k, v in errors.items()}
    relative = [
        _worst(g, e) / float(e.abs().max().clamp_min(1e-300))
        for g, e in zip(grads, exact_grads, strict=True)
        if g is not None
    ]
    return {**worst, "parameters": max(relative) if relative else None}
