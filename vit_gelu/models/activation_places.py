"""Where a network keeps its activations, and which of them are those that a study of activations means.

The rule. An activation belongs to an **MLP** if its nearest telling ancestor is one: a module that is called so, by
its class (``Mlp``, ``MLPBlock``, ``FeedForward``, ``ViTIntermediate``) or by its attribute (``mlp``, ``ffn``). It is a
**gate**'s if that ancestor is attention or a pooler, or any ancestor is called ``attn``, or is squeeze-and-excitation,
global context or a position bias. Else it is **bounded** if it squashes into an interval (sigmoid, tanh), and
**hidden** if not: convolutions', stems', heads'. A network with MLPs has its MLPs' activations swapped and keeps the
others; one without (a ResNet) has all hidden ones swapped. Bounded ones are swapped where the user names them alone,
gates never.

What is called as a function (``F.gelu`` in a ``forward``) is no object and cannot be found; ``functional_calls`` says
where the source does so.
"""

import fnmatch
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from vit_gelu.activations.recognition import (
    LIBRARIES,
    describe_activation,
    is_activation,
    is_bounded,
)
from vit_gelu.models.blend import Anneal

MLP_CLASS = re.compile(r"mlp|ffn|feed_?forward|intermediate|swiglu", re.IGNORECASE)
MLP_NAME = re.compile(r"^(.*_)?(mlp|ffn|ff|feed_?forward|intermediate)(_.*|s?\d*)$", re.IGNORECASE)
GATE_CLASS = re.compile(r"attention|attn|pooler|gating", re.IGNORECASE)
GATE_NAME = re.compile(r"^(attn|attention|self_attn|gate|pooler)\d*$", re.IGNORECASE)
# Whatever an MLP does inside of these, it weighs channels or positions.
INNER_CLASS = re.compile(
    r"(?i:squeeze|excit)|^SE(Module|Layer|Block)?$|^EffectiveSE|^Eca|^Cbam|^GlobalContext$|RelPos(Mlp|Bias)"
)
INNER_NAME = re.compile(r"^(se\d*|.*cpb.*|.*rel_?pos.*)$", re.IGNORECASE)
# A gate's own activation, or the feature map of linear attention.
GATE_ATTRIBUTE = re.compile(r"^(gate|.*_gate|gate_.*|kernel_func)$")
HEAD_NAME = re.compile(r"^(head|heads|classifier|pre_logits)$")
ACTIVATION_NAME = re.compile(r"^(.*_)?(act|activation|nonlinearity)(\d*|_fn|_func|_layer)$")

# MLPs that compute act(x W) * (x V): what sits in them is half of a gated activation.
GATED_CLASS = re.compile(r"^(GluMlp|SwiGLU\w*|GEGLU\w*|\w*Glu)$")
GATED_CHILDREN = {"gate_proj", "fc1_g", "w_gate", "wi_0", "linear_v"}

_CALLS = re.compile(
    r"(?:\bF|functional|\btorch)\.(gelu|relu|relu6|silu|elu|celu|selu|mish|hardswish|leaky_relu|softplus)\("
)
_FUNCTIONS = {
    getattr(F, name): name
    for name in ("gelu", "relu", "silu", "elu", "mish", "hardswish", "leaky_relu", "selu", "softplus")
}


@dataclass(frozen=True, eq=False)
class Place:
    """Where an activation sits.

    Attributes:
        name: of the module in the network, such as ``blocks.0.mlp.act``.
        parent: the module that holds it.
        attribute: under which name the parent does.
        module: the activation.
        kind: mlp, hidden, bounded or gate.
        gated: takes a gated activation: (..., 2h) -> (..., h), or the gate of an MLP with two matrices in front.
        inner: holds the gate's own activation alone; the parent multiplies.
    """

    name: str
    parent: nn.Module
    attribute: str
    module: nn.Module
    kind: str
    gated: bool = False
    inner: bool = False

    def put(self, module: nn.Module) -> None:
        """Set another activation here, in the mode of the one before."""
        module.train(self.module.training)
        self.parent._modules[self.attribute] = module
        if getattr(self.parent, "activation_relu_or_gelu", 0):
            # torch's TransformerEncoderLayer would go on with its own fused ReLU or GELU in evaluation.
            self.parent.activation_relu_or_gelu = 0  # type: ignore[assignment]


def _kind(path: list[tuple[str, nn.Module]], attribute: str, module: nn.Module) -> str:
    """``path``: names and modules from the network's children down to the parent."""
    inside = (
        INNER_NAME.match(n) or GATE_NAME.match(n) or INNER_CLASS.search(type(m).__name__) for n, m in path
    )
    if any(inside) or GATE_ATTRIBUTE.match(attribute):
        return "gate"
    telling = [("mlp", MLP_NAME.match(attribute))]  # mlp_act of a parallel block
    for name, outer in reversed(path):
        made = type(outer).__name__
        if not HEAD_NAME.match(name) and not made.endswith(
            "Head"
        ):  # which may be called an MLP, and is no block's
            telling.append(("mlp", MLP_NAME.match(name) or MLP_CLASS.search(made)))
        telling.append(("gate", GATE_CLASS.search(made)))
    kind = next((kind for kind, match in telling if match), "")
    return kind or ("bounded" if is_bounded(module) else "hidden")


def _in_gated_mlp(parent: nn.Module) -> bool:
    names = {name for name, _ in parent.named_children()}
    return GATED_CLASS.match(type(parent).__name__) is not None or bool(names & GATED_CHILDREN)


def all_places(model: nn.Module) -> list[Place]:
    """Every activation object of a network, one entry per place, also where places share one object."""
    return list(_walk(model, [], "", set()))


def _walk(
    parent: nn.Module, path: list[tuple[str, nn.Module]], prefix: str, seen: set[int]
) -> Iterator[Place]:
    if id(parent) in seen:  # a block that is used twice
        return
    seen.add(id(parent))
    for attribute, module in list(parent._modules.items()):
        if module is None:
            continue
        name = f"{prefix}{attribute}"
        kind = _kind(path, attribute, module)
        # Inside an MLP anything under an activation's name is one, nn.Identity and the user's classes too.
        named = kind == "mlp" and ACTIVATION_NAME.match(attribute) is not None
        if (
            isinstance(module, Anneal)
            or is_activation(module)
            or (named and "Norm" not in type(parent).__name__ + type(module).__name__)
        ):
            inner = _in_gated_mlp(parent)
            gated = inner or getattr(module, "gated", False) is True
            yield Place(name, parent, attribute, module, kind, gated, inner)
        else:
            yield from _walk(module, [*path, (attribute, module)], f"{name}.", seen)


def find_places(model: nn.Module, only: str | None = None) -> tuple[list[Place], list[Place]]:
    """The activations that a swap means, and the others.

    Args:
        model: any network.
        only: glob over names of modules (``blocks.1?.*``, ``*.mlp.act``); it chooses among MLPs' and
            hidden activations alike, among bounded ones if it matches no others, never among gates. None: the rule
            above.

    Raises:
        ValueError: there is none; says what there is instead.
    """
    places = all_places(model)
    if only is None:
        mlps = [p for p in places if p.kind == "mlp"]
        chosen = mlps or [p for p in places if p.kind == "hidden"]
    else:
        matching = [p for p in places if fnmatch.fnmatchcase(p.name, only)]
        chosen = [p for p in matching if p.kind in ("mlp", "hidden")]
        chosen = chosen or [p for p in matching if p.kind == "bounded"]
    if not chosen:
        raise ValueError(_nothing(model, places, only))
    taken = {id(p) for p in chosen}
    return chosen, [p for p in places if id(p) not in taken]


def _nothing(model: nn.Module, places: list[Place], only: str | None) -> str:
    what = type(model).__name__
    found = ", ".join(summary(places)) or "none at all"
    if only is not None:
        matching = [p.name for p in places if fnmatch.fnmatchcase(p.name, only)]
        if matching:
            return f"only={only!r} names gates of {what} alone ({', '.join(matching[:3])}); they are never swapped"
        example = f"; one is called {places[0].name!r}" if places else ""
        return f"only={only!r} matches no activation of {what}{example}; there are: {found}"
    calls = functional_calls(model)
    where = f" ({'; '.join(calls[:3])})" if calls else ""
    return (
        f"{what} has no activation that could be swapped; activation objects in it: {found}.\n"
        f"Activations called as functions, such as F.gelu, cannot be found{where}: make them modules first"
    )


def summary(places: list[Place]) -> list[str]:
    """One phrase per function, in order: ``12 gelu (blocks.0.mlp.act …, mlp)``."""
    groups: dict[tuple[str, str], list[str]] = {}
    for place in places:
        groups.setdefault((describe_activation(place.module), place.kind), []).append(place.name)
    return [
        f"{len(names)} {what} ({names[0]}{' …' if len(names) > 1 else ''}, {kind})"
        for (what, kind), names in groups.items()
    ]


def _calls_of(kind: type[nn.Module]) -> tuple[str, ...]:
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ()
    return tuple(dict.fromkeys(_CALLS.findall(source)))


def functional_calls(model: nn.Module) -> list[str]:
    """Where a network's own code calls activations as functions, as far as its source shows: one phrase per class.

    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.act = F.gelu
    >>> functional_calls(Net())
    ['Net.act is the function gelu']
    """
    phrases: dict[str, None] = {}
    kinds: set[str] = set()
    for module in model.modules():
        if is_activation(module):
            continue
        kind = type(module).__name__
        if kind not in kinds:
            kinds.add(kind)
            phrases |= {f"{kind}.forward calls {name}": None for name in _calls_of(type(module))}
        for attribute, value in vars(module).items():
            if not inspect.isroutine(value):
                continue
            if value in _FUNCTIONS or getattr(value, "__module__", None) in LIBRARIES:
                name = _FUNCTIONS.get(value, value.__name__)
                phrases[f"{kind}.{attribute} is the function {name}"] = None
    return list(phrases)
