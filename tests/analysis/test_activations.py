"""Statistics of activations against numpy on caught pre-activations, and closed forms of the slopes."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.analysis import activations as module
from vit_gelu.analysis.activations import (
    ActivationStatistics,
    is_elementwise,
    quantiles,
    watching_activations,
)
from vit_gelu.analysis.plots import PER_POINT
from vit_gelu.models import VisionTransformer
from vit_gelu.models.activation_places import find_places

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(activation, **options):
    vit = VisionTransformer(
        image_size=16, patch_size=8, num_classes=3, embed_dim=16, depth=2, num_heads=2, activation=activation, seed=2,
        **options,
    )  # fmt: skip
    with torch.no_grad():
        for block in vit.blocks:
            block.mlp.fc1.weight.mul_(60)
            block.mlp.fc1.bias[0] = -500  # never positive
            block.mlp.fc1.bias[1] = 500
    return vit.eval()


def caught(net, places):
    """What goes into each activation, from hooks of our own: float64 (rows, units)."""
    found = {}
    hooks = [
        p.module.register_forward_pre_hook(
            lambda module, inputs, name=p.name: found.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
        for p in places
    ]
    with torch.no_grad():
        for part in IMAGES.split(4):
            net(part)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts).double().numpy() for parts in found.values()]


def rows_of(net, places):
    with torch.no_grad(), watching_activations(places) as statistics:
        for part in IMAGES.split(4):
            net(part)
    return [s.row() for s in statistics]


def slope_of_gelu(x):
    return stats.norm.cdf(x) + x * stats.norm.pdf(x)


def slope_of_silu(x):
    s = 1 / (1 + np.exp(-x))
    return s + x * s * (1 - s)


SLOPES = {
    "gelu": slope_of_gelu,
    "relu": lambda x: (x > 0).astype(float),
    "silu": slope_of_silu,
    "elu": lambda x: np.where(x > 0, 1, np.exp(np.minimum(x, 0))),
    "identity": np.ones_like,
    "gelu_stochastic": slope_of_gelu,  # in evaluation it is GELU
    "tanh": lambda x: 1 - np.tanh(x) ** 2,
    "swiglu": slope_of_silu,
    "reglu": lambda x: (x > 0).astype(float),
}


@pytest.mark.parametrize("chunk", [module.CHUNK, 100])
@pytest.mark.parametrize("name", SLOPES)
def test_numbers_are_numpys(name, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    net = network(name)
    places, _ = find_places(net)
    for row, x in zip(rows_of(net, places), caught(net, places), strict=True):
        if ACTIVATIONS[name].gated:
            x = x[:, : x.shape[1] // 2]
        slope = SLOPES[name](x)
        assert row.activation == name
        assert (row.n, row.units) == (x.size, x.shape[1])
        assert row.mean == pytest.approx(x.mean(), abs=1e-6 * x.std())
        assert (row.sd, row.minimum, row.maximum) == pytest.approx((x.std(), x.min(), x.max()), rel=1e-5)
        assert row.negative == (x < 0).mean()
        # A slope on the border may fall to either side in float32.
        border = np.mean(np.abs(np.abs(slope) - 0.01) < 1e-5) + np.mean(
            np.abs(np.abs(slope - 1) - 0.01) < 1e-5
        )
        assert row.flat == pytest.approx(np.mean(np.abs(slope) <= 0.01), abs=border + 1e-12)
        assert row.linear == pytest.approx(np.mean(np.abs(slope - 1) <= 0.01), abs=border + 1e-12)
        assert row.flat + row.curved + row.linear == pytest.approx(1)
        assert row.flat_units == np.mean((np.abs(slope) <= 0.01).all(axis=0))
        assert row.linear_units == np.mean((np.abs(slope - 1) <= 0.01).all(axis=0))
        if name in ("gelu", "relu", "silu"):
            assert row.flat_units >= 1 / row.units
            assert row.linear_units >= 1 / row.units
        if name in ("relu", "reglu"):
            assert row.zero == (x <= 0).mean()
        inside = [q for q in row.quantiles if abs(q) < module.EDGE - 1]
        assert inside
        for q, value in zip(module.QUANTILES, row.quantiles, strict=True):
            if value in inside:
                below, above = np.quantile(x, q, method="lower"), np.quantile(x, q, method="higher")
                assert below - 0.0101 <= value <= above + 0.0101
        clipped = np.clip(x, -module.EDGE, module.EDGE)
        counts, _ = np.histogram(clipped, np.linspace(-module.EDGE, module.EDGE, module.BINS + 1))
        moved = np.abs(
            np.cumsum(counts) - np.cumsum(row.histogram.numpy())
        )  # float32 on an edge: one bin over
        assert moved.max() <= 3
        assert row.histogram.sum() == x.size


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_is_watched_and_left_as_it_was(name):
    net = network(name)
    with torch.no_grad():
        before = net(IMAGES)
        places, _ = find_places(net)
        with watching_activations(places) as statistics:
            during = net(IMAGES)
        after = net(IMAGES)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert all(s.row().flat is not None for s in statistics)


def test_work_in_place_is_watched():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))

        def forward(self, x):
            return self.mlp(x)

    torch.manual_seed(0)
    net, x = Net(), torch.randn(50, 4)
    places, _ = find_places(net)
    with torch.no_grad():
        expected = net(x)
        with watching_activations(places) as (statistics,):
            assert torch.equal(net(x), expected)
        hidden = net.mlp[0](x)
    assert statistics.row().zero == pytest.approx((hidden <= 0).double().mean().item())
    assert statistics.row().negative == pytest.approx((hidden < 0).double().mean().item())


def test_units_of_convolutions_are_channels():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 5, 3), nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x))

    net = Net()
    with torch.no_grad():
        net.conv.bias[2] = -1000
        with watching_activations(find_places(net)[0]) as (statistics,):
            net(IMAGES)
    row = statistics.row()
    assert row.units == 5
    assert row.flat_units == pytest.approx(1 / 5)
    assert row.n == 6 * 5 * 14 * 14


class Softmax(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class OverTokens(nn.Module):
    def forward(self, x):
        return x - x.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("kind", [Softmax, OverTokens])
def test_what_mixes_units_or_tokens_has_no_slope(kind):
    statistics = ActivationStatistics("act", kind())
    x = torch.randn(3, 5, 8)
    statistics.update(x)
    row = statistics.row()
    assert (row.flat, row.linear, row.curved, row.flat_units, row.linear_units) == (None,) * 5
    assert row.mean == pytest.approx(x.double().mean().item())
    assert row.zero == 0


def test_what_mixes_and_works_in_place_leaves_the_network_its_input():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.sub_(x.mean(dim=-1, keepdim=True))

    x = torch.randn(3, 5, 8)
    before = x.clone()
    statistics = ActivationStatistics("act", InPlace())
    statistics.update(x)
    assert torch.equal(x, before)
    assert statistics.row().flat is None


def test_elementwise_is_told_from_one_place_over_all():
    x = torch.randn(7, 9)
    assert is_elementwise(torch.tanh, x)
    assert is_elementwise(lambda x: torch.zeros_like(x), x)
    assert not is_elementwise(lambda x: x + 1e-2 * x.sum(), x)
    assert not is_elementwise(lambda x: x[..., :4] * x[..., 4:8], x)


def test_constant_function_is_flat_everywhere():
    statistics = ActivationStatistics("act", nn.Hardtanh(5.0, 6.0))
    statistics.update(torch.randn(4, 8))
    assert statistics.row().flat == 1
    assert statistics.row().flat_units == 1


def test_numbers_that_are_not_finite_are_an_error_with_the_place():
    for bad in (math.nan, math.inf, -math.inf):
        statistics = ActivationStatistics("blocks.3.mlp.act", nn.ReLU())
        with pytest.raises(ValueError, match=r"blocks\.3\.mlp\.act: .*not finite"):
            statistics.update(torch.tensor([[1.0, bad, 2.0]]))


def test_never_called_is_an_error():
    with pytest.raises(ValueError, match="not called"):
        ActivationStatistics("act", nn.ReLU()).row()


def test_shared_activation_is_counted_at_every_call():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(4, 4), "act": self.act})

        def forward(self, x):
            return self.mlp["act"](self.mlp["fc1"](self.act(x)))

    net = Net()
    with torch.no_grad(), watching_activations(find_places(net)[0]) as statistics:
        net(torch.randn(10, 4))
    assert [s.row().n for s in statistics] == [80]


def test_quantiles_of_tails_beyond_the_histogram():
    histogram = torch.zeros(module.BINS, dtype=torch.int64)
    histogram[0] = histogram[-1] = 50  # half from -100 to -20, half from 20 to 300
    found = quantiles(histogram, -100.0, 300.0)
    inner = module.EDGE - module.BIN
    assert found[0] == pytest.approx(-100 + 0.02 * (100 - inner))
    assert found[-1] == pytest.approx(300 - 0.02 * (300 - inner))
    assert list(found) == sorted(found)


def test_quantiles_of_one_value():
    statistics = ActivationStatistics("act", nn.ReLU())
    statistics.update(torch.full((10, 4), 0.123))
    assert statistics.row().quantiles == pytest.approx((0.123,) * 7, abs=1e-6)
    assert statistics.row().sd == pytest.approx(0, abs=1e-6)


def test_small_deviations_around_a_large_mean():
    x = (1000 + torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)) * 0.1).float()
    statistics = ActivationStatistics("act", nn.ReLU())
    for part in x.split(700):
        statistics.update(part)
    row = statistics.row()
    assert (row.mean, row.sd) == pytest.approx(
        (x.double().mean().item(), x.double().std(correction=0).item()), rel=1e-5
    )


def test_learned_parameters_are_told():
    net = network("gelu_learnable", activation_kwargs={"num_channels": 64})
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            block.mlp.act.mu.copy_(torch.linspace(0, i + 1, 64))
            block.mlp.act.log_sigma.fill_(math.log(1.5 + i))
    rows = rows_of(net, find_places(net)[0])
    assert [row.learned for row in rows] == [
        pytest.approx({"mu": 0.5, "sigma": 1.5}), pytest.approx({"mu": 1.0, "sigma": 2.5}),
    ]  # fmt: skip
    prelu = ActivationStatistics("act", nn.PReLU(init=0.3))
    prelu.update(torch.randn(4, 8))
    assert prelu.row().learned == pytest.approx({"weight": 0.3})


def test_numbers_of_bfloat16_make_no_comb():
    """Every bin within a power of two holds equally many of them, so that a picture of the counts is smooth."""
    x = torch.arange(-4, 4, 2.0**-6)[
        1:
    ].bfloat16()  # all that bfloat16 has from 2 to 4 in size, and some below
    statistics = ActivationStatistics("act", nn.ReLU())
    statistics.update(x[:, None])
    edges = torch.arange(module.BINS) * module.BIN - module.EDGE
    drawn = statistics.row().histogram.view(-1, PER_POINT).sum(dim=1)
    inside = (edges[::PER_POINT] >= 2) & (edges[::PER_POINT] + PER_POINT * module.BIN <= 3.9)
    assert inside.sum() > 20
    assert drawn[inside].unique().numel() == 1
