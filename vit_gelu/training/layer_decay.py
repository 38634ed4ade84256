"""Layer-wise learning-rate decay: layers near the image learn more slowly than those near the head."""

import re
from typing import Any

from torch import nn

from vit_gelu.models import VisionTransformer


def check_layer_decay(decay: float | None) -> None:
    """Refuse a factor that is not one.

    Raises:
        ValueError: out of range.
    """
    if decay is not None and not 0 < decay <= 1:
        raise ValueError(f"--model.layer_decay {decay}: must lie in (0, 1]; usual are 0.65 to 0.9")


def layer_scales(network: nn.Module, decay: float | None) -> dict[str, float] | None:
    """The factor on the learning rate of each parameter.

    Embeddings are layer 0, block i is layer i + 1, norm and head are the last layer, L; a parameter of layer l has
    the factor decay^(L − l). Clark et al. 2020, ELECTRA (arXiv:2003.10555), appendix A; for ViTs: Bao et al. 2021, BEiT
    (arXiv:2106.08254).

    Args:
        network: a ViT, or a timm model, whose own ``group_matcher`` says what its layers are.
        decay: factor from a layer to the one below, 0 < decay <= 1; None: no decay.

    Returns:
        Parameter name -> factor; None without decay.

    Raises:
        ValueError: decay out of range, or a network that does not say what its layers are.
    """
    check_layer_decay(decay)
    if decay is None:
        return None
    layers = _vit_layers(network) if isinstance(network, VisionTransformer) else _timm_layers(network)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _vit_layers(network: VisionTransformer) -> dict[str, int]:
    depth = len(network.blocks)
    layers = {}
    for name, _ in network.named_parameters():
        block = re.match(r"blocks\.(\d+)\.", name)
        embedding = name.startswith(("patch_embed.", "norm_pre.")) or name in (
            "cls_token",
            "reg_token",
            "pos_embed",
        )
        layers[name] = int(block[1]) + 1 if block else 0 if embedding else depth + 1
    return layers


def _timm_layers(network: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    model: Any = getattr(network, "timm_model", network)
    if not hasattr(model, "group_matcher"):
        raise ValueError(f"--model.layer_decay: {type(model).__name__} does not say what its layers are")
    return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
