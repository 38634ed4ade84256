"""Every kernel is softmax(q·kᵀ/√d)·v, forward and backward, and the one of our own is a proper operator."""

import math
import shutil

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from vit_gelu.activations.compiled import cpu_options
from vit_gelu.models import Attention
from vit_gelu.models.attention_kernels import KERNELS, few_queries, strided

ON_CPU = ("explicit", "matmul", "strided", "sdpa", "flash", "math")


def reference(qkv: torch.Tensor) -> torch.Tensor:
    """One image, head and query at a time."""
    b, n, _, h, d = qkv.shape
    rows = []
    for i in range(b):
        for query in range(n):
            for head in range(h):
                q, keys, values = qkv[i, query, 0, head], qkv[i, :, 1, head], qkv[i, :, 2, head]
                weights = (keys @ q / math.sqrt(d)).exp()
                rows.append(weights / weights.sum() @ values)
    return torch.stack(rows).view(b, n, h * d)


@pytest.mark.parametrize("kernel", ON_CPU)
@pytest.mark.parametrize("shape", [(2, 5, 3, 3, 4), (1, 1, 3, 1, 8), (3, 17, 3, 2, 16)])
def test_kernels_against_a_loop(kernel, shape):
    qkv = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    qkv.requires_grad_()
    out, expected = KERNELS[kernel](qkv, 0.0), reference(qkv)
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    mine, theirs = (torch.autograd.grad(o, qkv, grad)[0] for o in (out, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kernel", ON_CPU)
def test_few_queries_are_rows_of_all(kernel):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 3, 4, dtype=torch.float64, generator=generator).requires_grad_()
    few = few_queries(q[:, :2], k, v, 0.0, kernel)
    torch.testing.assert_close(few, reference(torch.stack([q, k, v], 2))[:, :2])


@pytest.mark.parametrize("kernel", ["explicit", "matmul"])
def test_compiled_gradients_are_those_of_the_loop(kernel):
    qkv = torch.randn(2, 5, 3, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch._dynamo.reset()
    out = torch.compile(KERNELS[kernel], fullgraph=True, backend="aot_eager")(qkv, 0.0)
    wide = qkv.detach().double().requires_grad_()
    expected = reference(wide)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (mine,), (theirs,) = (
        torch.autograd.grad(out, qkv, grad),
        torch.autograd.grad(expected, wide, grad.double()),
    )
    torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("kernel", "fused"), [("explicit", False), ("flash", True)])
def test_what_is_compiled_is_what_was_asked_for(kernel, fused):
    """torch.compile replaces written-out attention that it recognises by the fused kernel."""
    qkv = torch.randn(2, 17, 3, 4, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(KERNELS[kernel], fullgraph=True, options=cpu_options())
        out, codes = run_and_get_code(lambda: compiled(qkv, 0.0))
    assert any("flash_attention" in code for code in codes) == fused
    torch.testing.assert_close(out, reference(qkv))


def test_all_kernels_are_tested_where_they_run():
    assert set(KERNELS) - set(ON_CPU) == {
        "efficient",
        "cudnn",
        "amx",
        "avx512",
        "triton",
    }  # the last three elsewhere


def test_strided_takes_what_is_not_contiguous():
    packed = torch.randn(3, 3, 5, 2, 4, dtype=torch.float64)
    qkv = packed.transpose(1, 2).detach().requires_grad_()  # (b, n, 3, h, d) with foreign strides
    grad = torch.randn(8, 5, 3, dtype=torch.float64).permute(2, 1, 0)
    results = [torch.autograd.grad(KERNELS[k](qkv, 0.0), qkv, grad)[0] for k in ("strided", "explicit")]
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own check
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strided_is_a_proper_operator(dtype):
    qkv = torch.randn(2, 5, 3, 2, 4, dtype=dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.vit_gelu.strided_attention.default, (qkv,))


@pytest.mark.parametrize("kernel", ["explicit", "strided", "flash"])
def test_compiles_as_one_graph(kernel):
    torch.manual_seed(0)
    layer = Attention(12, 3, attention=kernel)
    x = torch.randn(2, 5, 12, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = [torch.autograd.grad(f(x).square().sum(), [x, layer.qkv.weight]) for f in (layer, compiled)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kernel", ["explicit", "matmul", "strided", "flash"])
def test_autocast(kernel):
    torch.manual_seed(0)
    layer = Attention(48, 3, qk_norm=True, attention=kernel)
    x = torch.randn(2, 9, 48, requires_grad=True)
    exact = torch.autograd.grad(layer(x).square().mean(), x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    half = torch.autograd.grad(out.float().square().mean(), x)[0]
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.03 * exact.abs().max().item())


def test_training_and_evaluation_have_their_own():
    layer = Attention(12, 3)
    layer.set_kernels("explicit", "flash")
    calls = []
    x = torch.randn(2, 5, 12)
    original = dict(KERNELS)
    try:
        for name in ("explicit", "flash"):
            KERNELS[name] = lambda qkv, p, name=name: (calls.append(name), original[name](qkv, p))[1]
        layer(x)
        layer.eval()(x)
    finally:
        KERNELS.update(original)
    assert calls == ["explicit", "flash"]


def test_strided_in_evaluation_goes_with_dropout_in_training():
    layer = Attention(12, 3, attention_dropout=0.5)
    layer.set_kernels("explicit", "strided")
    x = torch.randn(2, 5, 12)
    expected = layer.eval()(x)
    layer.set_kernels("explicit", "explicit")
    torch.testing.assert_close(expected, layer(x))
    with pytest.raises(ValueError, match=r"--model.attention strided: has no dropout"):
        layer.set_kernels("strided", "explicit")


def test_strided_without_gradients():
    qkv = torch.randn(2, 5, 3, 2, 4)
    with torch.inference_mode():
        torch.testing.assert_close(strided(qkv, 0.0), KERNELS["explicit"](qkv, 0.0))
