"""The table of names: what is in it, what users may type, what is refused and how."""

import pytest
import torch
from torch import nn

from vit_gelu.activations import (
    ACTIVATIONS,
    GatedLinearUnit,
    build_activation,
    functional,
    register_activation,
    registry,
    resolve_activation,
)

NAMES = [
    *("gelu", "gelu_tanh", "gelu_sigmoid", "relu", "elu", "silu"),
    *("gelu_learnable", "gelu_stochastic", "laplace_lu"),
    *("leaky_relu", "prelu", "relu_squared", "mish", "hardswish", "softplus", "tanh", "identity"),
    *("swiglu", "geglu", "reglu"),
]


@pytest.fixture(autouse=True)
def restore_table():
    before = dict(ACTIVATIONS)
    yield
    ACTIVATIONS.clear()
    ACTIVATIONS.update(before)


def test_names():
    assert list(ACTIVATIONS) == NAMES
    assert [n for n, s in ACTIVATIONS.items() if s.learnable] == ["gelu_learnable", "prelu"]
    assert [n for n, s in ACTIVATIONS.items() if s.stochastic] == ["gelu_stochastic"]
    assert [n for n, s in ACTIVATIONS.items() if s.gated] == ["swiglu", "geglu", "reglu"]


@pytest.mark.parametrize("name", NAMES)
def test_spec(name):
    spec = resolve_activation(name)
    assert spec is ACTIVATIONS[name]
    assert spec.name == name
    assert spec.formula
    assert spec.latex
    assert spec.paper or name in ("tanh", "identity")
    module = build_activation(name)
    assert getattr(module, "gated", False) == spec.gated
    assert isinstance(module, GatedLinearUnit) == spec.gated
    assert bool(list(module.parameters())) == spec.learnable
    x = torch.full((100,), 0.2)
    torch.manual_seed(0)
    differs = not torch.equal(module(x), module(x))
    assert differs == spec.stochastic


@pytest.mark.parametrize("name", [n for n in NAMES if not ACTIVATIONS[n].gated])
def test_function_and_module_agree(name):
    module, x = build_activation(name), torch.randn(50)
    torch.manual_seed(0)
    expected = module(x)
    torch.manual_seed(0)
    assert torch.equal(getattr(functional, name)(x, *module.parameters()), expected)


@pytest.mark.parametrize("name", [*NAMES, "torch.nn.CELU", "torch.nn.modules.activation.SELU"])
def test_each_build_is_a_new_object(name):
    first, second = build_activation(name), build_activation(name)
    assert first is not second
    parts = {id(m) for m in first.modules()} & {id(m) for m in second.modules()}
    assert not parts


def test_options_reach_the_module():
    x = torch.tensor([-1.0])
    assert build_activation("elu", alpha=2.0)(x).item() == pytest.approx(2 * (torch.e**-1 - 1))
    assert build_activation("leaky_relu", negative_slope=0.2)(x).item() == pytest.approx(-0.2)
    assert build_activation("softplus", beta=2.0)(x).item() == pytest.approx(0.0634640, rel=1e-5)
    assert build_activation("prelu", init=0.5)(x).item() == -0.5
    assert build_activation("laplace_lu", mu=-1.0, sigma=3.0)(x).item() == -0.5
    assert build_activation("torch.nn.CELU", alpha=3.0).alpha == 3.0
    assert sorted(build_activation("laplace_lu", learnable=True).state_dict()) == ["log_sigma", "mu"]
    assert build_activation("gelu_learnable", num_channels=8).mu.shape == (8,)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glue", "unknown activation 'glue'. Did you mean 'gelu'"),
        ("GELU", "Did you mean 'gelu'"),
        ("swish", "unknown activation 'swish'"),
        ("", "unknown activation ''"),
        (".gelu", "unknown activation '.gelu'"),
        ("torch..GELU", "unknown activation 'torch..GELU'"),
        ("no_such_package.Act", "cannot import 'no_such_package'"),
        ("torch.nn.GELLU", r"module 'torch.nn' has no 'GELLU'; did you mean torch.nn.GELU\?"),
        ("torch.Tensor", r"neither an nn\.Module class nor a function"),
        ("torch.pi", r"neither an nn\.Module class nor a function"),
    ],
)
def test_unknown_names(name, message):
    for refuse in (resolve_activation, build_activation):
        with pytest.raises(ValueError, match=message):
            refuse(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gelu", {"alpha": 1.0}, "activation 'gelu': .*'alpha'; it takes no options"),
        ("elu", {"alhpa": 1.0}, r"'alhpa'; did you mean 'alpha'\?; it takes alpha"),
        ("torch.nn.ELU", {"alfa": 1.0}, r"did you mean 'alpha'\?; it takes alpha, inplace"),
        (
            "torch.nn.functional.relu",
            {},
            "missing a required argument: 'input'; a function of a tensor is no",
        ),
        ("torch.nn.functional.gelu", {}, "'torch.nn.functional.gelu' cannot be built"),
        ("torch.get_default_device", {}, "the factory returned device, no nn.Module"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_activation(name, **options)


def test_import_path_reads_flags_of_the_class():
    spec = resolve_activation("vit_gelu.activations.GatedLinearUnit")
    assert (spec.name, spec.factory) == ("vit_gelu.activations.GatedLinearUnit", GatedLinearUnit)
    assert spec.gated
    assert not spec.stochastic
    assert resolve_activation("vit_gelu.activations.GELUStochastic").stochastic
    plain = resolve_activation("torch.nn.GELU")
    assert (plain.learnable, plain.stochastic, plain.gated) == (False, False, False)


def test_register():
    @register_activation("sin", formula="sin(x)", latex=r"\sin x", paper="none")
    class Sin(nn.Module):
        def __init__(self, frequency: float = 1.0):
            super().__init__()
            self.frequency = frequency

        def forward(self, x):
            return torch.sin(self.frequency * x)

    assert isinstance(Sin, type)
    assert ACTIVATIONS["sin"].formula == "sin(x)"
    assert build_activation("sin", frequency=2.0)(torch.tensor(1.0)).item() == pytest.approx(0.9092974)
    with pytest.raises(ValueError, match="it takes frequency"):
        build_activation("sin", amplitude=1.0)

    assert register_activation("cos", Sin, gated=True) is Sin
    assert ACTIVATIONS["cos"].gated


def test_register_refuses():
    with pytest.raises(ValueError, match="'gelu' exists already; pass overwrite=True"):
        register_activation("gelu", nn.Tanh)
    with pytest.raises(ValueError, match="'gelu' exists already"):
        register_activation("gelu")
    for name in ("my.act", "", "two words", "1st"):
        with pytest.raises(ValueError, match="must be one word"):
            register_activation(name, nn.Tanh)
    with pytest.raises(ValueError, match="GELU object given; give the class or a function"):
        register_activation("shared", nn.GELU())
    with pytest.raises(ValueError, match=r"neither an nn\.Module class nor a function"):
        register_activation("number", 3)
    with pytest.raises(ValueError, match=r"neither an nn\.Module class nor a function"):
        register_activation("text", str)
    assert list(ACTIVATIONS) == NAMES

    register_activation("gelu", nn.Tanh, overwrite=True)
    assert isinstance(build_activation("gelu"), nn.Tanh)


def test_a_factory_that_shares_one_object_is_refused():
    shared = nn.GELU()
    register_activation("shared", lambda: shared)
    build_activation("shared")
    with pytest.raises(ValueError, match="the factory returned one object twice"):
        build_activation("shared")


def test_documented_example_runs():
    example = registry.__doc__.split("::\n", 1)[1].split("\nor without", 1)[0]
    code = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    exec("import torch\n" + code, {})
    assert build_activation("sin")(torch.tensor(0.0)).item() == 0.0
