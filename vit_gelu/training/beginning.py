"""How the network of a run begins: from scratch, from a checkpoint, or as a model of timm.

From a checkpoint: built with the checkpoint's own activation, loaded strictly, adapted, and only then swapped; what
that did to the logits is said and recorded.
"""

import copy
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vit_gelu.models import build_vit
from vit_gelu.models.anneal import AnnealHandle, anneal_activations
from vit_gelu.models.build import Network, build_network
from vit_gelu.models.options import pair
from vit_gelu.models.pretrained import Pretrained, build_pretrained
from vit_gelu.models.swap import SwapEffect, compare_logits, swap_activations
from vit_gelu.models.timm_model import PREFIX, TimmModel, check_timm_name

COMPARED_IMAGES = 256
# What a ViT from scratch is where nothing else is asked for. A checkpoint, or a model of timm, has its own.
SCRATCH: dict[str, Any] = {
    "name": "vit_tiny",
    "activation": "gelu",
    "patch_size": 4,
    "mlp_ratio": 4.0,
    "pooling": "cls",
    "class_token": True,
    "position_embedding": "learned",
    "qk_norm": False,
    "register_tokens": 0,
    "stem": "patch",
    "zero_init_head": False,
}
# What a model of timm is not asked for: its default means nothing there.
NOT_TIMMS: dict[str, Any] = {
    **dict.fromkeys(set(SCRATCH) - {"name", "activation", "zero_init_head"}),
    **dict.fromkeys(("embed_dim", "depth", "num_heads", "layer_scale", "representation_size")),
    "attention_dropout": 0.0,
    "patch_dropout": 0.0,
    "attention": "auto",
    "mlp_memory": "fast",
    "init": "timm",
}
TIMMS_OWN = "timm"  # --model.pretrained of a model of timm: its weights from the hub


@dataclass
class Beginning:
    """A network that training starts from.

    Attributes:
        network: with its weights, and the activation that was asked for (or on its way there).
        anneal: blends the old activation into the new one; None where it is not asked for.
        lines: what was changed, a line each, for people.
        record: the same for ``record.json``; None for a network from scratch.
    """

    network: Network
    anneal: AnnealHandle | None = None
    lines: list[str] = field(default_factory=list)
    record: dict[str, Any] | None = None


def is_timm(name: str | None) -> bool:
    """Whether ``--model.name`` asks for a model of timm."""
    return name is not None and name.startswith(PREFIX)


def fill_defaults(options: MutableMapping[str, Any]) -> None:
    """Give a ViT from scratch the defaults of what was not asked for, in place; others keep None: their own."""
    if options.get("pretrained") is None and not is_timm(options["name"]):
        for name, default in SCRATCH.items():
            if options[name] is None:
                options[name] = default


def begin(
    options: dict[str, Any], data: Any, *, pretrained: Pretrained | str | None, annealed: bool
) -> Beginning:
    """The network that a run begins with.

    Args:
        options: ``name``, ``activation``, ``activation_kwargs``, ``seed`` and options of ``VisionTransformer``; None is
            not asked for.
        data: the run's images: ``image_size``, ``in_channels``, ``num_classes``, ``sample_images``.
        pretrained: a checkpoint; for a model of timm ``timm``, for its own weights.
        annealed: blend the old activation into the new one, instead of swapping at once.

    Raises:
        ValueError: options that make no network, contradict the checkpoint or do not fit the images.
    """
    shape = {
        "image_size": data.image_size,
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
    }
    if is_timm(options["name"]):
        return _begin_timm(options, shape, data, weights=pretrained is not None, annealed=annealed)
    if isinstance(pretrained, Pretrained):
        return _begin_pretrained(pretrained, options, shape, data, annealed)
    assert pretrained is None, "the checkpoint has not been read"
    return Beginning(build_vit(**{k: v for k, v in options.items() if v is not None}, **shape))


def begin_again(saved: dict[str, Any]) -> Beginning:
    """The network of a run that goes on, as its checkpoint's card describes it; the weights come with the checkpoint.

    Args:
        saved: the card.
    """
    config = dict(saved["network"])
    anneal, alpha = config.pop("anneal", None), config.pop("anneal_alpha", 0.0)
    beginning = Beginning(build_network(config), record=saved["origin"])
    if anneal is not None:
        kwargs = anneal["activation_kwargs"]
        beginning.anneal = anneal_activations(beginning.network, anneal["activation"], to_kwargs=kwargs)
        beginning.anneal.set_alpha(alpha)
    return beginning


def check_same_start(saved: dict[str, Any], options: dict[str, Any], source: str) -> None:
    """Refuse to go on with other options than those that the run from a checkpoint began with.

    Args:
        saved: the card of the run's own checkpoint.
        options: of the network, as for ``begin``.
        source: ``--model.pretrained``.

    Raises:
        ValueError: names the first that differs.
    """
    network, origin = saved["network"], saved.get("origin") or {}
    began = {**network, **(network.get("anneal") or {})}
    asked = {k: v for k, v in options.items() if v is not None and k not in ("zero_init_head", "layer_scale")}
    if isinstance(asked.get("patch_size"), int | tuple):
        asked["patch_size"] = list(pair("patch_size", asked["patch_size"]))
    if not is_timm(options["name"]):
        asked.pop("name", None)
        if origin.get("source") != source:
            raise ValueError(
                f"--ckpt_path: the run began from {origin.get('source', 'scratch')}, not --model.pretrained {source}"
            )
    if asked.get("activation") is None:
        asked.pop("activation_kwargs", None)
    for name, value in asked.items():
        if name in began and began[name] != value:
            raise ValueError(
                f"--ckpt_path: the checkpoint has network option {name} = {began[name]!r}, this run {value!r}; a run "
                "goes on only as it began"
            )


def _begin_pretrained(
    pretrained: Pretrained, options: dict[str, Any], shape: dict[str, Any], data: Any, annealed: bool
) -> Beginning:
    if options["name"] is not None:
        raise ValueError(
            f"--model.name {options['name']}: not with --model.pretrained, which says what the model is\n"
            "Is it the recipe's? --model.name null takes it back, as it does for other options of the network"
        )
    rest = {k: v for k, v in options.items() if k not in ("name", "activation", "activation_kwargs")}
    if rest["zero_init_head"] is None:
        rest["zero_init_head"] = True  # ViT paper, §3.2
    network, changes = build_pretrained(pretrained, **shape, **rest)
    lines = [*pretrained.notes, *(change.text for change in changes)]
    record: dict[str, Any] = {
        "source": pretrained.source,
        "name": pretrained.name,
        "origin": pretrained.origin,
        "sha256": pretrained.sha256,
        "activation": pretrained.options["activation"],
        "changes": list(lines),
        "swap": None,
    }
    beginning = Beginning(network, None, lines, record)
    own = pretrained.options["activation"], pretrained.options.get("activation_kwargs") or {}
    if (
        options["activation"] is not None
        and (options["activation"], options["activation_kwargs"] or {}) != own
    ):
        # With the checkpoint's own head: a new one, at zero, would show no difference.
        before, _ = build_pretrained(pretrained, **{**shape, "num_classes": None}, **rest)
        _swap(beginning, before, options, data, annealed)
    return beginning


def _begin_timm(
    options: dict[str, Any], shape: dict[str, Any], data: Any, *, weights: bool, annealed: bool
) -> Beginning:
    name, activation, kwargs = options["name"], options["activation"], options["activation_kwargs"]
    for option, default in NOT_TIMMS.items():
        if options.get(option, default) != default:
            raise ValueError(
                f"--model.{option} {options[option]}: not an option of {name}, which is timm's own"
            )
    rates = {"drop_path": "drop_path_rate", "dropout": "drop_rate"}
    own = {theirs: options[ours] for ours, theirs in rates.items() if options[ours]}
    if not weights:
        network = TimmModel(
            name, **shape, activation=activation, activation_kwargs=kwargs, seed=options["seed"], **own
        )
        return Beginning(network, lines=[f"{name}: activation {activation or network.native_activation}"])
    network = TimmModel(name, **shape, seed=options["seed"], pretrained=True, **own)
    record = {
        "source": name,
        "name": name,
        "origin": "timm",
        "activation": network.native_activation,
        "swap": None,
    }
    beginning = Beginning(network, None, [], record)
    if options["zero_init_head"] is not False and network.timm_model.num_classes != timm_classes(name):
        nn.init.zeros_(network.timm_model.get_classifier().weight)
        nn.init.zeros_(network.timm_model.get_classifier().bias)
    if activation is not None:
        before = TimmModel(
            name, **{**shape, "num_classes": timm_classes(name)}, seed=options["seed"], pretrained=True
        )
        _swap(beginning, before, options, data, annealed)
    return beginning


def timm_images(name: str) -> tuple[tuple[int, int], tuple[float, ...], tuple[float, ...]]:
    """Height and width, mean and standard deviation of the images that timm's weights of a model know.

    Raises:
        ValueError: timm has no such model, or no weights of it.
    """
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(check_timm_name(name))
    if config is None or not config.has_weights:
        raise ValueError(f"--model.pretrained {TIMMS_OWN}: timm has no weights of {name}")
    return (config.input_size[1], config.input_size[2]), tuple(config.mean), tuple(config.std)


def timm_classes(name: str) -> int:
    """How many classes the weights of a timm model know."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name.removeprefix(PREFIX))
    assert config is not None
    return int(config.num_classes)


def _swap(beginning: Beginning, before: Network, options: dict[str, Any], data: Any, annealed: bool) -> None:
    """Swap the activation of the beginning's network, and say what that does to the network ``before``."""
    activation, kwargs = options["activation"], options["activation_kwargs"]
    after = copy.deepcopy(before)
    swap = swap_activations(after, activation, to_kwargs=kwargs)
    effect = compare_logits(before, after, data.sample_images(COMPARED_IMAGES))
    if annealed:
        beginning.anneal = anneal_activations(beginning.network, activation, to_kwargs=kwargs)
    else:
        swap_activations(beginning.network, activation, to_kwargs=kwargs)
    assert beginning.record is not None
    beginning.record["swap"] = {**swap.record(), **_effect_record(effect, before), "annealed": annealed}
    how = "; blended in step by step" if annealed else ""
    beginning.lines.append(f"{swap.text}: {_effect_text(effect, before)}{how}")


def _has_logits(network: Network) -> bool:
    return bool(network.config.get("num_classes"))


def _effect_record(effect: SwapEffect, network: Network) -> dict[str, Any]:
    record = effect.record()
    return record if _has_logits(network) else {**record, "top1_agreement": None}


def _effect_text(effect: SwapEffect, network: Network) -> str:
    if _has_logits(network):
        return effect.text
    return (
        f"features moved by {effect.max_abs:.3g} (max), {effect.mean_abs:.3g} (mean) on {effect.n:,} images"
    )


def anneal_share(step: int, steps: int) -> float:
    """Share of the new activation at optimizer step ``step`` (from 0) of an annealing over ``steps`` steps.

    Linear: 0 at the first step, exactly 1 from step ``steps`` on.

    >>> [anneal_share(step, 4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, step / steps)
