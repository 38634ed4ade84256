"""Φ in compiled half precision on a CPU, against arbitrary precision and against what is compiled elsewhere."""

import math

import mpmath as mp
import pytest
import torch

from tests.activations.test_values import EXTREME, MODERATE, check, slope_scale
from vit_gelu.activations import CDFLinearUnit, build_activation
from vit_gelu.activations.half_precision import normal_cdf

HALF = [torch.bfloat16, torch.float16]


def compiled(module):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


def run(module, points, dtype):
    x = torch.tensor(points, dtype=dtype, requires_grad=True)
    y = module(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.dtype == slope.dtype == dtype
    return x.tolist(), y.tolist(), slope.tolist()


def test_the_fit_has_its_digits():
    points = torch.linspace(-13, 0, 2001).tolist()
    got = normal_cdf(torch.tensor(points)).double().tolist()
    true = [mp.erfc(-mp.mpf(x) / mp.sqrt(2)) / 2 for x in torch.tensor(points).tolist()]
    errors = [(x, abs(g / t - 1)) for x, g, t in zip(points, got, true, strict=True)]
    assert max(error for x, error in errors if x > -5) < 1.2e-5
    assert max(error for _, error in errors) < 5e-5
    assert normal_cdf(torch.tensor([-15.0, -1e30, -math.inf])).tolist() == [0.0, 0.0, 0.0]
    assert normal_cdf(torch.tensor(math.nan)).isnan()
    right = normal_cdf(torch.linspace(0, 13, 2001)) + normal_cdf(-torch.linspace(0, 13, 2001))
    assert (right - 1).abs().max() < 1e-7


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gelu_and_its_slope(dtype, oracle):
    truth = oracle("gelu")
    for x, y, slope in zip(*run(compiled(build_activation("gelu")), MODERATE + EXTREME, dtype), strict=True):
        true = truth.value(x)
        check(y, true, max(abs(true), abs(x)), dtype, f"gelu({x})")
        true = truth.slope(x)
        check(slope, true, slope_scale(x, true), dtype, f"gelu'({x})")


def test_small_negative_values_keep_their_digits():
    """bfloat16 reaches down to 1e-38, where 1 + erf is 0."""
    x, y, _ = run(compiled(build_activation("gelu")), [-5.0, -6.5, -8.0, -10.0, -12.0], torch.bfloat16)
    for point, value in zip(x, y, strict=True):
        true = float(point * mp.erfc(-mp.mpf(point) / mp.sqrt(2)) / 2)
        check(value, true, abs(true), torch.bfloat16, f"gelu({point})")
    assert torch.nn.functional.gelu(torch.tensor(-10.0, dtype=torch.bfloat16)) == 0.0


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("channels", [None, 5])
def test_learned_location_and_scale(dtype, channels):
    """Against float64 eager code, for x, μ and σ."""
    unit = CDFLinearUnit("normal", mu=0.3, sigma=1.5, learnable=True, num_channels=channels)
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(64, 5, generator=generator)).to(dtype).requires_grad_()
    grad = torch.randn(64, 5, generator=generator).to(dtype)
    y = compiled(unit)(x)
    got = torch.autograd.grad(y, (x, unit.mu, unit.log_sigma), grad)
    unit, wide = unit.double(), x.detach().double().requires_grad_()
    exact = unit(wide)
    expected = torch.autograd.grad(exact, (wide, unit.mu, unit.log_sigma), grad.double())
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), exact, rtol=0.51 * eps, atol=1e-5)
    torch.testing.assert_close(got[0].double(), expected[0], rtol=0.51 * eps, atol=3e-5)
    for mine, true in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-4, atol=1e-3)


def test_one_hidden_tensor_is_kept():
    """As in eager code: x, and nothing computed from it."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    x = torch.randn(64, 256, dtype=torch.bfloat16, requires_grad=True)
    act = compiled(build_activation("gelu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        act(x)
    assert sum(sizes) == x.numel() * 2


def test_export_shows_the_plain_activation():
    exported = torch.export.export(build_activation("gelu"), (torch.zeros(2, 3, dtype=torch.bfloat16),))
    assert [n.target for n in exported.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.gelu.default
    ]
