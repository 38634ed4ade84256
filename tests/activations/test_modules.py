"""Modules: parameters, copies, the stochastic one's law, refusals."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_gelu.activations import ACTIVATIONS, CDFLinearUnit, GatedLinearUnit, build_activation, eager

PARAMETERS = {"gelu_learnable": ["log_sigma", "mu"], "prelu": ["weight"]}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_parameters_are_named_and_keep_out_of_weight_decay(name):
    module = build_activation(name)
    assert sorted(module.state_dict()) == PARAMETERS.get(name, [])
    assert bool(list(module.parameters())) == ACTIVATIONS[name].learnable
    copies = [module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    for duplicate in copies:
        for parameter in duplicate.parameters():
            assert parameter.no_weight_decay is True
            assert parameter.requires_grad
            assert parameter.shape == (1,)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_copies_compute_the_same_and_share_nothing(name):
    module = build_activation(name)
    x = torch.randn(3, 8)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    loaded = build_activation(name)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for duplicate in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        torch.manual_seed(0)
        expected = module(x)
        torch.manual_seed(0)
        assert torch.equal(duplicate(x), expected)
        memory = {p.data_ptr() for p in module.parameters()}
        assert not memory & {p.data_ptr() for p in duplicate.parameters()}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_input_is_left_alone(name):
    x = torch.randn(4, 8)
    before = x.clone()
    module = build_activation(name)
    assert module(x).dtype == x.dtype
    assert torch.equal(x, before)


def test_learnable_starts_as_gelu_and_learns():
    torch.manual_seed(0)
    x = torch.randn(2000)
    target = x * torch.special.ndtr((x - 0.5) / 0.4)
    unit = build_activation("gelu_learnable")
    gelu = x.double() * torch.special.ndtr(x.double())  # torch's own float32 GELU is off by up to 3 eps of x
    assert ((unit(x) - gelu).abs() <= 2 * torch.finfo(x.dtype).eps * x.abs().clamp(min=1.0)).all()
    optimizer = torch.optim.LBFGS(unit.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (unit(x) - target).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert unit.mu.item() == pytest.approx(0.5, abs=1e-3)
    assert unit.log_sigma.exp().item() == pytest.approx(0.4, abs=1e-3)


def test_per_channel():
    unit = CDFLinearUnit("normal", learnable=True, num_channels=3)
    unit.mu.data = torch.tensor([0.0, 1.0, -2.0])
    unit.log_sigma.data = torch.tensor([0.0, 0.5, -1.0])
    x = torch.randn(4, 5, 3)
    for channel in range(3):
        one = CDFLinearUnit("normal", unit.mu[channel].item(), unit.log_sigma[channel].exp().item())
        torch.testing.assert_close(unit(x)[..., channel], one(x[..., channel]), rtol=1e-5, atol=1e-6)
    prelu = build_activation("prelu", num_channels=3)
    prelu.weight.data = torch.tensor([0.0, 0.5, 2.0])
    assert torch.equal(prelu(-torch.ones(2, 4, 3)), torch.tensor([0.0, -0.5, -2.0]).expand(2, 4, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stochastic_law(dtype, device):
    """Every output is x or 0; the share of x is Φ(x) within five standard errors; its mean is so GELU."""
    unit, n = build_activation("gelu_stochastic"), 100_000
    torch.manual_seed(0)
    for value in (-3.0, -1.0, -0.1, 0.1, 0.5, 2.0):
        x = torch.full((n,), value, dtype=dtype, device=device)
        y = unit(x)
        assert y.dtype == dtype
        assert set(y.abs().unique().tolist()) <= {0.0, abs(x[0].item())}
        chance = 0.5 * math.erfc(-x[0].item() / math.sqrt(2))
        share = (y != 0).double().mean().item()
        assert abs(share - chance) < 5 * math.sqrt(chance * (1 - chance) / n)
    for value, kept in ((-30.0, False), (30.0, True)):
        assert unit(torch.full((n,), value, dtype=dtype, device=device)).ne(0).all().item() == kept


def test_stochastic_draws_are_independent_and_reproducible():
    unit = build_activation("gelu_stochastic")
    x = torch.full((2, 50_000), 0.3)
    torch.manual_seed(5)
    first, second = unit(x), unit(x)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(unit(x), first)
    draws = torch.cat([first, second]).ne(0).double()
    correlation = torch.corrcoef(draws) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(50_000)


def test_stochastic_draws_do_not_depend_on_pieces_or_layout(monkeypatch):
    unit, x = build_activation("gelu_stochastic"), torch.randn(61, 7)
    results = []
    for piece, given in ((1 << 16, x), (21, x), (1 << 16, x.T.contiguous().T)):
        monkeypatch.setattr(eager, "PIECE", piece)
        torch.manual_seed(5)
        results.append(unit(given))
    assert all(torch.equal(y, results[0]) for y in results)


def test_stochastic_under_vmap():
    """randomness="different": each sample draws its own; "same": all share one."""
    unit, x = build_activation("gelu_stochastic"), torch.full((3, 5001), 0.3)
    for randomness in ("same", "different"):
        masks = torch.func.vmap(unit, randomness=randomness)(x) != 0
        assert torch.equal(masks[0], masks[1]) == (randomness == "same")
        assert (masks.double().mean(1) - 0.6179).abs().max() < 5 * math.sqrt(0.24 / 5001)


def test_stochastic_gradient_is_the_mask():
    unit = build_activation("gelu_stochastic")
    x = torch.randn(1000, requires_grad=True)
    y = unit(x)
    weight = torch.randn(1000)
    (grad,) = torch.autograd.grad(y, x, weight)
    assert torch.equal(grad, torch.where(y != 0, weight, 0 * weight))
    assert 0 < (y != 0).sum() < 1000


def test_stochastic_is_gelu_in_evaluation():
    x = torch.randn(1000)
    state = torch.get_rng_state()
    assert torch.equal(build_activation("gelu_stochastic").eval()(x), F.gelu(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_stochastic_compiled_reproduces():
    torch._dynamo.reset()
    unit = torch.compile(build_activation("gelu_stochastic"), fullgraph=True, backend="aot_eager")
    x = torch.randn(10_000, requires_grad=True)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        y = unit(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad, (y != 0).to(grad.dtype))
        runs.append(y.detach())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_gate_is_the_first_half():
    class Weights(nn.Module):
        def forward(self, x):
            return torch.full_like(x, 10.0)

    assert torch.equal(
        GatedLinearUnit(Weights())(torch.tensor([1.0, 2.0, 3.0, 4.0])), torch.tensor([30.0, 40.0])
    )
    assert GatedLinearUnit(Weights()).gated is True
    with pytest.raises(ValueError, match="halves the last dimension, which is odd: 5"):
        build_activation("swiglu")(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("laplace_lu", {"sigma": 0.0}, "sigma=0.0: must be a positive number"),
        ("laplace_lu", {"sigma": -1}, "sigma=-1: must be a positive number"),
        ("laplace_lu", {"mu": math.nan}, "mu=nan: must be a finite number"),
        ("laplace_lu", {"mu": "0"}, "mu='0': must be a finite number"),
        ("laplace_lu", {"num_channels": 4}, "num_channels=4: needs learnable=true"),
        ("gelu_learnable", {"num_channels": 0}, "num_channels=0: must be a positive integer, or null"),
        ("prelu", {"num_channels": True}, "num_channels=True: must be a positive integer, or null"),
        ("elu", {"alpha": True}, "alpha=True: must be a finite number"),
        ("softplus", {"beta": 0}, "beta=0: must be a positive number"),
        ("leaky_relu", {"negative_slope": math.inf}, "negative_slope=inf: must be a finite number"),
        (
            "vit_gelu.activations.CDFLinearUnit",
            {"cdf": "norml"},
            "unknown cdf 'norml'. Did you mean 'normal'",
        ),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        build_activation(name, **options)
