"""An activation of the user's that gives something else than a tensor of the right shape and dtype."""

import pytest
import torch
from torch import nn

from vit_gelu.activations import build_activation, register_activation, registry
from vit_gelu.activations.trial import check_result
from vit_gelu.models import build_vit
from vit_gelu.models.swap import swap_activations


class Cut(nn.Module):
    def forward(self, x):
        return x[..., :3]


class Halved(nn.Module):
    def forward(self, x):
        a, b = x.chunk(2, dim=-1)
        return a * b


class HalvedAndSaysSo(Halved):
    gated = True


class GatedThatKeeps(nn.Module):
    gated = True

    def forward(self, x):
        return x


class Wide(nn.Module):
    def forward(self, x):
        return x.double()


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Particular(nn.Module):
    """Knows some sizes; others are its own affair."""

    def forward(self, x):
        if x.shape[1] not in (1, 65):
            raise RuntimeError("not this one")
        return x.relu()


class Counting(nn.Module):
    """Writes into its input, draws, and has a state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x.mul_(torch.rand(()))


WRONG = [
    (
        "Cut",
        r"gives float32 of shape \(2, 3, 3\) for float32 of shape \(2, 3, 48\); it must give float32 of shape",
    ),
    ("Halved", r"halves the last dimension: a class that does so must have `gated = True`"),
    ("GatedThatKeeps", r"gives float32 of shape \(2, 3, \d+\) .* it must give float32 of shape"),
    ("Wide", r"gives float64 of shape .* it must give float32"),
    ("Pair", r"gives tuple; it must give a tensor"),
]
SMALL = {"image_size": 32, "patch_size": 4, "num_classes": 3, "embed_dim": 12, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(("name", "message"), WRONG)
def test_a_network_is_not_built_with_it(name, message):
    with pytest.raises(ValueError, match=rf"activation '{__name__}.{name}' {message}"):
        build_vit("vit_tiny", activation=f"{__name__}.{name}", **SMALL)


@pytest.mark.parametrize(("name", "message"), [w for w in WRONG if w[0] != "GatedThatKeeps"])
def test_it_is_not_swapped_in(name, message):
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=f"activation '{__name__}.{name}' gives|halves"):
        swap_activations(model, f"{__name__}.{name}")
    assert isinstance(model[1], nn.GELU)


@pytest.mark.parametrize("name", ["HalvedAndSaysSo", "Particular"])
def test_what_fits_is_built_and_works(name):
    net = build_vit("vit_tiny", activation=f"{__name__}.{name}", seed=0, **SMALL)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_a_trial_leaves_no_trace():
    name = f"{__name__}.Counting"
    module = build_activation(name)
    before = torch.get_rng_state()
    check_result(module, name, 6, 6)
    assert module.calls == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_user_registers_is_tried_as_well(monkeypatch):
    monkeypatch.setattr(registry, "ACTIVATIONS", dict(registry.ACTIVATIONS))
    register_activation("cut_short", Cut, formula="", latex="", paper="")
    with pytest.raises(ValueError, match="activation 'cut_short' gives"):
        build_vit("vit_tiny", activation="cut_short", **SMALL)


@pytest.mark.parametrize(
    "name", ["gelu", "swiglu", "gelu_stochastic", "prelu", "torch.nn.CELU", "torch.nn.RReLU"]
)
def test_ours_and_torchs_pass(name):
    module = build_activation(name)
    check_result(module, name, 8, 4 if getattr(module, "gated", False) else 8)
