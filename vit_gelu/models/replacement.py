"""New activations for the places of a network, and the report of a change; ``swap`` and ``anneal`` put them in."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from vit_gelu.activations import build_activation, resolve_activation
from vit_gelu.activations.modules import GatedLinearUnit
from vit_gelu.activations.recognition import describe_activation
from vit_gelu.activations.trial import check_result
from vit_gelu.models.activation_places import Place, find_places, functional_calls, summary
from vit_gelu.models.blend import Anneal

ANY_WIDTH = 8  # of the tensor that an activation is tried on: the network's own widths are not known here
MIXED = "mixed"


@dataclass(frozen=True)
class Swap:
    """What was changed: of ``swap_activations``, or of ``anneal_activations`` once it is finished.

    Attributes:
        to: the new activation's name.
        to_kwargs: its options.
        replaced: per place its module's name, and what was and is there.
        left: phrases about the activations that stay, such as ``3 relu (stem.act …, hidden)``.
        functional: where the network's code calls activations as functions, which stay too.
    """

    to: str
    to_kwargs: dict[str, Any]
    replaced: tuple[tuple[str, str, str], ...]
    left: tuple[str, ...] = ()
    functional: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """For people: ``gelu -> relu in 12 places (blocks.0.mlp.act … blocks.11.mlp.act)``, and what stays."""
        groups: dict[tuple[str, str], list[str]] = {}
        for name, old, new in self.replaced:
            groups.setdefault((old, new), []).append(name)
        lines = []
        for (old, new), names in groups.items():
            where = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
            places = "1 place" if len(names) == 1 else f"{len(names)} places"
            lines.append(f"{old} -> {new} in {places} ({where})")
        if self.left:
            lines.append(f"not swapped: {', '.join(self.left)}")
        if self.functional:
            lines.append(f"not swapped, as they are no objects: {', '.join(self.functional)}")
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """As it stands in ``record.json``."""
        return {
            "to": self.to,
            "to_kwargs": self.to_kwargs,
            "replaced": [{"module": name, "old": old, "new": new} for name, old, new in self.replaced],
            "left": list(self.left),
            "functional": list(self.functional),
        }


def build_replacements(
    model: nn.Module, to: str, to_kwargs: dict[str, Any] | None, only: str | None
) -> tuple[list[tuple[Place, nn.Module]], list[Place]]:
    """A new object for each place that ``find_places`` finds, on the place's device; nothing is changed yet.

    Raises:
        ValueError: see ``swap_activations``.
    """
    kwargs = dict(to_kwargs or {})
    resolve_activation(to)
    chosen, left = find_places(model, only)
    pairs = []
    for place in chosen:
        if isinstance(place.module, Anneal):
            raise ValueError(f"{place.name} is being annealed; finish that first")
        new = build_activation(to, **kwargs)
        gated = getattr(new, "gated", False) is True or resolve_activation(to).gated
        check_result(new, to, ANY_WIDTH, ANY_WIDTH // 2 if gated else ANY_WIDTH)
        _check_gating(place, to, gated)
        if place.inner:
            if not isinstance(new, GatedLinearUnit):
                raise ValueError(
                    f"{place.name} is the gate of {type(place.parent).__name__}, which multiplies by itself; "
                    f"{to} cannot be taken apart: use swiglu, geglu or reglu"
                )
            new = new.inner
        pairs.append((place, _like_surroundings(new, place, model)))
    return pairs, left


def _check_gating(place: Place, to: str, gated: bool) -> None:
    if place.gated == gated:
        return
    old = describe_activation(place.module)
    if place.gated:
        raise ValueError(
            f"cannot swap {old} in {place.name} for {to}: it sits in a gated MLP, whose first layer is two matrices "
            f"and would be one; gated activations fit (swiglu, geglu, reglu)"
        )
    raise ValueError(
        f"cannot swap {old} in {place.name} for {to}: a gated activation takes twice as many hidden units as it gives, "
        "and this MLP's first layer has but one matrix; train such a network from scratch"
    )


def _like_surroundings(new: nn.Module, place: Place, model: nn.Module) -> nn.Module:
    """Parameters of a new activation go where the network's are, and take their floating type."""
    if next(new.parameters(), None) is None:
        return new
    near = next(place.parent.parameters(), None)
    near = next(model.parameters(), None) if near is None else near
    return new if near is None else new.to(device=near.device, dtype=near.dtype)


def report(
    model: nn.Module,
    to: str,
    to_kwargs: dict[str, Any] | None,
    pairs: list[tuple[Place, nn.Module]],
    left: list[Place],
) -> Swap:
    """The ``Swap`` of what ``build_replacements`` gave."""
    replaced = tuple((p.name, describe_activation(p.module), describe_activation(new)) for p, new in pairs)
    return Swap(to, dict(to_kwargs or {}), replaced, tuple(summary(left)), tuple(functional_calls(model)))


def networks_of_ours(model: nn.Module) -> list[Any]:
    """The networks in a model that describe themselves by a ``config`` with an ``activation``."""

    def described(module: nn.Module) -> bool:
        config = getattr(module, "config", None)
        return isinstance(config, dict) and "activation" in config

    return [module for module in model.modules() if described(module)]


def note_activation(
    model: nn.Module, to: str, to_kwargs: dict[str, Any] | None, pairs: list[tuple[Place, nn.Module]]
) -> None:
    """Let the ``config`` of our own networks say what will be in them; to be called before it is put there.

    A network that ends up with several activations, or with new ones where building it puts none, is ``mixed``.
    """
    for net in networks_of_ours(model):
        inside = {id(module) for module in net.modules()}
        changed = {(id(p.parent), p.attribute): new for p, new in pairs if id(p.parent) in inside}
        if not changed:
            continue
        new = describe_activation(next(iter(changed.values())))
        try:
            meant = {(id(p.parent), p.attribute): describe_activation(p.module) for p in find_places(net)[0]}
        except ValueError:
            meant = {}
        uniform = changed.keys() <= meant.keys() and all(
            place in changed or old == new for place, old in meant.items()
        )
        net.config["activation"] = to if uniform else MIXED
        net.config["activation_kwargs"] = dict(to_kwargs or {}) if uniform else {}
