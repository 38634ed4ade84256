"""The three products of a linear layer in bfloat16 as operators of torch: x·Wᵀ + b, dy·W, and dyᵀ·x with dy's sums.

By the C++ files of the same name where they can be built. Elsewhere the operators exist as well, for compiled code that
was kept, and do what torch does.
"""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vit_gelu.cpu_kernels.build import library

ROWS = 256  # below, packing the weight costs more than it saves


def _product(x: Tensor, w: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    rows, depth = x.shape
    own = library() if rows >= ROWS and depth % 2 == 0 and x.dtype == w.dtype == torch.bfloat16 else None
    if own is None:
        out = torch.mm(x, w.mT if turned else w)
        return out if bias is None else out + bias.to(out.dtype)
    x, w = x.contiguous(), w.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    out = x.new_empty(rows, w.shape[0] if turned else w.shape[1])
    threads, pointers = torch.get_num_threads(), [0 if t is None else t.data_ptr() for t in (x, w, bias)]
    own.product(*pointers, rows, depth, out.shape[1], turned, out.data_ptr(), threads)
    return out


def _weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    own = library() if len(dy) >= ROWS and dy.dtype == x.dtype == torch.bfloat16 else None
    if own is None:
        return torch.mm(dy.mT, x).float(), dy.sum(0, dtype=torch.float32)
    dy, x = dy.contiguous(), x.contiguous()
    dw, db = _gradients(dy, x)
    inputs, outputs = (dy.data_ptr(), x.data_ptr()), (dw.data_ptr(), db.data_ptr())
    own.weight_gradient(*inputs, *dy.shape, x.shape[1], *outputs, torch.get_num_threads())
    return dw, db


def _gradients(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    out = dy.shape[1]
    return dy.new_empty(out, x.shape[1], dtype=torch.float32), dy.new_empty(out, dtype=torch.float32)


_operators = torch.library.Library("vit_gelu", "FRAGMENT")  # less per call than torch.library.custom_op
_operators.define("product(Tensor x, Tensor w, Tensor? bias, bool turned) -> Tensor")
_operators.define("weight_gradient(Tensor dy, Tensor x) -> (Tensor, Tensor)")
_operators.impl("product", _product, "CPU")
_operators.impl("weight_gradient", _weight_gradient, "CPU")
torch.library.register_fake("vit_gelu::weight_gradient", _gradients, lib=_operators)


@torch.library.register_fake("vit_gelu::product", lib=_operators)
def _(x: Tensor, w: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    return x.new_empty(x.shape[0], w.shape[0] if turned else w.shape[1])


@register_flop_formula(torch.ops.vit_gelu.product)
def _(x: list[int], w: list[int], bias: list[int] | None, turned: bool, **_: object) -> int:
    return 2 * x[0] * w[0] * w[1]


@register_flop_formula(torch.ops.vit_gelu.weight_gradient)
def _(dy: list[int], x: list[int], **_: object) -> int:
    return 2 * dy[0] * dy[1] * x[1]


def product(x: Tensor, w: Tensor, bias: Tensor | None = None, *, turned: bool) -> Tensor:
    """x·wᵀ + bias, (r, k), (n, k), (n,) -> (r, n), if ``turned``; else x·w + bias, (r, k), (k, n), (n,) -> (r, n).

    In bfloat16, summed in float32. Not differentiable.
    """
    return torch.ops.vit_gelu.product(x, w, bias, turned)


def weight_gradient(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """dyᵀ·x and the sums of dy's columns, (r, o), (r, i) -> (o, i), (o,), in float32. Not differentiable."""
    return torch.ops.vit_gelu.weight_gradient(dy, x)
