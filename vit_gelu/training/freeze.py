"""Which parameters of a network are not trained."""

from torch import nn

from vit_gelu.models import VisionTransformer
from vit_gelu.suggest import unknown

EMBEDDINGS = ("patch_embed", "norm_pre", "cls_token", "reg_token", "pos_embed")
BACKBONE = "backbone"


def freeze(network: nn.Module, what: str | int | list[str] | None) -> list[str]:
    """Stop training parts of a network, in place.

    Layers with running statistics none of whose parameters is trained keep their statistics from now on.

    Args:
        network: changed: ``requires_grad`` of the frozen parameters.
        what: ``backbone`` (all but the head), a number N (the embeddings and the first N blocks of a plain ViT), or
            names of modules and parameters such as ``[patch_embed, blocks.0]``; None: nothing.

    Returns:
        Names of the frozen parameters, in the network's order.

    Raises:
        ValueError: a name that the network does not have, or more blocks than there are.
    """
    if what is None:
        return []
    names = [name for name, _ in network.named_parameters()]
    if what == BACKBONE:
        frozen = [name for name in names if not _within(name, head_name(network))]
    else:
        parts = _parts(network, what)
        frozen = [name for name in names if any(_within(name, part) for part in parts)]
    for name in frozen:
        network.get_parameter(name).requires_grad_(False)
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if getattr(module, "track_running_stats", False) and own and not any(p.requires_grad for p in own):
            module.momentum = 0.0  # type: ignore[assignment]
    return frozen


def about_frozen(
    network: nn.Module,
    what: str | int | list[str] | None,
    frozen: list[str],
    layer_decay: float | None,
    *,
    learned: bool,
) -> list[str]:
    """A line about how much of a network is trained; none if all of it is.

    Args:
        learned: whether the frozen weights have been trained before.

    Raises:
        ValueError: a learning rate per layer where only the head is left to learn.
    """
    if not frozen:
        return []
    parameters = list(network.named_parameters())
    learning = [(name, p) for name, p in parameters if p.requires_grad]
    if layer_decay is not None and all(_within(name, head_name(network)) for name, _ in learning):
        raise ValueError(
            f"--model.layer_decay {layer_decay}: has no effect where --model.freeze {what} leaves only the head to "
            "train; set one of them to null"
        )
    count, of = (sum(p.numel() for _, p in some) for some in (learning, parameters))
    values = "" if learned else ", at its random values"
    return [f"frozen: {what}{values}; trained: {count:,} of {of:,} parameters"]


def head_name(network: nn.Module) -> str:
    """The name of the classifier: ``head``, or what a timm model calls it."""
    inner = getattr(network, "timm_model", None)
    if inner is None:
        return "head"
    classifier = inner.default_cfg.get("classifier", "head")
    return classifier if isinstance(classifier, str) else classifier[0]


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _parts(network: nn.Module, what: str | int | list[str]) -> list[str]:
    if isinstance(what, str) and what.isdecimal():
        what = int(what)
    if isinstance(what, int):
        if not isinstance(network, VisionTransformer):
            raise ValueError(
                f"--model.freeze {what}: a number of blocks is for plain ViTs; give names of modules"
            )
        if not 1 <= what <= len(network.blocks):
            raise ValueError(
                f"--model.freeze {what}: must lie between 1 and {len(network.blocks)}, the number of blocks"
            )
        absent = {name for name in EMBEDDINGS if getattr(network, name, None) is None}
        return [name for name in EMBEDDINGS if name not in absent] + [f"blocks.{i}" for i in range(what)]
    parts = [what] if isinstance(what, str) else what
    names = [name for name, _ in network.named_parameters()]
    for part in parts:
        if not any(_within(name, part) for name in names):
            modules = [
                name
                for name, module in network.named_modules()
                if name and next(module.parameters(), None) is not None
            ]
            raise ValueError(
                f"--model.freeze: {unknown('part', part, [BACKBONE, *modules, *names], limit=8)}"
            )
    return parts
