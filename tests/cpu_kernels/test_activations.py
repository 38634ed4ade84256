"""Activations in one pass over memory, where the processor has AMX: against float64, eager and compiled."""

import copy

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from vit_gelu.activations import build_activation
from vit_gelu.activations.compiled import cpu_options
from vit_gelu.activations.distributions import DISTRIBUTIONS
from vit_gelu.activations.formulas import cdf_product
from vit_gelu.cpu_kernels import activations, build

here = pytest.mark.skipif(build.instructions() != "amx", reason="needs a CPU with AMX, and a C++ compiler")
EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)  # each bfloat16 number there is
COMPILED = ["gelu", "gelu_tanh", "gelu_sigmoid", "silu", "laplace_lu", "mish", "hardswish"]
COMPILED += ["relu", "leaky_relu", "relu_squared"]


def moderate():
    """All numbers of size up to 1e4, in random order; of kinks' neighbourhood nothing is left out."""
    x = EVERY[EVERY.isfinite() & (EVERY.abs() <= 1e4)]
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]


def truth(kind, x, mu, sigma):
    """Values and slopes in float64."""
    x = x.double().requires_grad_()
    if kind == "squared":
        y = torch.relu(x) ** 2
    elif kind == "rectifier":
        y = torch.nn.functional.leaky_relu(x, mu)
    else:
        y = cdf_product(x, mu, sigma, DISTRIBUTIONS[kind])
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@here
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("kind", activations.KINDS)
def test_every_number_against_float64(kind, mu, sigma):
    """Rounded once, but for what rounding z = (x − μ)/σ to float32 does; relative errors in the left tail, too."""
    x = moderate()
    y, slope = truth(kind, x, mu, sigma)
    got = activations.value(x, kind, mu, sigma).double()
    by_x = activations.backward(torch.ones_like(x), x, kind, mu, sigma)[0].double()
    smallest = 2.0**-126  # below it the instruction that rounds gives 0
    torch.testing.assert_close(got, y, rtol=1.02 * 2.0**-8, atol=smallest)
    if kind == "uniform":  # at a kink the slope hangs on the rounding of z
        near = (((x.double() - mu) / sigma).abs() - 1).abs() < 1e-6
        by_x, slope = by_x[~near], slope[~near]
    torch.testing.assert_close(by_x, slope, rtol=1.02 * 2.0**-8, atol=3e-6)


@here
@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("kind", activations.KINDS)
def test_float32_against_float64(kind, mu, sigma):
    """To a few units in the last place of x, or of 1 for slopes; in the left tail F has relative errors."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(20000, generator=generator) * 10 ** torch.empty(20000).uniform_(
        -6, 4, generator=generator
    )
    x = torch.cat([3 * torch.randn(50000, generator=generator), spread.clamp(-1e4, 1e4), torch.tensor([0.0])])
    x = x[
        (((x.double() - mu) / sigma).abs() - 1).abs() > 1e-6
    ]  # at a kink the slope hangs on the rounding of z
    y, slope = truth(kind, x, mu, sigma)
    got = activations.value(x, kind, mu, sigma)
    (by_x, *_) = activations.backward(torch.ones_like(x), x, kind, mu, sigma)
    assert got.dtype == by_x.dtype == torch.float32
    unit = 2.0**-23
    assert ((got - y).abs() <= 4 * unit * torch.maximum(x.abs(), y.abs()) + 2e-38).all()
    reach = torch.where(x.abs() < 50, x.abs(), 0.0).clamp(min=1.0)
    assert ((by_x - slope).abs() <= 6 * unit * torch.maximum(reach, slope.abs())).all()
    tail = (x < -2) & (y.abs() > 1e-36)
    if tail.any() and kind != "uniform":
        torch.testing.assert_close(got[tail].double(), y[tail], rtol=5e-5, atol=0)


@here
@pytest.mark.parametrize("dtype", activations.DTYPES, ids=str)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_learned_parameters_against_float64(kind, dtype):
    """One μ and one σ: values are those for numbers, gradients those of float64, whatever the number of threads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(301, 1003, generator=generator).to(dtype)
    grad = torch.randn(301, 1003, generator=generator).to(dtype)
    mu, sigma = torch.tensor([0.3]), torch.tensor([0.7])
    x[(((x.double() - mu) / sigma).abs() - 1).abs() < 1e-6] = (
        0.0  # at a kink the slope hangs on the rounding of z
    )
    exact = [t.double().requires_grad_() for t in (x, mu, sigma)]
    y = cdf_product(*exact, DISTRIBUTIONS[kind])
    true = torch.autograd.grad(y, exact, grad.double())
    assert torch.equal(
        activations.value(x, kind, mu, sigma), activations.value(x, kind, mu.item(), sigma.item())
    )
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(activations.backward(grad, x, kind, mu, sigma))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    by_x, by_mu, by_sigma = results[0]
    assert torch.equal(by_x, activations.backward(grad, x, kind, mu.item(), sigma.item())[0])
    for got, expected in ((by_mu, true[1]), (by_sigma, true[2])):
        assert got.shape == (1,)
        torch.testing.assert_close(
            got.double(), expected, rtol=1e-4, atol=0.02
        )  # of sums of some 500 in size


@here
@pytest.mark.parametrize("kind", activations.KINDS)
def test_nan_and_infinity(kind):
    """NaN gives NaN; infinities their limits, or NaN."""
    inf = float("inf")
    x = torch.tensor([float("nan"), inf, -inf, 1.0]).bfloat16()
    y = activations.value(x, kind, 0.0, 1.0)
    assert y[0].isnan()
    assert y[3].isfinite()
    assert y[1].isnan() or y[1] == inf
    assert y[2].isnan() or y[2] == 0.0
    if kind not in ("rectifier", "squared"):
        assert activations.backward(torch.ones_like(x), x, kind, 0.0, 1.0)[0][0].isnan()


@here
@pytest.mark.parametrize("n", [1, 31, 33, 4097, 2**20 + 5, 2**20 + 64])
def test_any_size_and_number_of_threads(n):
    """With ends that fill no register, and so large that results go past the caches."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).bfloat16()
    grad = torch.randn(n, generator=torch.Generator().manual_seed(1)).bfloat16()
    before, gelu = torch.get_num_threads(), ("normal", 0.0, 1.0)
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((activations.value(x, *gelu), activations.backward(grad, x, *gelu)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))
    y, slope = truth("normal", x, 0.0, 1.0)
    torch.testing.assert_close(results[0][0].double(), y, rtol=2**-8, atol=1e-30)
    torch.testing.assert_close(results[0][1].double(), slope * grad.double(), rtol=2**-7, atol=1e-4)


@here
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_activations_use_them(name):
    """In training and without gradients; the hidden tensor alone is kept, as float64 would have it to rounding."""
    torch._dynamo.reset()
    module = build_activation(name)
    x = (3 * torch.randn(128, 1024, generator=torch.Generator().manual_seed(0))).bfloat16().requires_grad_()
    grad = torch.randn(128, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        y, codes = run_and_get_code(torch.compile(module, options=cpu_options()), x)
    (by_x,), backward_codes = run_and_get_code(lambda: torch.autograd.grad(y, x, grad))
    assert "vit_gelu.activation.default" in "".join(codes)
    assert "vit_gelu.activation_backward.default" in "".join(codes + backward_codes)
    assert sum(t.numel() * t.element_size() for t in kept) == x.numel() * 2
    exact = x.detach().double().requires_grad_()
    expected = module(exact)
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)
    (slope,) = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(by_x.double(), slope, rtol=2**-7, atol=2**-8)
    with torch.no_grad():
        assert torch.equal(torch.compile(module, options=cpu_options())(x), y)


@here
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "gelu_sigmoid", "mish", "relu", "leaky_relu"])
def test_eager_activations_use_them(name, monkeypatch):
    used = []
    for function in ("value", "backward"):
        original = getattr(activations, function)
        monkeypatch.setattr(
            activations, function, lambda *a, f=original, n=function: (used.append(n), f(*a))[1]
        )
    x = torch.randn(128, 1024).bfloat16().requires_grad_()
    build_activation(name)(x).sum().backward()
    assert used == ["value", "backward"]


@here
@pytest.mark.parametrize(
    "make", [lambda x: x[:, ::2], lambda x: x[:1], lambda x: x.half(), lambda x: x.double()]
)
def test_what_they_are_not_for(make):
    """Strided, small, or of another dtype: another kernel computes the same."""
    x = make(torch.randn(128, 1024).bfloat16())
    assert not activations.serves(x)
    torch.testing.assert_close(build_activation("gelu")(x), torch.nn.functional.gelu(x))


@here
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", "gelu_tanh"])
def test_eager_derivatives_of_any_kind(name):
    """First and second order, backward and forward mode, through vmap: those of float64."""
    module = build_activation(name)
    x = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tangent = torch.randn(128, 1024, generator=torch.Generator().manual_seed(1))
    wide = x.detach().double().requires_grad_()
    results = []
    for at, t in ((x, tangent), (wide, tangent.double())):
        (first,) = torch.autograd.grad((module(at) * t).sum(), at, create_graph=True)
        second = (
            torch.autograd.grad((first * t).sum(), at)[0] if first.requires_grad else torch.zeros_like(at)
        )
        _, forward = torch.func.jvp(module, (at.detach(),), (t,))
        rows = torch.func.vmap(torch.func.grad(lambda row: module(row).sum()))(at.detach())
        results.append([first.detach(), second, forward, rows])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@here
@pytest.mark.parametrize("options", [{}, {"num_channels": 1024}])
@pytest.mark.parametrize("compiling", [False, True])
def test_learned_units(options, compiling):
    """One pair per layer is for these kernels, one per channel is not; either way gradients are right."""
    torch._dynamo.reset()
    unit = build_activation("gelu_learnable", **options)
    x = torch.randn(128, 1024, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.randn(128, 1024, generator=torch.Generator().manual_seed(1))
    inputs = (x, *unit.parameters())
    y, codes = run_and_get_code(torch.compile(unit, options=cpu_options()) if compiling else unit, x)
    if compiling:
        assert ("vit_gelu.learned_activation.default" in "".join(codes)) == (not options)
    got = torch.autograd.grad(y, inputs, grad)
    exact = copy.deepcopy(unit).double()
    wide = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(exact(wide), (wide, *exact.parameters()), grad.double())
    for g, e in zip(got, expected, strict=True):
        assert g.shape == e.shape
        torch.testing.assert_close(g.double(), e, rtol=1e-4, atol=1e-3)


def test_elsewhere_they_are_refused(monkeypatch):
    monkeypatch.setattr(build, "library", lambda: None)
    with pytest.raises(RuntimeError, match="take bfloat16 or float32 and a CPU with AMX"):
        activations.value(torch.zeros(4).bfloat16(), "normal", 0.0, 1.0)


@here
def test_operators_are_proper():
    x = torch.randn(2**16).bfloat16()
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.vit_gelu.activation.default, (x, "mish", 0.0, 1.0), test_utils=tests)
    torch.library.opcheck(
        torch.ops.vit_gelu.activation_backward.default, (x, x, "mish", 0.0, 1.0), test_utils=tests
    )
    learned = torch.zeros(1), torch.ones(1)
    operators = torch.ops.vit_gelu
    torch.library.opcheck(operators.learned_activation.default, (x, "mish", *learned), test_utils=tests)
    inputs = (x, x, "mish", *learned)
    torch.library.opcheck(operators.learned_activation_backward.default, inputs, test_utils=tests)
