"""Gradients of first and second order, transforms, memory kept for backward, torch.compile, autocast."""

import copy
import math
import shutil
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.utils import run_and_get_code
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap
from torch.testing import assert_close

from vit_gelu.activations import (
    ACTIVATIONS,
    CDFLinearUnit,
    GatedLinearUnit,
    build_activation,
    eager,
    functional,
)
from vit_gelu.activations.compiled import cpu_options
from vit_gelu.activations.distributions import DISTRIBUTIONS
from vit_gelu.activations.formulas import cdf_product

CASES = {name: (lambda name=name: build_activation(name)) for name in ACTIVATIONS}
for cdf in DISTRIBUTIONS:
    CASES[f"{cdf} fixed"] = lambda cdf=cdf: CDFLinearUnit(cdf, mu=0.3, sigma=0.7)
    CASES[f"{cdf} scaled"] = lambda cdf=cdf: CDFLinearUnit(cdf, sigma=0.7)
    CASES[f"{cdf} learned"] = lambda cdf=cdf: CDFLinearUnit(cdf, mu=0.3, sigma=0.7, learnable=True)
    CASES[f"{cdf} per channel"] = lambda cdf=cdf: CDFLinearUnit(cdf, 0.3, 0.7, learnable=True, num_channels=6)
CASES["prelu per channel"] = lambda: build_activation("prelu", num_channels=6)

every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def as_function(module):
    """module(x; parameters) as a pure function, its noise repeated at each call, and the parameters."""
    names = [name for name, _ in module.named_parameters()]

    def call(x, *parameters):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    return call, [p.detach().clone().requires_grad_() for p in module.parameters()]


def sample(*shape, dtype=torch.float64):
    """Away from kinks, where a numerical derivative means nothing."""
    generator = torch.Generator().manual_seed(0)
    x = 2.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    for kink in (0.0, -3.0, 3.0, -0.4, 1.0, -0.7, 0.7, -1.0):
        x = torch.where((x - kink).abs() < 0.02, x + 0.05, x)
    return x.to(dtype)


@every_case
def test_gradcheck(make):
    call, parameters = as_function(make().double())
    inputs = (sample(4, 6).requires_grad_(), *parameters)
    assert gradcheck(call, inputs, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(call, inputs, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@every_case
def test_gradients_of_full_and_double_backward_agree(make):
    """With and without create_graph, which take different code."""
    module = make().double()
    x = sample(4, 6).requires_grad_()
    inputs = (x, *module.parameters())
    results = []
    for create_graph in (False, True):
        torch.manual_seed(0)
        y = module(x)
        weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        results.append(torch.autograd.grad(y, inputs, weight, create_graph=create_graph))
    for plain, graph in zip(*results, strict=True):
        assert_close(plain, graph, rtol=1e-12, atol=1e-14)


@every_case
def test_func_transforms(make):
    module = make().double()
    call, parameters = as_function(module)
    parameters = [p.detach() for p in parameters]
    x = sample(4, 6)

    def scalar(row, *parameters):
        return call(row, *parameters).square().sum()

    rows = vmap(grad(scalar), in_dims=(0, *(None for _ in parameters)), randomness="same")(x, *parameters)
    for row, got in zip(x, rows, strict=True):
        expected = row.clone().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            scalar(expected, *parameters).backward()
        assert_close(got, expected.grad)
    if any(getattr(m, "stochastic", False) for m in module.modules()):
        return  # forward mode runs vmap inside, where torch refuses to draw, as for dropout
    reverse = jacrev(jacrev(scalar))(x[0], *parameters)
    assert_close(hessian(scalar)(x[0], *parameters), reverse)
    assert_close(jacfwd(jacfwd(scalar))(x[0], *parameters), reverse)


@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_ensemble_of_parameters_under_vmap(cdf):
    module = CDFLinearUnit(cdf, learnable=True, num_channels=6).double()
    call, parameters = as_function(module)
    stacked = [torch.stack([p.detach(), p.detach() + 0.25]) for p in parameters]
    x = sample(4, 6)
    both = vmap(grad(lambda x, *p: call(x, *p).sum(), argnums=(0, 1, 2)), in_dims=(None, 0, 0))(x, *stacked)
    for i in range(2):
        inputs = [t.clone().requires_grad_() for t in (x, stacked[0][i], stacked[1][i])]
        expected = torch.autograd.grad(call(*inputs).sum(), inputs)
        for got, true in zip(both, expected, strict=True):
            assert_close(got[i], true)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(5, 7, 6), (64, 6), (6,), (1, 6), (0, 6), (3, 0)], ids=str)
@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_pieces_equal_the_plain_formula(cdf, shape, learned, dtype, monkeypatch):
    """Values and gradients, for pieces that do not divide the tensor."""
    monkeypatch.setattr(eager, "PIECE", 17)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    dist = DISTRIBUTIONS[cdf]
    wide = torch.promote_types(dtype, torch.float32)
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    weight = torch.randn(shape, generator=generator).to(dtype)
    mu, sigma = torch.tensor([0.3], dtype=wide), torch.tensor([0.7], dtype=wide)
    assert eager.fits(x, mu, sigma)
    numbers = (mu, sigma) if learned else (mu.item(), sigma.item())
    y = eager.forward(x, *numbers, cdf)
    grads = eager.backward(weight, x, *numbers, cdf)

    inputs = [t.clone().requires_grad_() for t in (x, mu, sigma)]
    expected = cdf_product(*inputs, dist)
    true_grads = torch.autograd.grad(expected, inputs, weight)
    tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    assert_close(y, expected.detach(), **tolerance)
    for got, true in zip(grads[: 3 if learned else 1], true_grads, strict=False):
        scale = 1 + weight.float().abs().sum().item() * 3  # rounding of what is summed up
        assert_close(got, true, rtol=tolerance["rtol"], atol=tolerance["atol"] * scale)
    assert grads[1:] == (None, None) or learned


@pytest.mark.parametrize(
    ("mu", "sigma", "fit"),
    [
        (0.0, 1.0, True),
        (-3, 2, True),
        (0.0, 1e-21, False),
        (0.0, -1.0, False),
        (0.0, math.nan, False),
        (math.inf, 1.0, False),
        (math.nan, 1.0, False),
        ([0.0, 1.0], [1.0, 2.0], True),
        ([0.0, math.nan], [1.0, 2.0], False),
        ([0.0, 1.0], [1.0, 1e-21], False),
        ([[0.0], [1.0]], [[1.0], [2.0]], False),
    ],
)
def test_pieces_are_for_tame_parameters(mu, sigma, fit):
    if isinstance(mu, list):
        mu, sigma = torch.tensor(mu), torch.tensor(sigma)
    assert eager.fits(torch.ones(3, 2), mu, sigma) is fit
    assert not eager.fits(torch.ones(3, 2).T, mu, sigma)  # not contiguous


@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_gradients_at_the_centre(cdf):
    """At x = μ ≠ 0, where |z| has no gradient of its own: formula, pieces and theory agree."""
    density = {"logistic": 0.25, "laplace": 0.5, "uniform": 0.5, "mish": 0.32}.get(cdf, 0.3989422804)
    share = {"mish": 0.6}.get(cdf, 0.5)
    x, mu, sigma = (torch.tensor([value], requires_grad=True) for value in (0.5, 0.5, 2.0))
    expected = (share + 0.5 * density / 2, -0.5 * density / 2, 0.0)
    formula = torch.autograd.grad(cdf_product(x, mu, sigma, DISTRIBUTIONS[cdf]), (x, mu, sigma))
    pieces = eager.backward(torch.ones(1), x.detach(), mu.detach(), sigma.detach(), cdf)
    for got in (formula, pieces):
        assert [g.item() for g in got] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("cdf", DISTRIBUTIONS)
def test_one_location_and_a_scale_per_channel(cdf):
    """μ and σ of different shapes: each gradient has its parameter's shape, and is right."""
    x, weight = sample(5, 6), torch.linspace(-1, 1, 30, dtype=torch.float64).view(5, 6)
    for sizes in ((1, 6), (6, 1)):
        mu = torch.full((sizes[0],), 0.3, dtype=torch.float64, requires_grad=True)
        sigma = torch.linspace(0.7, 1.2, sizes[1], dtype=torch.float64).requires_grad_()
        got = torch.autograd.grad(functional.cdf_linear_unit(x, cdf, mu, sigma), (mu, sigma), weight)
        expected = torch.autograd.grad(cdf_product(x, mu, sigma, DISTRIBUTIONS[cdf]), (mu, sigma), weight)
        assert_close(got, expected)


@every_case
def test_scalar_tensor(make):
    module = make()
    if any(p.numel() > 1 for p in module.parameters()) or isinstance(module, GatedLinearUnit):
        return
    x = torch.tensor(1.5, requires_grad=True)
    torch.manual_seed(0)
    y = module(x)
    y.backward()
    torch.manual_seed(0)
    row = torch.tensor([1.5], requires_grad=True)
    expected = module(row)
    expected.backward()
    assert y.shape == x.grad.shape == ()
    assert_close((y[None], x.grad[None]), (expected, row.grad))


@pytest.mark.parametrize("name", ["gelu_learnable", "gelu_sigmoid", "laplace_lu", "mish"])
def test_layouts(name):
    """Transposed, strided, expanded: equal to the contiguous result."""
    module = build_activation(name)
    base = sample(6, 8, dtype=torch.float32)
    permuted = base.view(2, 3, 8).permute(2, 0, 1)
    for view in (
        base.T,
        base[:, ::2],
        base[:, :4],
        base[:1].expand(6, 8),
        permuted,
    ):
        x = view.detach().requires_grad_()
        module(x).sum().backward()  # its gradient arrives expanded from a scalar
        plain = view.contiguous().detach().requires_grad_()
        y = module(plain)
        y.backward(torch.ones_like(y))
        assert_close(module(x), y)
        assert_close(x.grad, plain.grad)


def kept_bytes(module, x):
    """Bytes of distinct tensors, of x's size or so, that autograd keeps; parameters are small."""
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    del y
    return sum(size for size in kept.values() if size >= x.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_case
def test_one_hidden_tensor_is_kept(make, dtype):
    module = make()
    x = sample(128, 6, dtype=dtype).requires_grad_()
    own = x.numel() * x.element_size()
    kept = kept_bytes(module, x)
    if getattr(module, "stochastic", False):
        assert kept == x.numel()  # a mask of one byte each
    elif isinstance(module, GatedLinearUnit):
        assert kept <= 1.5 * own  # both halves, and the gate's output, half as wide
    else:
        assert kept <= own


class Each(torch.nn.Module):
    """Cases side by side, case i on x[i]: one compilation for all."""

    def __init__(self, names):
        super().__init__()
        self.cases = torch.nn.ModuleList(CASES[name]() for name in names)

    def forward(self, x):
        return [case(x[i]) for i, case in enumerate(self.cases)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_equals_eager(backend, dtype):
    """fullgraph=True: a graph break is an error. Values and all gradients; extremes included."""
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler for torch.compile")
    torch._dynamo.reset()
    few = [
        "gelu_sigmoid",
        "gelu_learnable",
        "gelu_stochastic",
        "mish",
        "laplace per channel",
        "uniform fixed",
    ]
    # Inductor takes seconds for each; what breaks a graph does so in any dtype.
    names = list(CASES) if (backend, dtype) == ("aot_eager", torch.float32) else few
    module = Each(names)
    points = torch.tensor([0.0, -0.5, 1e4, -1e4, 100.0, -100.0]).expand(1, 6)
    x = torch.cat([sample(7, 6, dtype=torch.float32), points]).to(dtype).expand(len(names), 8, 6)
    results = []
    options = cpu_options() if backend == "inductor" else None
    code = torch.compile(copy.deepcopy(module), fullgraph=True, backend=backend, options=options)
    for run in (module, code):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        ys = run(leaf)
        sum((y.float().clamp(-1e3, 1e3) * 0.1).sum() for y in ys).backward()
        cases = run.cases if isinstance(run, Each) else run._orig_mod.cases
        grads = [[p.grad for p in case.parameters()] for case in cases]
        results.append((ys, leaf.grad, grads))
    for i, name in enumerate(names):
        if "stochastic" in name:  # compiled code has its own random numbers
            continue
        (ys, grad_x, grads), (ys_c, grad_x_c, grads_c) = results
        assert ys_c[i].dtype == dtype
        eps = torch.finfo(dtype).eps
        close = partial(assert_close, msg=lambda message, name=name: f"{name}: {message}")
        close(ys_c[i], ys[i], rtol=16 * eps, atol=16 * eps)
        close(grad_x_c[i], grad_x[i], rtol=16 * eps, atol=16 * eps)
        for got, expected in zip(grads_c[i], grads[i], strict=True):
            close(got, expected, rtol=max(1e-4, eps), atol=1e-4)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardswish", "elu", "relu_squared", "mish"])
def test_compiled_keeps_no_boolean_mask(name):
    """Between fc1 and fc2; Inductor writes booleans without vector instructions on a CPU."""
    torch._dynamo.reset()
    kept = []

    def graph(module, inputs):
        kept.extend(
            node.meta["val"].dtype for node in next(iter(module.graph.find_nodes(op="output"))).args[0]
        )
        return make_boxed_func(module.forward)

    backend = aot_autograd(
        fw_compiler=graph,
        bw_compiler=lambda module, _: make_boxed_func(module.forward),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),  # as Inductor does
    )
    act = build_activation(name)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), act, torch.nn.Linear(8, 4))
    x = sample(16, 4, dtype=torch.float32)
    y = torch.compile(layers, fullgraph=True, backend=backend)(x)
    assert_close(y, layers(x))
    assert len(kept) > 1
    assert torch.bool not in kept


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "relu_squared"])
def test_inductor_keeps_no_boolean_mask(name):
    """At the sizes of a real MLP, where its partitioner decides otherwise than at toy sizes."""
    torch._dynamo.reset()
    layers = torch.nn.Sequential(torch.nn.Linear(128, 512), build_activation(name), torch.nn.Linear(512, 128))
    x = torch.randn(32, 32, 128)
    code = torch.compile(layers, fullgraph=True, options=cpu_options())
    _, codes = run_and_get_code(lambda: code(x).sum().backward())
    assert len(codes) == 2
    assert not [
        line for code in codes for line in code.splitlines() if "torch.bool" in line and "empty" in line
    ]


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0, -0.5])
def test_leaky_relu_compiled_is_the_same_to_the_bit(slope):
    torch._dynamo.reset()
    x = torch.tensor([-1e4, -1e-45, -0.0, 0.0, 1e-45, 3.0, float("nan"), float("inf"), -float("inf")])
    results = []
    for run in (
        functional.leaky_relu,
        torch.compile(functional.leaky_relu, fullgraph=True, backend="aot_eager"),
    ):
        leaf = x.clone().requires_grad_()
        y = run(leaf, slope)
        (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        assert torch.equal(leaf[:6], x[:6])  # not overwritten
        grad[6] = 0.0  # a NaN has no slope; torch's kernels themselves do not agree
        results.append((y, grad))
    assert_close(results[1], results[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_autocast_keeps_the_dtype(name, amp, device):
    module = build_activation(name).to(device)
    for dtype in (torch.float32, amp):
        x = torch.randn(2, 8, device=device).to(dtype).requires_grad_()
        with torch.autocast(device, dtype=amp):
            y = module(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype
        assert all(p.grad.dtype == p.dtype == torch.float32 for p in module.parameters())
