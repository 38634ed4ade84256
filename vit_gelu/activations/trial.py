"""One small tensor through an activation that is not ours, so that a wrong result is named where it comes from."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vit_gelu.activations.registry import resolve_activation

ROWS = (2, 3)


def check_result(module: nn.Module, name: str, width: int, hidden: int) -> None:
    """Refuse an activation that does not give a tensor of the right shape and dtype.

    A copy of it is tried, so that it keeps its state. One that fails is left to fail where it is used, which may be on
    other tensors.

    Args:
        module: from ``build_activation``; those of this package are not tried.
        name: as it was asked for.
        width: size of the last dimension that it is given.
        hidden: that it must give: ``width``, or half of it if gated.

    Raises:
        ValueError: what it gives, and what it should.

    >>> check_result(nn.GLU(), "torch.nn.GLU", 8, 8)
    Traceback (most recent call last):
    ...
    ValueError: activation 'torch.nn.GLU' halves the last dimension: a class that does so must have `gated = True`
    """
    if getattr(resolve_activation(name).factory, "__module__", "").startswith("vit_gelu."):
        return
    x = torch.linspace(-3, 3, ROWS[0] * ROWS[1] * width).view(*ROWS, width)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            y = copy.deepcopy(module)(x.clone())
        except Exception:  # whatever it may be, the network will raise it where it is the user's to see
            return
    if not isinstance(y, Tensor):
        raise ValueError(f"activation {name!r} gives {type(y).__name__}; it must give a tensor")
    if y.shape == (*ROWS, hidden) and y.dtype == x.dtype:
        return
    if width == hidden and y.shape == (*ROWS, width // 2):
        raise ValueError(
            f"activation {name!r} halves the last dimension: a class that does so must have `gated = True`"
        )
    raise ValueError(
        f"activation {name!r} gives {_named(y.dtype, y.shape)} for {_named(x.dtype, x.shape)}; it must give "
        f"{_named(x.dtype, (*ROWS, hidden))}"
    )


def _named(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} of shape {tuple(shape)}"
