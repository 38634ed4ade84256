"""Every activation against arbitrary precision: values, slopes, extremes, NaN; in every dtype."""

import math

import pytest
import torch

from vit_gelu.activations import ACTIVATIONS, CDFLinearUnit, build_activation, derivatives, functional
from vit_gelu.activations.distributions import DISTRIBUTIONS

POINTWISE = [name for name, spec in ACTIVATIONS.items() if not spec.gated]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

MODERATE = [*torch.linspace(-8, 8, 97).tolist(), 0.0, 1e-4, -1e-4, 1e-12, -1e-12]
EXTREME = [sign * size for size in (10.0, 13.0, 21.0, 45.0, 88.0, 100.0, 1e3, 1e4) for sign in (1.0, -1.0)]


# torch's own, on a GPU: one sixth is rounded first; the slope is that of the rounded value.
COARSE = {("hardswish", torch.float64): 6.0, ("tanh", torch.bfloat16): 0.75}


def build(name, dtype, device, **options):
    """In evaluation mode, so that the stochastic one is its expectation; parameters at least float32."""
    return build_activation(name, **options).eval().to(device, torch.promote_types(dtype, torch.float32))


def run(module, points, dtype, device):
    x = torch.tensor(points, dtype=dtype, device=device, requires_grad=True)
    y = module(x)
    (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.dtype == slope.dtype == dtype
    return x.tolist(), y.tolist(), slope.tolist()


def check(
    got: float, true: float, scale: float, dtype, what: str, ulps: float = 2.0, most: float = 0.0
) -> None:
    """Error at most ``ulps`` units in the last place of ``scale``; in half precision, rounding it once; or ``most``."""
    info = torch.finfo(dtype)
    if abs(true) > info.max:
        assert got == math.copysign(math.inf, true), what
        return
    allowed = max(most, ulps if dtype in (torch.float64, torch.float32) else 0.51)
    smallest = info.smallest_normal * info.eps
    error = abs(got - true) / (info.eps * scale + smallest)
    assert error <= allowed, f"{what}: {got}, true {true}: off by {error:.2f} ulp"


def slope_scale(x: float, true: float) -> float:
    """What rounding of a slope F(x) + x·F′(x) is measured against; far out, x·F′(x) must be gone."""
    return max(1.0, abs(true), abs(x) if abs(x) < 50 else 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: these tests ran on the CPU only")
def test_cuda_is_covered(device):
    assert torch.zeros(1, device=device).device.type == device


def test_every_activation_has_an_oracle(oracle):
    for name in POINTWISE:
        oracle(name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_value_and_slope(name, dtype, device, oracle):
    truth = oracle(name)
    most = COARSE.get((name, dtype), 0.0) if device == "cuda" else 0.0
    for x, y, slope in zip(*run(build(name, dtype, device), MODERATE + EXTREME, dtype, device), strict=True):
        true = truth.value(x)
        check(y, true, max(abs(true), abs(x)), dtype, f"{name}({x})", most=most)
        if x not in truth.kinks:
            true = truth.slope(x)
            check(slope, true, slope_scale(x, true), dtype, f"{name}'({x})", ulps=3.0, most=most)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 0.5), (0.375, 1.25)])
@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_cdf_family(cdf, mu, sigma, learnable, dtype, device, cdf_oracle):
    unit = CDFLinearUnit(cdf, mu, sigma, learnable).to(device, torch.promote_types(dtype, torch.float32))
    # Rounding z = (x − μ)/σ, and log σ, shifts the value by some |x·F′(z)·z| units, of the order of |x|.
    truth = cdf_oracle(cdf, mu, math.exp(unit.log_sigma.item()) if learnable else sigma)
    for x, y, slope in zip(*run(unit, MODERATE + EXTREME, dtype, device), strict=True):
        check(y, truth.value(x), max(abs(x), mu), dtype, f"{cdf}({x})", ulps=4.0)
        if x not in truth.kinks:
            true = truth.slope(x)
            check(slope, true, slope_scale(x, true), dtype, f"{cdf}'({x})", ulps=6.0)


@pytest.mark.parametrize("name", POINTWISE)
def test_derivative_functions(name, oracle):
    truth, derivative = oracle(name), getattr(derivatives, name, None)
    arguments = {"gelu_learnable": (torch.zeros(1), torch.zeros(1)), "prelu": (torch.tensor([0.25]),)}
    if name == "gelu_stochastic":  # its slope is the mask
        return
    x = torch.tensor(MODERATE + EXTREME)
    for dtype in (torch.float32, torch.float64):
        slopes = derivative(x.to(dtype), *(a.to(dtype) for a in arguments.get(name, ())))
        assert slopes.dtype == dtype
        for at, slope in zip(x.tolist(), slopes.tolist(), strict=True):
            if at not in truth.kinks:
                true = truth.slope(at)
                check(slope, true, slope_scale(at, true), dtype, f"{name}'({at})", ulps=3.0)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "prelu", "hardswish", "elu", "relu_squared"])
def test_derivative_functions_at_kinks_agree_with_torch(name):
    module = build_activation(name)
    x = torch.tensor([-3.0, -0.0, 0.0, 3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(module(x).sum(), x)
    arguments = (torch.tensor([0.25]),) if name == "prelu" else ()
    assert torch.equal(getattr(derivatives, name)(x.detach(), *arguments), slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_backward_is_finite_at_extremes(name, dtype, device):
    """Twice, and for parameters. In float16 torch's own second derivatives overflow: only ours are asked."""
    module = build(name, dtype, device)
    x = torch.tensor([*EXTREME, 0.0, 1e-7, -1e-7], dtype=dtype, device=device, requires_grad=True)
    inputs = (x, *module.parameters())
    y = module(x)
    if not y.requires_grad or (dtype == torch.float16 and name in ("gelu", "gelu_stochastic")):
        return
    first = torch.autograd.grad(y.float().clamp(-1e6, 1e6).sum(), inputs, create_graph=True)
    assert all(g.isfinite().all() for g in first)
    if any(g.requires_grad for g in first):
        total = sum((g.float() * g.float().detach().sign()).sum() for g in first if g.requires_grad)
        second = torch.autograd.grad(total, inputs, allow_unused=True)
        assert all(g.isfinite().all() for g in second if g is not None)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_in_nan_out(name, dtype, training, device):
    module = build(name, dtype, device).train(training)
    x = torch.tensor([[1.0, math.nan, -5.0, 2.0], [0.0, 3.0, math.nan, 1.0]], dtype=dtype, device=device)
    nan = x.isnan()
    if ACTIVATIONS[name].gated:
        nan = nan[:, :2] | nan[:, 2:]
    assert torch.equal(module(x).isnan(), nan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", POINTWISE)
def test_infinity_gives_the_limit_or_nan(name, dtype, device):
    """Never another number, which would hide that a run has diverged."""
    limits = {"elu": -1.0, "tanh": -1.0, "identity": -math.inf, "prelu": -math.inf, "leaky_relu": -math.inf}
    x = torch.tensor([-math.inf, math.inf], dtype=dtype, device=device)
    for training in (False, True):
        low, high = build(name, dtype, device).train(training)(x).tolist()
        assert math.isnan(low) or low == limits.get(name, 0.0)
        assert math.isnan(high) or high == (1.0 if name == "tanh" else math.inf)


@pytest.mark.parametrize("parameter", ["mu", "log_sigma"])
@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_nan_parameter_shows(cdf, parameter, device):
    unit = CDFLinearUnit(cdf, learnable=True).to(device)
    getattr(unit, parameter).data.fill_(math.nan)
    assert unit(torch.tensor([-2.0, 0.5, 3.0], device=device)).isnan().all()


@pytest.mark.parametrize(
    "name",
    ["gelu_tanh", "gelu_sigmoid", "elu", "silu", "mish", "softplus", "tanh", "relu_squared", "leaky_relu"],
)
def test_left_tail_keeps_its_digits(name, oracle):
    """Relative, not absolute, accuracy, which GELU's kernel in torch does not have."""
    truth, points = oracle(name), [-2.0, -5.0, -10.0, -20.0, -40.0]
    for x, y, _ in zip(*run(build_activation(name), points, torch.float32, "cpu"), strict=True):
        assert y == pytest.approx(truth.value(x), rel=1e-5, abs=0)


@pytest.mark.parametrize("name", ["gelu_learnable", "gelu_sigmoid"])
def test_left_tail_keeps_its_digits_in_float64(name, oracle):
    for x, y, _ in zip(
        *run(build_activation(name).double(), [-5.0, -10.0, -30.0], torch.float64, "cpu"), strict=True
    ):
        assert y == pytest.approx(oracle(name).value(x), rel=1e-12, abs=0)


def test_members_of_the_family():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    torch.testing.assert_close(functional.cdf_linear_unit(x, "normal"), torch.nn.functional.gelu(x))
    torch.testing.assert_close(functional.cdf_linear_unit(x, "logistic"), torch.nn.functional.silu(x))
    torch.testing.assert_close(
        functional.cdf_linear_unit(x, "uniform", 0.0, 3.0), torch.nn.functional.hardswish(x)
    )
    torch.testing.assert_close(functional.cdf_linear_unit(x, "mish"), torch.nn.functional.mish(x))
    torch.testing.assert_close(
        functional.cdf_linear_unit(x, "normal_tanh"), torch.nn.functional.gelu(x, approximate="tanh")
    )
    torch.testing.assert_close(
        functional.cdf_linear_unit(x, "normal", 0.0, 1e-6), torch.relu(x), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("name", "inner"), [("swiglu", "silu"), ("geglu", "gelu"), ("reglu", "relu")])
def test_gated(name, inner, device):
    x = torch.randn(3, 5, 8, device=device, dtype=torch.float64)
    gate, value = x[..., :4], x[..., 4:]
    expected = getattr(torch.nn.functional, inner)(gate) * value
    assert torch.equal(build_activation(name)(x), expected)
