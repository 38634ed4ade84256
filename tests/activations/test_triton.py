"""The GPU kernels: numerics through Triton's interpreter on any machine, the real thing on a GPU."""

import itertools
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from vit_gelu.activations import CDFLinearUnit, bernoulli, build_activation
from vit_gelu.activations.autograd import kernels_for
from vit_gelu.activations.distributions import DISTRIBUTIONS
from vit_gelu.activations.formulas import cdf_product

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def compare(shape, dtype, per_channel, learned, cdf, device):
    """The kernels' values and gradients against autograd of the plain formula in float64."""
    from vit_gelu.activations import triton_kernels

    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    x.view(-1)[:4] = torch.tensor([0.0, 0.3, 1e4, -1e4])
    grad = torch.randn(shape, generator=generator).to(dtype)
    count = shape[-1] if per_channel else 1
    mu, sigma = torch.linspace(0.3, 0.5, count), torch.linspace(0.7, 1.1, count)
    # At a kink the slope hangs on the rounding of z.
    x[(((x.double() - mu) / sigma).abs() - 1).abs() < 1e-6] = 0.0
    inputs = [t.double().requires_grad_() for t in (x, mu, sigma)]
    y = cdf_product(*inputs, DISTRIBUTIONS[cdf])
    truth = torch.autograd.grad(y, inputs, grad.double())
    numbers = tuple(t.to(device) for t in (mu, sigma)) if learned else (mu.item(), sigma.item())
    got_y = triton_kernels.forward(x.to(device), *numbers, cdf)
    got = triton_kernels.backward(grad.to(device), x.to(device), *numbers, cdf)
    assert got_y.dtype == got[0].dtype == dtype
    # Rounding of z = (x − μ)/σ is part of it: a few units, as for the plain formula in float32.
    eps = torch.finfo(dtype).eps
    assert_close(got_y.cpu().double(), y.detach(), rtol=2 * eps, atol=8 * 2**-23)
    assert_close(got[0].cpu().double(), truth[0], rtol=2 * eps, atol=max(eps, 2**-20))
    if not learned:
        assert got[1:] == (None, None)
        return
    size = grad.abs().sum().item() * 3 * 2**-22
    for g, t in zip(got[1:], truth[1:], strict=True):
        assert_close(g.cpu().double(), t, rtol=1e-5, atol=size)


def check_all(device, shapes):
    for cdf, shape, (learned, per_channel) in itertools.product(
        DISTRIBUTIONS, shapes, [(False, False), (True, False), (True, True)]
    ):
        dtype = torch.bfloat16 if len(shape) == 2 else torch.float32
        compare(shape, dtype, per_channel, learned, cdf, device)


def check_masks(device, shapes):
    """The kernel's mask, word for word that of the formula; kept where it is kept, in either direction."""
    from vit_gelu.activations import triton_mask

    for shape, dtype in itertools.product(shapes, [torch.float32, torch.bfloat16, torch.float16]):
        generator = torch.Generator().manual_seed(0)
        x, grad = (2 * torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        x.view(-1)[:6] = torch.tensor([0.0, -0.0, 1e4, -1e4, float("nan"), 0.5])
        for seeds in ([0, 0], [-(2**31), 2**31 - 1], [123456789, -987654321]):
            words = torch.tensor(seeds, dtype=torch.int32)
            mask = bernoulli._threshold(x, bernoulli.hashed_bits(x, words))
            y = triton_mask.forward(x.to(device), words.to(device))
            by_x = triton_mask.backward(grad.to(device), y)
            differ = (y.cpu() != x * mask) & ~x.isnan()
            # Where a word lies within the rounding of erf, either is right.
            assert int(differ.sum()) <= x.numel() // 10_000
            assert y.isnan().sum() == 1
            assert torch.equal(by_x, torch.where(y == 0, 0 * grad.to(device), grad.to(device)))


@needs_triton
def test_kernels_through_the_interpreter():
    """In a process of its own, because Triton reads the variable when it is imported."""
    shapes = "[(3, 5, 6), (40, 300)]"
    code = (
        "from tests.activations.test_triton import check_all, check_masks;"
        f"check_all('cpu', {shapes}); check_masks('cpu', {shapes})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@needs_triton
@needs_gpu
def test_kernels_on_a_gpu():
    check_all("cuda", [(3, 5, 6), (40, 300), (8320, 768)])
    check_masks("cuda", [(3, 5, 6), (40, 300), (8320, 768)])


@needs_triton
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stochastic_gelu_on_a_gpu(dtype, monkeypatch):
    """Kept with probability Φ(x), drawn anew each time, repeated by a seed; with and without the kernels."""
    act, n = build_activation("gelu_stochastic").train(), 1 << 20
    for off in ("0", "1"):
        monkeypatch.setenv("VIT_GELU_NO_TRITON", off)
        for point in (-1.5, -0.5, 0.25, 1.0):
            x = torch.full((n,), point, dtype=dtype, device="cuda", requires_grad=True)
            torch.manual_seed(0)
            y, other = act(x), act(x)
            (grad,) = torch.autograd.grad(y.sum(), x)
            kept = int((y != 0).sum())
            share = 0.5 * (1 + torch.erf(torch.tensor(point) / 2**0.5).item())
            assert abs(kept - n * share) < 5 * (n * share * (1 - share)) ** 0.5
            assert torch.equal(grad, (y != 0).to(dtype))
            assert not torch.equal(y, other)
            torch.manual_seed(0)
            assert torch.equal(act(x), y)


@needs_triton
@needs_gpu
@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_unit_uses_the_kernels_and_repeats(cdf, monkeypatch):
    """Gradients are equal to the last bit from run to run, and near those without Triton."""
    x = torch.randn(4096, 512, device="cuda")
    weight = torch.randn_like(x)
    unit = CDFLinearUnit(cdf, 0.1, 0.9, learnable=True).cuda()

    def gradients():
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(unit(leaf), (leaf, *unit.parameters()), weight)

    assert kernels_for(x, 0.0, 1.0) is not None
    first, second = gradients(), gradients()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setenv("VIT_GELU_NO_TRITON", "1")
    assert kernels_for(x, 0.0, 1.0) is None
    for got, plain in zip(first, gradients(), strict=True):
        assert_close(got, plain, rtol=1e-4, atol=1e-2 if got.numel() == 1 else 1e-5)
