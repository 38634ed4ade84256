"""What an activation object is called here, whoever made it: torch, timm, transformers, or this package."""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from vit_gelu.activations import modules
from vit_gelu.activations.registry import ACTIVATIONS

Options = dict[str, Any]
Named = tuple[str, Options]

# Modules whose every nn.Module is an activation. Those that are not installed or not loaded made no object.
LIBRARIES = ("timm.layers.activations", "timm.layers.activations_me", "transformers.activations")

# Elementwise and unary; not softmax, which weighs, and not attention, which torch keeps in the same file.
TORCH = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU,
    nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus,
    nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip

# What squashes into an interval may be the gate of something.
BOUNDED = {"Sigmoid", "Hardsigmoid", "HardSigmoid", "HardSigmoidMe", "Tanh", "Hardtanh", "Softsign"}
BOUNDED |= {"LaplaceActivation"}  # transformers' is a distribution function, not x times one

# Classes of anybody else's (open_clip's QuickGELU, a SquaredReLU): by how the field names them.
_BY_NAME = re.compile(r"(elu|gelu|relu|silu|swish|mish|activation)\d*$", re.IGNORECASE)

_SAME_IN_LIBRARIES = {
    "GELU": "gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "FastGELUActivation": "gelu_tanh",
    "AccurateGELUActivation": "gelu_tanh",
    "QuickGELU": "gelu_sigmoid",
    "QuickGELUActivation": "gelu_sigmoid",
    "Swish": "silu",
    "SwishMe": "silu",
    "SiLUActivation": "silu",
    "Mish": "mish",
    "MishMe": "mish",
    "MishActivation": "mish",
    "HardSwish": "hardswish",
    "HardSwishMe": "hardswish",
    "Tanh": "tanh",
    "LinearActivation": "identity",
    "ReLUSquaredActivation": "relu_squared",
    "Sigmoid": "torch.nn.Sigmoid",
    "HardSigmoid": "torch.nn.Hardsigmoid",
    "HardSigmoidMe": "torch.nn.Hardsigmoid",
}


def is_activation(module: nn.Module) -> bool:
    """Whether an object's class says that it is an activation; ``nn.Identity`` says nothing.

    >>> is_activation(nn.GELU()), is_activation(nn.Softmax()), is_activation(nn.Identity())
    (True, False, False)
    """
    kind = type(module)
    return (
        isinstance(module, TORCH)
        or kind.__module__ in LIBRARIES
        or kind.__module__ == modules.__name__
        or any(kind is spec.factory for spec in ACTIVATIONS.values())
        or (
            _BY_NAME.search(kind.__name__) is not None
            and all(isinstance(m, TORCH) for m in module.children())
        )
    )


def is_bounded(module: nn.Module) -> bool:
    """Whether an activation squashes into an interval, as gates do."""
    return type(module).__name__ in BOUNDED


def _or_default(name: str, options: Options, defaults: Options) -> Named:
    return name, {key: value for key, value in options.items() if value != defaults[key]}


def _prelu(module: nn.PReLU) -> Named | None:
    # torch counts channels along dimension 1, we along the last: the same thing only where there is one slope.
    return ("prelu", {}) if module.num_parameters == 1 else None


def _softplus(module: nn.Softplus) -> Named | None:
    return _or_default("softplus", {"beta": module.beta}, {"beta": 1.0}) if module.threshold == 20 else None


_OF_TORCH: dict[type[nn.Module], Callable[[Any], Named | None]] = {
    nn.GELU: lambda m: ("gelu" if m.approximate == "none" else "gelu_tanh", {}),
    nn.ReLU: lambda m: ("relu", {}),
    nn.SiLU: lambda m: ("silu", {}),
    nn.ELU: lambda m: _or_default("elu", {"alpha": m.alpha}, {"alpha": 1.0}),
    nn.LeakyReLU: lambda m: _or_default(
        "leaky_relu", {"negative_slope": m.negative_slope}, {"negative_slope": 0.01}
    ),
    nn.PReLU: _prelu,
    nn.Mish: lambda m: ("mish", {}),
    nn.Hardswish: lambda m: ("hardswish", {}),
    nn.Softplus: _softplus,
    nn.Tanh: lambda m: ("tanh", {}),
    nn.Identity: lambda m: ("identity", {}),
    nn.CELU: lambda m: _or_default("torch.nn.CELU", {"alpha": m.alpha}, {"alpha": 1.0}),
    nn.SELU: lambda m: ("torch.nn.SELU", {}),
    nn.ReLU6: lambda m: ("torch.nn.ReLU6", {}),
    nn.Sigmoid: lambda m: ("torch.nn.Sigmoid", {}),
    nn.Hardsigmoid: lambda m: ("torch.nn.Hardsigmoid", {}),
}


def _learned(module: nn.Parameter) -> Options:
    return {"num_channels": module.numel()} if module.numel() > 1 else {}


def _cdf_linear_unit(module: modules.CDFLinearUnit) -> Named:
    if module.learnable:
        options = {"learnable": True, **_learned(module.mu)}
    else:
        defaults = {"mu": 0.0, "sigma": 1.0}
        options = _or_default("", {"mu": module.fixed_mu, "sigma": module.fixed_sigma}, defaults)[1]
    if module.cdf == "laplace":
        return "laplace_lu", options
    return "vit_gelu.activations.CDFLinearUnit", {"cdf": module.cdf, **options}


def _gated(module: modules.GatedLinearUnit) -> Named | None:
    inner = name_activation(module.inner)
    return {"silu": ("swiglu", {}), "gelu": ("geglu", {}), "relu": ("reglu", {})}.get(
        inner[0] if inner else ""
    )


_OURS: dict[type[nn.Module], Callable[[Any], Named | None]] = {
    modules.GELUSigmoid: lambda m: ("gelu_sigmoid", {}),
    modules.Mish: lambda m: ("mish", {}),
    modules.ReLUSquared: lambda m: ("relu_squared", {}),
    modules.LeakyReLU: _OF_TORCH[nn.LeakyReLU],
    modules.Softplus: lambda m: _or_default("softplus", {"beta": m.beta}, {"beta": 1.0}),
    modules.PReLU: lambda m: ("prelu", _learned(m.weight)),
    modules.CDFLinearUnit: _cdf_linear_unit,
    modules.GELULearnable: lambda m: ("gelu_learnable", _learned(m.mu)),
    modules.GELUStochastic: lambda m: ("gelu_stochastic", {}),
    modules.GatedLinearUnit: _gated,
}


def name_activation(module: nn.Module) -> Named | None:
    """The name and the options under which ``build_activation`` makes this function; None where there is none.

    The same function in exact arithmetic, not the same code; values that were learned since are not in it.

    Args:
        module: of any maker.

    >>> name_activation(nn.ELU(alpha=0.5)), name_activation(nn.GELU(approximate="tanh"))
    (('elu', {'alpha': 0.5}), ('gelu_tanh', {}))
    """
    kind = type(module)
    for spec in ACTIVATIONS.values():
        if kind is spec.factory and kind not in _OURS:  # registered by the user
            return spec.name, {}
    known = _OURS.get(kind) or _OF_TORCH.get(kind)
    if known:
        return known(module)
    if kind.__module__ in LIBRARIES:
        if isinstance(module, nn.PReLU):
            return _prelu(module)
        name = _SAME_IN_LIBRARIES.get(kind.__name__)
        return (name, {}) if name else None
    return None


def describe_activation(module: nn.Module) -> str:
    """An activation for people: its name here with options that are not the defaults, else how it prints itself.

    >>> describe_activation(nn.ELU(alpha=0.5)), describe_activation(nn.Hardtanh())
    ('elu(alpha=0.5)', 'Hardtanh(min_val=-1.0, max_val=1.0)')
    """
    named = name_activation(module)
    if named is None:
        return " ".join(repr(module).split())
    name, options = named
    return name + (f"({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else "")
