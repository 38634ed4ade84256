"""Attention on the chip: numerics through Triton's interpreter on any machine, the real thing on a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from vit_gelu.models import Attention
from vit_gelu.models.attention_choice import Shape
from vit_gelu.models.attention_kernels import KERNELS, explicit, on_chip

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Fewer than the tile, just more, exactly; narrow, odd and wide heads.
SHAPES = [
    (3, 5, 3, 2, 16),
    (2, 17, 3, 1, 80),
    (2, 32, 3, 4, 64),
    (2, 64, 3, 3, 48),
    (2, 65, 3, 2, 64),
    (1, 33, 3, 2, 48),
]
LARGE = [(2, 128, 3, 2, 128), (1024, 64, 3, 3, 64), (700, 65, 3, 3, 64), (3, 1, 3, 1, 32)]


def compare(shape, dtype, device, *, with_bias=False):
    """Output and gradients, in norm, against float64 written out."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(shape, generator=generator).to(dtype)
    b, n, _, h, d = shape
    grad = torch.randn(b, n, h * d, generator=generator).to(dtype)
    bias = torch.randn(3 * h * d, generator=generator) if with_bias else None
    leaves = [qkv] if bias is None else [qkv, bias]
    wide = [t.double().requires_grad_() for t in leaves]
    truth = explicit(wide[0] if bias is None else wide[0] + wide[1].view(3, h, d), 0.0)
    by_truth = torch.autograd.grad(truth, wide, grad.double())
    leaves = [t.to(device).requires_grad_() for t in leaves]
    out = on_chip(leaves[0], 0.0, *leaves[1:])
    by_leaves = torch.autograd.grad(out, leaves, grad.to(device))
    assert [t.dtype for t in (out, *by_leaves)] == [dtype, *(t.dtype for t in leaves)]
    eps = torch.finfo(dtype).eps
    for got, expected in zip((out, *by_leaves), (truth, *by_truth), strict=True):
        assert got.isfinite().all()
        assert got.shape == expected.shape
        assert (got.detach().cpu().double() - expected.detach()).norm() < eps * expected.norm()


def check_interpreted():
    # In half precision alone: the interpreter multiplies the bits of bfloat16.
    for shape in SHAPES:
        for with_bias in (False, True):
            compare(shape, torch.float16, "cpu", with_bias=with_bias)
    # A layer hands its bias to the kernel, or the sum to any other: the same values and gradients.
    torch.manual_seed(0)
    for n in (5, 17):
        layer, x = Attention(32, 2), torch.randn(2, n, 32)
        torch.nn.init.normal_(layer.qkv.bias)
        found = {}
        for kernel in ("explicit", "triton"):
            layer.set_kernels(kernel, kernel)
            with torch.autocast("cpu", torch.float16):
                out = layer(x)
            found[kernel] = [out, *torch.autograd.grad(out.float().square().sum(), list(layer.parameters()))]
        graph = torch.compile(layer, backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.float16):
            out = graph(x)
        compiled = [out, *torch.autograd.grad(out.float().square().sum(), list(layer.parameters()))]
        for a, b in zip(compiled, found["triton"], strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3 * float(b.detach().abs().max()))
        for a, b in zip(*found.values(), strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(a.detach().abs().max()))


@needs_triton
def test_through_the_interpreter():
    """In a process of its own, because Triton reads the variable when it is imported."""
    code = "from tests.models.test_triton_attention import check_interpreted; check_interpreted()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@needs_triton
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES + LARGE)
@pytest.mark.parametrize("with_bias", [False, True])
def test_on_a_gpu(shape, dtype, with_bias):
    compare(shape, dtype, "cuda", with_bias=with_bias)


@needs_triton
@needs_gpu
def test_compiled_as_one_graph_and_repeatable():
    torch.manual_seed(0)
    layer = Attention(96, 3, attention="triton").cuda()
    x = torch.randn(4, 17, 96, device="cuda", requires_grad=True)

    def gradients(call):
        with torch.autocast("cuda", torch.bfloat16):
            out = call(x)
        return torch.autograd.grad(out.float().square().sum(), [x, layer.qkv.weight, layer.qkv.bias])

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    eager, again, fast = gradients(layer), gradients(layer), gradients(compiled)
    for a, b, c in zip(eager, again, fast, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, a, rtol=0.05, atol=0.05 * a.abs().max().item())


@needs_triton
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 129, 3, 1, 16), torch.float16),
        ((1, 4, 3, 1, 130), torch.float16),
        ((1, 4, 3, 1, 16), torch.float32),
        ((1, 4, 3, 1, 16), torch.float16),  # on a CPU
    ],
)
def test_what_it_is_not_for_is_refused(shape, dtype):
    with pytest.raises(RuntimeError, match="at most 128 tokens"):
        KERNELS["triton"](torch.zeros(shape, dtype=dtype), 0.0)


def test_dropout_is_refused():
    with pytest.raises(RuntimeError, match="no dropout"):
        KERNELS["triton"](torch.zeros(1, 4, 3, 1, 16, dtype=torch.float16), 0.1)


def test_measured_only_where_it_could_run():
    assert "triton" in Shape(4, 65, 3, 64, dtype="bfloat16", device="cuda").candidates()
    assert "triton" in Shape(4, 65, 3, 64, dtype="bfloat16", device="cuda", compiled=True).candidates()
    for other in (
        {"tokens": 197},
        {"head_dim": 160},
        {"dtype": "float32"},
        {"dropout": True},
        {"device": "cpu"},
        {"longest": 256},
    ):
        shape = {"tokens": 65, "heads": 3, "head_dim": 64, "dtype": "bfloat16", "device": "cuda"} | other
        assert "triton" not in Shape(4, **shape).candidates()
