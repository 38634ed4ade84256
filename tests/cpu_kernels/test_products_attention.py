"""Our own kernels for bfloat16 on a CPU, against float64; where the processor has them, else what is there instead."""

import math
import subprocess

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from vit_gelu.cpu_kernels import build, products
from vit_gelu.models.attention_kernels import KERNELS
from vit_gelu.models.linear import Linear

OWN = build.instructions() or "avx512"
here = pytest.mark.skipif(build.library() is None, reason="needs AMX or AVX-512-BF16, and a C++ compiler")
MATRICES = [(256, 64, 48), (257, 8, 2), (300, 33, 130), (513, 100, 34), (1023, 10, 500), (400, 7, 50)]
HEADS = [
    (2, 65, 3, 64),
    (3, 1, 2, 16),
    (2, 5, 2, 48),
    (1, 197, 2, 64),
    (1, 81, 2, 80),
    (2, 64, 1, 32),
    (1, 6, 1, 96),
]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(*shape, seed=0, scale=1.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).bfloat16()


def off(got, true):
    """Relative error in the Euclidean norm."""
    return ((got.double() - true).norm() / true.norm()).item()


@here
@pytest.mark.parametrize(("rows", "out", "width"), MATRICES)
def test_products_against_float64(rows, out, width):
    x, dy, w, bias = (
        numbers(rows, width),
        numbers(rows, out, seed=1),
        numbers(out, width, seed=2),
        torch.randn(out),
    )
    y = products.product(x, w, bias, turned=True)
    true = x.double() @ w.double().mT + bias.double()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), true, rtol=2**-8, atol=1e-4)  # one rounding
    dw, db = products.weight_gradient(dy, x)
    assert dw.dtype == db.dtype == torch.float32
    assert off(dw, dy.double().mT @ x.double()) < 1e-6
    assert off(db, dy.double().sum(0)) < 1e-6
    if out % 2 == 0:
        dx = products.product(dy, w, turned=False)
        torch.testing.assert_close(dx.double(), dy.double() @ w.double(), rtol=2**-8, atol=1e-4)


@here
def test_no_number_depends_on_the_number_of_threads(threads):
    x, dy, w = numbers(1000, 96), numbers(1000, 200, seed=1), numbers(200, 96, seed=2)
    qkv, grad = numbers(3, 37, 3, 2, 32, seed=3).requires_grad_(), numbers(3, 37, 64, seed=4)
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        out = KERNELS[OWN](qkv, 0.0)
        by_qkv = torch.autograd.grad(out, qkv, grad)
        results.append([products.product(x, w, turned=True), *products.weight_gradient(dy, x), out, *by_qkv])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@here
@pytest.mark.parametrize("shape", HEADS)
@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_attention_against_float64(shape, scale):
    """Nearer to the truth than attention written out in bfloat16, forward and backward."""
    b, n, h, d = shape
    qkv, grad = numbers(b, n, 3, h, d, scale=scale), numbers(b, n, h * d, seed=1)
    true, own, written = (qkv.to(t).requires_grad_() for t in (torch.float64, torch.bfloat16, torch.bfloat16))
    out = KERNELS["explicit"](true, 0.0)
    (by_qkv,) = torch.autograd.grad(out, true, grad.double())
    errors = []
    for name, given in ((OWN, own), ("explicit", written)):
        got = KERNELS[name](given, 0.0)
        assert got.dtype == torch.bfloat16
        errors.append([off(got, out), off(torch.autograd.grad(got, given, grad)[0], by_qkv)])
    assert all(mine <= max(1.05 * other, 2**-8) for mine, other in zip(*errors, strict=True)), errors


@here
def test_rows_without_a_finite_share_do_not_spoil_others():
    """Scores far apart: weights underflow to 0, and no row becomes NaN."""
    qkv = numbers(1, 9, 3, 1, 16, scale=40.0)
    assert KERNELS[OWN](qkv, 0.0).isfinite().all()


@here
def test_operators_are_proper():
    x, dy, w, bias = numbers(300, 6), numbers(300, 8, seed=1), numbers(8, 6, seed=2), torch.randn(8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.vit_gelu.product.default, (x, w, bias, True), test_utils=tests)
    torch.library.opcheck(torch.ops.vit_gelu.weight_gradient.default, (dy, x), test_utils=tests)
    qkv = numbers(2, 5, 3, 2, 16).requires_grad_()
    torch.library.opcheck(torch.ops.vit_gelu.cpu_attention.default, (qkv,), test_utils=tests)


@here
def test_a_compiled_layer_uses_them_and_is_nearer_to_the_truth():
    torch.manual_seed(0)
    layer, plain, exact = Linear(48, 96), nn.Linear(48, 96), nn.Linear(48, 96).double()
    for other in (plain, exact):
        other.load_state_dict(layer.state_dict())
    x = numbers(8, 70, 48)
    grad = numbers(8, 70, 96, seed=1)
    called = []
    original = torch.ops.vit_gelu.weight_gradient.default

    def backend(graph, inputs):
        def compiler(inner, _):
            called.extend(node.target for node in inner.graph.nodes if node.target is original)
            return make_boxed_func(inner)

        return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)(graph, inputs)

    torch._dynamo.reset()
    gradients = []
    for module in (torch.compile(layer, fullgraph=True, backend=backend), plain, exact):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=module is not exact):
            y = module(x.double() if module is exact else x)
        gradients.append(torch.autograd.grad(y, [module.weight, module.bias], grad.to(y.dtype)))
    assert called == [original]
    for mine, other, true in zip(*gradients, strict=True):
        assert mine.dtype == torch.float32
        assert off(mine, true) < 0.5 * off(other, true)


def test_without_them_the_operators_do_what_torch_does(monkeypatch):
    monkeypatch.setattr(products, "library", lambda: None)
    x, dy, w, bias = numbers(300, 6), numbers(300, 8, seed=1), numbers(8, 6, seed=2), torch.randn(8)
    torch.testing.assert_close(products.product(x, w, turned=True), x @ w.mT)
    torch.testing.assert_close(products.product(dy, w, turned=False), dy @ w)
    torch.testing.assert_close(products.product(x, w, bias, turned=True), x @ w.mT + bias.bfloat16())
    dw, db = products.weight_gradient(dy, x)
    torch.testing.assert_close(dw, (dy.mT @ x).float())
    torch.testing.assert_close(db, dy.float().sum(0))


@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 16), (torch.bfloat16, 24)])
def test_attention_refuses_what_it_cannot_do(dtype, d):
    with pytest.raises(RuntimeError, match="takes bfloat16 and heads of a multiple of 16"):
        KERNELS[OWN](torch.zeros(1, 2, 3, 1, d, dtype=dtype), 0.0)
    with pytest.raises(RuntimeError, match="no dropout"):
        KERNELS[OWN](torch.zeros(1, 2, 3, 1, 16, dtype=torch.bfloat16), 0.1)


ZEN4 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "fma"})


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (ZEN4, "avx512"),
        (ZEN4 | {"amx_bf16", "amx_tile", "amx_int8"}, "amx"),
        (ZEN4 | {"amx_int8", "amx_tile"}, "avx512"),
        (ZEN4 - {"avx512_bf16"}, None),
    ],
)
def test_which_processors_suit(monkeypatch, flags, kind):
    monkeypatch.setattr(build.sys, "platform", "linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    assert build.kind(flags) == kind
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    assert build.kind(flags) is None


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The library, not loaded yet, with an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "kind_here", lambda: OWN)
    return build.library.__wrapped__


def test_a_compiler_that_fails_is_said(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(build, "cpp_compiler", lambda: str(broken))
    with pytest.warns(
        UserWarning, match="could not be compiled, so bfloat16 is slower: fatal error: no such header"
    ):
        assert fresh() is None
    assert not list(tmp_path.rglob("*.so"))


@here
def test_it_is_compiled_once(fresh, monkeypatch, tmp_path):
    assert fresh() is not None
    assert len(list(tmp_path.rglob("*.so"))) == 1
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled twice"))
    assert fresh() is not None


@here
def test_operations_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    qkv = numbers(2, 5, 3, 4, 16).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        products.product(numbers(300, 6), numbers(8, 6), turned=True)
        products.weight_gradient(numbers(300, 8), numbers(300, 6))
    assert counter.get_total_flops() == 2 * 2 * 300 * 8 * 6
    counts = []
    for kernel in (OWN, "explicit"):
        with FlopCounterMode(display=False) as counter:
            KERNELS[kernel](qkv, 0.0).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == math.prod((12, 2, 4, 5, 5, 16))
