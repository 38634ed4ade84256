"""Kernels that torch.compile makes for eager code, against float64; and what happens where it cannot."""

import importlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vit_gelu.activations import CDFLinearUnit, build_activation, eager, generated
from vit_gelu.activations.autograd import kernels_for
from vit_gelu.activations.distributions import DISTRIBUTIONS
from vit_gelu.cpu_kernels import build

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(generated, "LEAST", 1)
    monkeypatch.setattr(generated, "_broken", False)


def graphs():
    return importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"]


def compare(unit, x, grad):
    """y and all gradients against the same unit in float64."""
    y = unit(x)
    got = torch.autograd.grad(y, (x, *unit.parameters()), grad)
    wide = x.detach().double().requires_grad_()
    exact_unit = unit.double()
    exact = exact_unit(wide)
    expected = torch.autograd.grad(exact, (wide, *exact_unit.parameters()), grad.double())
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=2 * eps, atol=4 * eps)
    torch.testing.assert_close(got[0].double(), expected[0], rtol=2 * eps, atol=8 * eps)
    for mine, true in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=2e-3)


UNITS = [
    {},
    {"mu": 0.31, "sigma": 1.7},
    {"mu": 0.31, "sigma": 1.7, "learnable": True},
    {"mu": -0.2, "sigma": 0.6, "learnable": True, "num_channels": 11},
]
# A kernel takes seconds to make: each name and each unit in float32 and in a half precision.
TRIPLES = [
    (name, UNITS[(i + k) % len(UNITS)], dtype)
    for i, name in enumerate(DISTRIBUTIONS)
    for k, dtype in enumerate((torch.float32, HALVES[i % 2]))
]


@needs_compiler
@pytest.mark.parametrize(("name", "unit", "dtype"), TRIPLES)
def test_against_float64(name, unit, dtype):
    generator = torch.Generator().manual_seed(0)
    x, grad = (2 * torch.randn(3, 37, 11, generator=generator).to(dtype) for _ in range(2))
    x = x.requires_grad_()
    assert kernels_for(x, 0.0, 1.0) is generated
    compare(CDFLinearUnit(name, **unit), x, grad)


@needs_compiler
def test_one_kernel_for_all_sizes_and_numbers():
    for shape in ((40, 6), (7,)):  # a tensor that is a view of itself, and one that is not
        CDFLinearUnit("laplace", 0.1, 2.0)(torch.randn(shape))
    made = graphs()
    for shape, mu, sigma in (((9,), 0.1, 2.0), ((5, 3, 9), -0.4, 0.3), ((64, 64), 1.0, 1.0)):
        x = torch.randn(shape)
        got = CDFLinearUnit("laplace", mu, sigma)(x)
        torch.testing.assert_close(got, CDFLinearUnit("laplace", mu, sigma)(x.double()).float())
    assert graphs() == made


@needs_compiler
def test_with_and_without_gradients():
    act, x = build_activation("mish"), torch.randn(8, 16)
    expected = torch.nn.functional.mish(x)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            torch.testing.assert_close(act(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(act(x), expected)


def test_small_tensors_do_not_load_the_compiler():
    code = """
import sys, torch
from vit_gelu.activations import build_activation
x = torch.randn(1000, 100, requires_grad=True)
build_activation("gelu_learnable")(x).sum().backward()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_who_watches_operations_sees_them(recwarn):
    unit, x = CDFLinearUnit("normal", learnable=True), torch.randn(50, 7, requires_grad=True)
    with FlopCounterMode(display=False):
        assert kernels_for(x, 0.0, 1.0) is eager
        y = unit(x)
        y.sum().backward()
    torch.testing.assert_close(y, torch.nn.functional.gelu(x))
    assert not recwarn.list


@pytest.mark.parametrize("variable", ["TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"])
def test_switched_off_with_torchs_own_switch(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert kernels_for(torch.randn(4, 4), 0.0, 1.0) is eager


def test_without_a_compiler(monkeypatch, recwarn):
    monkeypatch.setenv("CXX", os.path.join("nowhere", "g++"))
    build.cpp_compiler.cache_clear()
    try:
        assert kernels_for(torch.randn(4, 4), 0.0, 1.0) is eager
        x = torch.randn(50, 7, requires_grad=True)
        compare(CDFLinearUnit("normal", learnable=True), x, torch.randn(50, 7))
    finally:
        monkeypatch.undo()
        build.cpp_compiler.cache_clear()
    assert not recwarn.list


def test_a_compiler_that_fails_is_told_of_once(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("\ncannot find -lgomp\nmany lines follow")

    monkeypatch.setattr(generated, "_compiled", broken)
    monkeypatch.setattr(generated, "cpp_compiler", lambda: "/usr/bin/g++")
    x = torch.randn(50, 7, requires_grad=True)
    with pytest.warns(UserWarning, match="cannot make a kernel here.*: cannot find -lgomp$") as told:
        compare(CDFLinearUnit("logistic", mu=0.5), x, torch.randn(50, 7))
    assert len(told) == 1
    assert kernels_for(x, 0.0, 1.0) is eager
