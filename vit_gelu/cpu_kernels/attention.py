"""Attention in bfloat16 as an operator of torch, by the C++ files of the same name."""

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vit_gelu.cpu_kernels.build import library


@torch.library.custom_op("vit_gelu::cpu_attention", mutates_args=())
def _attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Output (b, n, h·d), and the logarithm to base 2 of each row's sum, (b, h, n) in float32."""
    own = library()
    b, n, _, h, d = qkv.shape
    if own is None or qkv.dtype != torch.bfloat16 or d % 16 or qkv.device.type != "cpu":
        raise RuntimeError(
            f"attention by our own CPU kernels takes bfloat16 and heads of a multiple of 16, on a CPU with AMX or "
            f"AVX-512-BF16, not {qkv.dtype}, heads of {d}, on {qkv.device}{'' if own else ' without it'}"
        )
    qkv = qkv.contiguous()
    out, logs = _outputs(qkv)
    pointers = out.data_ptr(), logs.data_ptr()
    own.attention(qkv.data_ptr(), b, n, h, d, d**-0.5, *pointers, torch.get_num_threads())
    return out, logs


@torch.library.custom_op("vit_gelu::cpu_attention_backward", mutates_args=())
def _backward(grad: Tensor, qkv: Tensor, logs: Tensor) -> Tensor:
    """The gradient for qkv, (b, n, 3, h, d), from that for the output."""
    own = library()
    assert own is not None, "the forward pass had it"
    b, n, _, h, d = qkv.shape
    tensors = [t.contiguous() for t in (grad, qkv, logs)]
    by_qkv = torch.empty_like(tensors[1])
    pointers = [t.data_ptr() for t in tensors]
    own.attention_backward(*pointers, b, n, h, d, d**-0.5, by_qkv.data_ptr(), torch.get_num_threads())
    return by_qkv


@_attention.register_fake
def _outputs(qkv: Tensor) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h * d), qkv.new_empty(b, h, n, dtype=torch.float32)


@_backward.register_fake
def _(grad: Tensor, qkv: Tensor, logs: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]
) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])


def _differentiate(ctx: torch.autograd.function.BackwardCFunction, grad: Tensor, _: None) -> Tensor:
    return _backward(grad, *ctx.saved_tensors)


_attention.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.vit_gelu.cpu_attention)
def _(qkv: list[int], **_: object) -> int:
    b, n, _three, h, d = qkv
    return 4 * b * h * n * n * d


@register_flop_formula(torch.ops.vit_gelu.cpu_attention_backward)
def _(grad: list[int], qkv: list[int], *_: object, **__: object) -> int:
    b, n, _three, h, d = qkv
    return 8 * b * h * n * n * d  # without the weights that are computed again


def attention(qkv: Tensor) -> Tensor:
    """softmax(q·kᵀ/√d)·v, (b, n, 3, h, d) -> (b, n, h·d), in bfloat16 with float32 sums; differentiable once.

    Raises:
        RuntimeError: another dtype, d not a multiple of 16, or a machine without these kernels.
    """
    return _attention(qkv)[0]
