"""An object is called what builds the same function: asked of the objects of torch, timm, transformers and our own."""

import pytest
import torch
from timm.layers import activations as timm_activations
from timm.layers import activations_me as timm_efficient
from timm.layers import get_act_layer
from torch import nn

from vit_gelu.activations import ACTIVATIONS, build_activation
from vit_gelu.activations.recognition import (
    describe_activation,
    is_activation,
    is_bounded,
    name_activation,
)

X = torch.linspace(-6, 6, 241)
TORCH = [
    nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU(), nn.ELU(), nn.ELU(0.5), nn.LeakyReLU(), nn.LeakyReLU(0.2),
    nn.PReLU(), nn.Mish(), nn.Hardswish(), nn.Softplus(), nn.Softplus(beta=2.0), nn.Tanh(), nn.Identity(), nn.CELU(),
    nn.CELU(0.3), nn.SELU(), nn.ReLU6(), nn.Sigmoid(), nn.Hardsigmoid(),
]  # fmt: skip


def modules_of(*libraries):
    return [
        kind
        for library in libraries
        for kind in vars(library).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == library.__name__
    ]


def assert_named_rightly(module):
    named = name_activation(module)
    assert named is not None
    name, options = named
    torch.testing.assert_close(
        build_activation(name, **options).eval()(X), module.eval()(X), rtol=1e-5, atol=2e-6
    )


@pytest.mark.parametrize("module", TORCH, ids=str)
def test_torchs(module):
    assert_named_rightly(module)
    assert is_activation(module) is not isinstance(module, nn.Identity)


@pytest.mark.parametrize("kind", modules_of(timm_activations, timm_efficient), ids=lambda k: k.__name__)
def test_timms(kind):
    module = kind()
    assert is_activation(module)
    if "HardMish" in kind.__name__:  # nobody else has it
        assert name_activation(module) is None
    else:
        assert_named_rightly(module)


def test_transformers():
    activations = pytest.importorskip("transformers.activations")
    unknown = []
    for name in activations.ACT2CLS:
        if name == "xielu":
            continue
        module = activations.ACT2FN[name]
        if name_activation(module) is None:
            unknown.append(name)
        else:
            assert_named_rightly(module)
    # Clipped, a distribution function, a router's score: not in our table. Anything else would be a gap.
    assert set(unknown) <= {"gelu_10", "laplace", "sqrtsoftplus"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_our_own_names_come_back(name):
    assert name_activation(build_activation(name)) == (name, {})
    assert describe_activation(build_activation(name)) == name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("elu", {"alpha": 0.5}),
        ("leaky_relu", {"negative_slope": 0.2}),
        ("softplus", {"beta": 3.0}),
        ("prelu", {"num_channels": 8}),
        ("gelu_learnable", {"num_channels": 8}),
        ("laplace_lu", {"mu": 0.5, "sigma": 2.0}),
        ("laplace_lu", {"learnable": True, "num_channels": 4}),
    ],
)
def test_options_come_back(name, options):
    assert name_activation(build_activation(name, **options)) == (name, options)


def test_what_is_no_activation():
    for module in (nn.Softmax(), nn.Linear(2, 2), nn.MultiheadAttention(4, 2), nn.Identity(), nn.Dropout()):
        assert not is_activation(module)


def test_several_slopes_of_torchs_prelu_are_not_ours():
    assert name_activation(nn.PReLU(4)) is None


def test_a_squashing_one_is_known_as_such():
    squashing = ("sigmoid", "tanh", "hard_sigmoid")
    assert all(is_bounded(get_act_layer(name)()) for name in squashing)
    assert not any(is_bounded(get_act_layer(name)()) for name in ("gelu", "relu", "silu", "hard_swish"))
