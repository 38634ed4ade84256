"""From one activation to another by degrees: (1 − α)·old(x) + α·new(x), with α rising while training goes on."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from vit_gelu.models.blend import Alpha, Anneal
from vit_gelu.models.replacement import Swap, build_replacements, networks_of_ours, report

__all__ = ["Anneal", "AnnealHandle", "anneal_activations", "finish_annealing"]


@dataclass
class AnnealHandle:
    """Steers an annealing.

    Attributes:
        model: the network.
        swap: what goes where, as of a swap.
        shared: what all blends read.
        networks: those of ours in the model, whose ``config`` says how far the blend is.
        alpha: the last α that was set.
        finished: whether the blends are gone.
    """

    model: nn.Module
    swap: Swap
    shared: Alpha
    networks: list[Any]
    alpha: float = 0.0
    finished: bool = False

    def set_alpha(self, alpha: float) -> None:
        """Set α everywhere; 0 is the old network, 1 the new one. Without effect on a finished one but at 1.

        Raises:
            ValueError: outside of [0, 1], or below 1 after ``finish``.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha {alpha}: must lie between 0 and 1")
        if self.finished and alpha != 1:
            raise ValueError(f"alpha {alpha}: the annealing has been finished")
        self.shared.set(alpha)
        self.alpha = float(alpha)
        for net in self.networks:
            if "anneal" in net.config:
                net.config["anneal_alpha"] = self.alpha

    def finish(self) -> Swap:
        """Leave the new activations alone in the network, whatever α is; its keys are then those of the new one."""
        finish_annealing(self.model)
        self.alpha, self.finished = 1.0, True
        return self.swap


def anneal_activations(
    model: nn.Module, to: str, *, to_kwargs: dict[str, Any] | None = None, only: str | None = None
) -> AnnealHandle:
    """Set a blend of the old and the new activation into each place that ``swap_activations`` would change; α = 0.

    Until ``finish``, keys in the state dict are ``….old.*`` and ``….new.*`` for activations with parameters, and the
    ``config`` of a network of ours keeps the old activation and has ``anneal`` (activation, activation_kwargs) and
    ``anneal_alpha``, with which ``build_network`` makes it again as it stands.

    Args:
        model, to, to_kwargs, only: see ``swap_activations``.

    Raises:
        ValueError: see ``swap_activations``; for a network of ours also with ``only``, which its config could not say.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    >>> anneal = anneal_activations(model, "relu")
    >>> anneal.set_alpha(0.5)
    >>> model[1](torch.tensor([1.0]))
    tensor([0.9207])
    >>> print(anneal.finish().text, model[1])
    gelu -> relu in 1 place (1) ReLU()
    """
    networks = networks_of_ours(model)
    if networks and only is not None:
        raise ValueError(
            f"only={only!r}: the activations of a {type(networks[0]).__name__} are annealed all or none"
        )
    pairs, left = build_replacements(model, to, to_kwargs, only)
    near = next(model.parameters(), None)
    alpha = Alpha()
    if near is not None:
        alpha.tensor = alpha.tensor.to(near.device)
    planned = report(model, to, to_kwargs, pairs, left)
    for place, new in pairs:
        place.put(Anneal(place.module, new, alpha))
    for net in networks:
        net.config["anneal"] = {"activation": to, "activation_kwargs": dict(to_kwargs or {})}
        net.config["anneal_alpha"] = 0.0
    return AnnealHandle(model, planned, alpha, networks)


def finish_annealing(model: nn.Module) -> int:
    """Put the new activation in the place of every blend; returns how many there were."""
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, Anneal)
    ]
    for parent, name in places:
        blend = parent._modules[name]
        assert isinstance(blend, Anneal)
        blend.new.train(blend.training)
        parent._modules[name] = blend.new
    for net in networks_of_ours(model):
        if anneal := net.config.pop("anneal", None):
            net.config.pop("anneal_alpha")
            net.config |= {
                "activation": anneal["activation"],
                "activation_kwargs": dict(anneal["activation_kwargs"]),
            }
    return len(places)
