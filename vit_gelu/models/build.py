"""A network from its ``config``, as checkpoints have it: ours, or one of timm."""

from typing import Any

from vit_gelu.models.anneal import anneal_activations
from vit_gelu.models.timm_model import PREFIX, TimmModel
from vit_gelu.models.vit import VisionTransformer
from vit_gelu.suggest import nearest

Network = VisionTransformer | TimmModel


def build_network(config: dict[str, Any]) -> Network:
    """The network that a ``config`` describes, with initial weights.

    Its attention is computed by rule (see ``resolve_attention``): what ``config`` asks for may be for another device or
    for half precision alone.

    Args:
        config: that of a ``VisionTransformer`` or a ``TimmModel``; one with ``anneal`` and ``anneal_alpha`` is built
            in the midst of annealing, as it was.

    Raises:
        ValueError: options that no network has, or that make none.

    >>> small = VisionTransformer(8, 4, num_classes=3, embed_dim=8, depth=1, num_heads=2, seed=0)
    >>> build_network(small.config).config == small.config
    True
    """
    rest = dict(config)
    anneal, alpha = rest.pop("anneal", None), rest.pop("anneal_alpha", 0.0)
    name = rest.get("name")
    net: Network
    if isinstance(name, str) and name.startswith(PREFIX):
        net = TimmModel(**rest)
    else:
        known = [n for n in VisionTransformer.__init__.__annotations__ if n != "return"]
        for option in rest:
            if option not in known:
                close = nearest(option, known, n=1)
                hint = f" (nearest: {close[0]})" if close else ""
                raise ValueError(
                    f"network option {option!r} is unknown{hint}; was it written by a newer vit_gelu?"
                )
        net = VisionTransformer(**rest)
        net.use_attention("auto", "auto")
    if anneal:
        anneal_activations(net, anneal["activation"], to_kwargs=anneal["activation_kwargs"]).set_alpha(alpha)
    return net
