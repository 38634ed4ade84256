"""Names of activations: the table, what users may type, and how an activation of your own gets in.

Your own, in five lines, in any module that is imported before the model is built::

    from vit_gelu import register_activation

    @register_activation("sin", formula="sin(x)")
    class Sin(torch.nn.Module):
        def forward(self, x):
            return torch.sin(x)

or without registering, by import path: ``--activation my_package.my_module.Sin``.
"""

import importlib
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vit_gelu.activations import modules
from vit_gelu.suggest import nearest, unknown


@dataclass(frozen=True)
class ActivationSpec:
    """What is known about an activation without building it.

    Attributes:
        name: as the user types it.
        factory: makes a new module at each call; its signature is the activation's options.
        formula: as text.
        latex: as LaTeX, without dollar signs.
        paper: where it comes from.
        learnable: has parameters.
        stochastic: draws random numbers in training.
        gated: halves the last dimension, (..., 2h) -> (..., h).
    """

    name: str
    factory: Callable[..., nn.Module]
    formula: str = ""
    latex: str = ""
    paper: str = ""
    learnable: bool = False
    stochastic: bool = False
    gated: bool = False


ACTIVATIONS: dict[str, ActivationSpec] = {}

_built: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def register_activation(
    name: str,
    factory: Callable[..., nn.Module] | None = None,
    *,
    formula: str = "",
    latex: str = "",
    paper: str = "",
    learnable: bool = False,
    stochastic: bool = False,
    gated: bool = False,
    overwrite: bool = False,
) -> Any:
    """Add an activation to ``ACTIVATIONS``, called with a factory or as a decorator.

    Args:
        name: a word without dots (names with dots are import paths).
        factory: ``nn.Module`` subclass, or a function that returns a new module at each call.
        formula, latex, paper, learnable, stochastic, gated: see ``ActivationSpec``.
        overwrite: replace an activation of that name.

    Returns:
        The factory, unchanged; without one, a decorator.

    Raises:
        ValueError: the name is taken or not a word, or the factory is no factory.
    """
    if not name.isidentifier():
        raise ValueError(f"activation name {name!r}: must be one word of letters, digits and underscores")
    if name in ACTIVATIONS and not overwrite:
        raise ValueError(f"activation {name!r} exists already; pass overwrite=True to replace it")

    def add(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _check_factory(name, factory)
        ACTIVATIONS[name] = ActivationSpec(name, factory, formula, latex, paper, learnable, stochastic, gated)
        return factory

    return add if factory is None else add(factory)


def _check_factory(name: str, factory: Any) -> None:
    if isinstance(factory, nn.Module):
        raise ValueError(
            f"activation {name!r}: {type(factory).__name__} object given; "
            "give the class or a function, because each layer needs an object of its own"
        )
    if not callable(factory) or (isinstance(factory, type) and not issubclass(factory, nn.Module)):
        raise ValueError(
            f"activation {name!r}: {factory!r} is neither an nn.Module class nor a function that returns one"
        )


def resolve_activation(name: str) -> ActivationSpec:
    """The spec of a registered name or an import path (``package.module.Class``), without building it.

    Raises:
        ValueError: no such name (with the nearest ones), no such module or attribute, or not an activation.

    >>> resolve_activation("gelu_learnable").learnable
    True
    >>> resolve_activation("torch.nn.CELU").factory
    <class 'torch.nn.modules.activation.CELU'>
    """
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            unknown("activation", name, ACTIVATIONS) + ", or an import path (package.module.Class)"
        )
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"activation {name!r}: cannot import {module_name!r} ({error}); is its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, attribute):
        close = nearest(attribute, dir(module), n=1)
        hint = f"; did you mean {module_name}.{close[0]}?" if close else ""
        raise ValueError(f"activation {name!r}: module {module_name!r} has no {attribute!r}{hint}")
    factory = getattr(module, attribute)
    _check_factory(name, factory)

    def has(flag: str) -> bool:
        return getattr(factory, flag, False) is True

    return ActivationSpec(
        name, factory, learnable=has("learnable"), stochastic=has("stochastic"), gated=has("gated")
    )


def build_activation(name: str, **kwargs: Any) -> nn.Module:
    """A new module for a registered name or an import path; two calls never return the same object.

    Args:
        name: a key of ``ACTIVATIONS``, or ``package.module.Class``.
        kwargs: the activation's own options, such as ``alpha`` of ``elu``.

    Raises:
        ValueError: unknown name, an option that the activation does not have, or a value that it refuses.

    >>> build_activation("elu", alpha=0.5)
    ELU(alpha=0.5)
    """
    spec = resolve_activation(name)
    _check_options(spec, kwargs)
    try:
        module = spec.factory(**kwargs)
    except TypeError as error:  # its own refusal of an option's type, or of being built at all
        raise ValueError(f"activation {name!r} cannot be built: {error}") from error
    if not isinstance(module, nn.Module):
        raise ValueError(f"activation {name!r}: the factory returned {type(module).__name__}, no nn.Module")
    if module in _built:
        raise ValueError(f"activation {name!r}: the factory returned one object twice; layers must not share")
    _built.add(module)
    return module


def _check_options(spec: ActivationSpec, options: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(spec.factory)
    except ValueError:  # some extension types have none; they check for themselves
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        named = [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        wrong = next((o for o in options if o not in named), None)
        close = nearest(wrong, named, n=1) if wrong else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if inspect.isfunction(spec.factory) and not options:
            hint += "; a function of a tensor is no activation yet: put it into the forward of an nn.Module"
        takes = f"takes {', '.join(named)}" if named else "takes no options"
        raise ValueError(f"activation {spec.name!r}: {error}{hint}; it {takes}") from error


def _elu(alpha: float = 1.0) -> nn.Module:
    return nn.ELU(modules.real("alpha", alpha))


def _leaky_relu(negative_slope: float = 0.01) -> nn.Module:
    return modules.LeakyReLU(modules.real("negative_slope", negative_slope))


def _laplace_lu(
    mu: float = 0.0, sigma: float = 1.0, learnable: bool = False, num_channels: int | None = None
) -> nn.Module:
    return modules.CDFLinearUnit("laplace", mu, sigma, learnable, num_channels)


_GELU_PAPER = "Hendrycks & Gimpel 2016, arXiv:1606.08415"
_GLU_PAPER = "Shazeer 2020, arXiv:2002.05202"

# Torch's own modules where they are right, so that printed models and isinstance checks read as usual.
register_activation("gelu", modules.GELU, formula="x Phi(x)", latex=r"x\,\Phi(x)", paper=_GELU_PAPER)
register_activation(
    "gelu_tanh",
    modules.GELUTanh,
    formula="x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2",
    latex=r"\tfrac{x}{2}\left(1 + \tanh\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right)",
    paper=_GELU_PAPER,
)
register_activation(
    "gelu_sigmoid",
    modules.GELUSigmoid,
    formula="x sigmoid(1.702 x)",
    latex=r"x\,\sigma(1.702\,x)",
    paper=_GELU_PAPER,
)
register_activation(
    "relu", modules.ReLU, formula="max(x, 0)", latex=r"\max(x, 0)", paper="Nair & Hinton 2010, ICML"
)
register_activation(
    "elu",
    _elu,
    formula="x if x > 0 else alpha (exp(x) - 1)",
    latex=r"x \text{ if } x > 0 \text{ else } \alpha(e^x - 1)",
    paper="Clevert et al. 2015, arXiv:1511.07289",
)
register_activation(
    "silu",
    modules.SiLU,
    formula="x sigmoid(x)",
    latex=r"x\,\sigma(x)",
    paper="Hendrycks & Gimpel 2016, arXiv:1606.08415; Elfwing et al. 2017, arXiv:1702.03118",
)
register_activation(
    "gelu_learnable",
    modules.GELULearnable,
    formula="x Phi((x - mu)/sigma), mu and sigma learned",
    latex=r"x\,\Phi\left(\tfrac{x - \mu}{\sigma}\right)",
    paper=_GELU_PAPER,
    learnable=True,
)
register_activation(
    "gelu_stochastic",
    modules.GELUStochastic,
    formula="x m, m ~ Bernoulli(Phi(x)); x Phi(x) in evaluation",
    latex=r"x\,m,\; m \sim \operatorname{Bernoulli}(\Phi(x))",
    paper=_GELU_PAPER,
    stochastic=True,
)
register_activation(
    "laplace_lu",
    _laplace_lu,
    formula="x F((x - mu)/sigma), F the Laplace CDF",
    latex=r"x\,F\left(\tfrac{x - \mu}{\sigma}\right),\; F \text{ Laplace}",
    paper=f"after {_GELU_PAPER}",
)
register_activation(
    "leaky_relu",
    _leaky_relu,
    formula="x if x > 0 else negative_slope x",
    latex=r"\max(x, 0) + a \min(x, 0)",
    paper="Maas et al. 2013, ICML workshop",
)
register_activation(
    "prelu",
    modules.PReLU,
    formula="x if x > 0 else a x, a learned",
    latex=r"\max(x, 0) + a \min(x, 0)",
    paper="He et al. 2015, arXiv:1502.01852",
    learnable=True,
)
register_activation(
    "relu_squared",
    modules.ReLUSquared,
    formula="max(x, 0)^2",
    latex=r"\max(x, 0)^2",
    paper="So et al. 2021, arXiv:2109.08668",
)
register_activation(
    "mish",
    modules.Mish,
    formula="x tanh(log(1 + exp(x)))",
    latex=r"x\,\tanh(\log(1 + e^x))",
    paper="Misra 2019, arXiv:1908.08681",
)
register_activation(
    "hardswish",
    modules.Hardswish,
    formula="x min(max(x + 3, 0), 6) / 6",
    latex=r"\tfrac{x}{6}\min(\max(x + 3, 0), 6)",
    paper="Howard et al. 2019, arXiv:1905.02244",
)
register_activation(
    "softplus",
    modules.Softplus,
    formula="log(1 + exp(beta x)) / beta",
    latex=r"\tfrac1\beta\log(1 + e^{\beta x})",
    paper="Dugas et al. 2000, NIPS",
)
register_activation("tanh", lambda: nn.Tanh(), formula="tanh(x)", latex=r"\tanh x")
register_activation("identity", lambda: nn.Identity(), formula="x", latex="x")
register_activation(
    "swiglu",
    lambda: modules.GatedLinearUnit(nn.SiLU()),
    formula="silu(x1) x2 for the halves x1, x2 of the last dimension",
    latex=r"\operatorname{SiLU}(x_1) \otimes x_2",
    paper=_GLU_PAPER,
    gated=True,
)
register_activation(
    "geglu",
    lambda: modules.GatedLinearUnit(modules.GELU()),
    formula="gelu(x1) x2 for the halves x1, x2 of the last dimension",
    latex=r"\operatorname{GELU}(x_1) \otimes x_2",
    paper=_GLU_PAPER,
    gated=True,
)
register_activation(
    "reglu",
    lambda: modules.GatedLinearUnit(modules.ReLU()),
    formula="relu(x1) x2 for the halves x1, x2 of the last dimension",
    latex=r"\max(x_1, 0) \otimes x_2",
    paper=_GLU_PAPER,
    gated=True,
)
