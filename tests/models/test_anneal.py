"""From one activation to another by degrees: exact at the ends, the formula between, nothing left behind."""

import copy

import pytest
import torch
from torch import nn

from vit_gelu.activations import build_activation
from vit_gelu.models import VisionTransformer, build_vit
from vit_gelu.models.build import build_network
from vit_gelu.models.swap import Anneal, anneal_activations, swap_activations

SMALL = {"image_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 24, "depth": 2, "num_heads": 3}
X = torch.cat([torch.linspace(-5, 5, 101), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30])])


def net(**options):
    return VisionTransformer(**SMALL, seed=0, **options)


def images(n=4):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def blend(old, new, alpha):
    module = Anneal(build_activation(old), build_activation(new))
    module.set_alpha(alpha)
    return module


@pytest.mark.parametrize(
    ("old", "new"), [("gelu", "relu"), ("relu_squared", "identity"), ("silu", "softplus")]
)
def test_exact_at_both_ends(old, new):
    """To the bit: signed zeros too, and where the other one overflows."""
    for alpha, name in ((0.0, old), (1.0, new)):
        out = blend(old, new, alpha)(X)
        assert torch.equal(out.view(torch.int32), build_activation(name)(X).view(torch.int32))


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_between_the_ends(alpha):
    x = X[:101].double()
    expected = (1 - alpha) * torch.nn.functional.gelu(x) + alpha * x.clamp(min=0)
    torch.testing.assert_close(blend("gelu", "relu", alpha)(x), expected, rtol=1e-7, atol=1e-7)


def test_gradients():
    """Of the input as of the formula; of the new one's parameters from the start, in proportion to α."""
    for alpha in (0.0, 0.3, 1.0):
        module = blend("gelu", "gelu_learnable", alpha)
        alone = build_activation("gelu_learnable")
        x, y = (torch.linspace(-3, 3, 41).requires_grad_() for _ in range(2))
        module(x).sum().backward()
        ((1 - alpha) * torch.nn.functional.gelu(y) + alpha * alone(y)).sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
        torch.testing.assert_close(module.new.mu.grad, alone.mu.grad)
        assert (module.new.mu.grad.abs() > 0) == (alpha > 0)


def test_the_old_ones_parameters_are_frozen():
    model = net(activation="prelu")
    anneal = anneal_activations(model, "gelu_learnable")
    trained = {name for name, p in model.named_parameters() if p.requires_grad and ".act." in name}
    assert trained == {f"blocks.{i}.mlp.act.new.{p}" for i in range(2) for p in ("mu", "log_sigma")}
    assert model.blocks[0].mlp.act.new.mu.no_weight_decay
    anneal.finish()
    assert not [name for name in model.state_dict() if ".old." in name or ".new." in name]


@pytest.mark.parametrize("new", ["relu", "gelu_learnable", "prelu"])
def test_finished_is_a_network_built_with_the_new_one(new):
    model = net()
    before = copy.deepcopy(model).eval()(images())
    anneal = anneal_activations(model, new)
    assert torch.equal(model.eval()(images()), before)
    anneal.set_alpha(0.5)
    assert not torch.equal(model(images()), before) or new == "gelu_learnable"
    anneal.set_alpha(1.0)
    at_the_end = model(images())
    swap = anneal.finish()
    assert swap.replaced == tuple((f"blocks.{i}.mlp.act", "gelu", new) for i in range(2))
    assert not any(isinstance(m, Anneal) for m in model.modules())
    assert torch.equal(model(images()), at_the_end)
    built = build_vit("vit_tiny", **{**SMALL, "activation": new})
    built.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(built.eval()(images()), at_the_end)
    assert (model.config["activation"], model.config["activation_kwargs"]) == (new, {})
    assert not {"anneal", "anneal_alpha"} & model.config.keys()
    anneal.set_alpha(1.0)  # a schedule may go on
    with pytest.raises(ValueError, match="has been finished"):
        anneal.set_alpha(0.5)


def test_a_stopped_run_goes_on():
    """The config in a checkpoint builds the network as it stood, blend and all."""
    model = net(activation="prelu")
    anneal = anneal_activations(model, "laplace_lu", to_kwargs={"learnable": True})
    anneal.set_alpha(0.375)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    again = build_network(copy.deepcopy(model.config))
    again.load_state_dict(model.state_dict(), strict=True)
    assert again.config == model.config
    assert again.config["anneal"] == {"activation": "laplace_lu", "activation_kwargs": {"learnable": True}}
    torch.testing.assert_close(again.eval()(images()), model.eval()(images()), rtol=0, atol=0)
    assert not [name for name in model.state_dict() if "alpha" in name]


def test_stochastic_noise_is_drawn_at_each_call():
    module = blend("gelu_stochastic", "relu", 0.5).train()
    x = torch.full((20_000,), 0.7)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    # One draw of the mask, blended: x·m/2 + x/2 is 0.35 or 0.7.
    assert sorted({round(v, 4) for v in first.tolist()}) == [0.35, 0.7]
    module.eval()
    torch.testing.assert_close(module(x), (torch.nn.functional.gelu(x) + x) / 2)


def test_in_place_ones_do_not_spoil_the_other():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(8, 4)
    hidden = model[0](x)
    anneal = anneal_activations(model, "identity")
    anneal.set_alpha(1.0)
    torch.testing.assert_close(model(x), hidden)


def test_gated_ones():
    model = net(activation="swiglu")
    anneal = anneal_activations(model, "geglu")
    anneal.set_alpha(1.0)
    out = model.eval()(images())
    built = net(activation="geglu").eval()
    built.load_state_dict(model.state_dict())
    assert torch.equal(built(images()), out)
    with pytest.raises(ValueError, match="gated MLP"):
        anneal_activations(net(activation="swiglu"), "relu")


def test_what_is_refused():
    model = net()
    with pytest.raises(ValueError, match="all or none"):
        anneal_activations(model, "relu", only="blocks.0.*")
    anneal = anneal_activations(model, "relu")
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            anneal.set_alpha(alpha)
    with pytest.raises(ValueError, match="being annealed; finish that first"):
        swap_activations(model, "silu")


def test_alpha_follows_the_network():
    """α goes to the network's device, once for all places, and stays float32 whatever the network becomes."""
    model = net()
    anneal = anneal_activations(model, "relu")
    anneal.set_alpha(0.5)
    model.to(torch.bfloat16)
    blends = [m for m in model.modules() if isinstance(m, Anneal)]
    assert len({id(b.alpha) for b in blends}) == 1
    assert anneal.shared.tensor.dtype == torch.float32
    assert model(images().bfloat16()).dtype == torch.bfloat16
    assert blends[0](torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    model.to("meta")
    assert anneal.shared.tensor.device.type == "meta"
    independent = copy.deepcopy(anneal_activations(net(), "relu"))
    independent.set_alpha(0.75)
    blends = [m for m in independent.model.modules() if isinstance(m, Anneal)]
    assert {float(b.alpha.tensor) for b in blends} == {0.75}


def test_autocast_keeps_the_ends():
    module = blend("gelu", "softplus", 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(X[:50].bfloat16())
    assert torch.equal(out.float(), torch.nn.functional.gelu(X[:50].bfloat16()).float())


def test_another_alpha_compiles_nothing():
    """One graph for all of α: written in place, it is read anew at each call."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    anneal = anneal_activations(model, "gelu_learnable")
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(3, 4)
    outputs = []
    for alpha in (0.0, 0.1, 0.7, 1.0):
        anneal.set_alpha(alpha)
        outputs.append(compiled(x))
        torch.testing.assert_close(outputs[-1], model(x))
        outputs[-1].sum().backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_trains_to_the_end():
    """A few steps with α rising: the loss falls, no shock, and the learnable one has moved."""
    torch.manual_seed(0)
    model = net()
    anneal = anneal_activations(model, "gelu_learnable")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, y = images(16), torch.arange(16) % 5
    losses = []
    for step in range(12):
        anneal.set_alpha(min(1.0, step / 8))
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    anneal.finish()
    assert all(b.mlp.act.mu.item() != 0 for b in model.blocks)
