"""x·F((x − μ)/σ) and its gradients in eager code on a CPU, by kernels that torch.compile makes: one pass over memory.

Faster than ``eager``, which does with the kernels that torch has. The first large tensor of a
process pays for it: seconds where torch has to make them, one second where it finds them in its cache. So they serve
large tensors only, and where there is a C++ compiler.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from vit_gelu.activations import eager
from vit_gelu.activations.compiled import cpu_options
from vit_gelu.activations.distributions import DISTRIBUTIONS
from vit_gelu.activations.formulas import cdf_partials, cdf_product
from vit_gelu.cpu_kernels.build import cpp_compiler

LEAST = 1 << 20  # elements from which it pays

_broken = False


def fits(x: Tensor, mu: Tensor | float, sigma: Tensor | float) -> bool:
    """Whether this file may be used: as ``eager.fits``, a large tensor, a compiler that works, nobody who watches."""
    switched_off = (
        os.environ.get("TORCHDYNAMO_DISABLE") == "1" or os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    )
    return (
        x.numel() >= LEAST
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not (_broken or switched_off)
        and _get_current_dispatch_mode() is None  # a counter of operations, say, which wants to see them
        and cpp_compiler() is not None
        and eager.fits(x, mu, sigma)
    )


def _of_x(x: Tensor, mu: Any, sigma: Any, name: str) -> Tensor:
    return cdf_product(x, mu, sigma, DISTRIBUTIONS[name])


def _by_x(grad: Tensor, x: Tensor, mu: Any, sigma: Any, name: str) -> Tensor:
    return (grad * cdf_partials(x, mu, sigma, DISTRIBUTIONS[name])[0]).to(x.dtype)


def _by_all(grad: Tensor, x: Tensor, mu: Any, sigma: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    by_x, by_mu, by_sigma = cdf_partials(x, mu, sigma, DISTRIBUTIONS[name])
    over = 0 if mu.numel() > 1 else None
    return (grad * by_x).to(x.dtype), (grad * by_mu).sum(over), (grad * by_sigma).sum(over)


@cache
def _compiled(formula: FunctionType, *variant: Any) -> Callable[..., Any]:
    """The compiled formula; variants are kept apart, because torch gives up after several of one piece of code."""
    own = FunctionType(formula.__code__.replace(), formula.__globals__, formula.__name__)
    return torch.compile(own, dynamic=True, fullgraph=True, options=cpu_options())


def _run(
    formula: Any, tensors: tuple[Tensor, ...], mu: Tensor | float, sigma: Tensor | float, name: str
) -> Any:
    x = tensors[-1]
    channels = x.shape[-1:] if isinstance(mu, Tensor) and mu.numel() > 1 else ()
    if not isinstance(mu, Tensor) and (mu, sigma) != (0.0, 1.0):
        # As tensors, so that other numbers do not need another kernel.
        mu, sigma = (torch.tensor([number], dtype=torch.float32) for number in (mu, sigma))
    flat = [t.detach().view(-1, *channels) for t in tensors]
    parameters = [t.detach().view(-1) if isinstance(t, Tensor) else t for t in (mu, sigma)]
    variant = (name, len(channels), isinstance(mu, Tensor), x.dtype, torch.is_inference_mode_enabled())
    with torch.no_grad():
        return _compiled(formula, *variant)(*flat, *parameters, name)


def _give_up(error: Exception) -> None:
    global _broken
    _broken = True
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    warnings.warn(
        f"torch.compile cannot make a kernel here, so activations are slower: {reason[:200]}",
        stacklevel=3,
    )


def forward(x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str) -> Tensor:
    """y = x·F((x − μ)/σ), in the dtype of x."""
    try:
        return _run(_of_x, (x,), mu, sigma, name).view_as(x)
    except Exception as error:  # dynamo, inductor and the compiler each have their own
        _give_up(error)
        return eager.forward(x, mu, sigma, name)


def backward(
    grad: Tensor, x: Tensor, mu: Tensor | float, sigma: Tensor | float, name: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients for x, μ and σ, the latter two None if numbers; ``grad`` contiguous as x is."""
    try:
        if not (isinstance(mu, Tensor) and isinstance(sigma, Tensor)):
            return _run(_by_x, (grad, x), mu, sigma, name).view_as(x), None, None
        by_x, by_mu, by_sigma = _run(_by_all, (grad, x), mu, sigma, name)
        return by_x.view_as(x), by_mu.view_as(mu).to(mu.dtype), by_sigma.view_as(sigma).to(sigma.dtype)
    except Exception as error:
        _give_up(error)
        return eager.backward(grad, x, mu, sigma, name)
