"""How the network of a run begins: from scratch, from a checkpoint, or as a model of timm.

From a checkpoint: built with the checkpoint's own activation, loaded strictly, adapted, and only then swapped; what
that did to the logits is said and recorded.
"""

from collections.abc import MutableMapping
from typing import Any

from vit_gelu.models import build_vit
from vit_gelu.models.anneal import anneal_activations
from vit_gelu.models.build import Network, build_network
from vit_gelu.models.options import pair
from vit_gelu.models.pretrained import Pretrained, build_pretrained
from vit_gelu.models.vit import VIT_SIZES
from vit_gelu.suggest import unknown
from vit_gelu.training.scratch import SCRATCH
from vit_gelu.training.start import Beginning, swap_and_say
from vit_gelu.training.timm_start import begin_timm, is_timm


def fill_defaults(options: MutableMapping[str, Any]) -> None:
    """Give a ViT from scratch the defaults of what was not asked for, in place; others keep None: their own."""
    if options.get("pretrained") is None and not is_timm(options["name"]):
        for name, default in SCRATCH.items():
            if options[name] is None:
                options[name] = default


def begin(
    options: dict[str, Any], data: Any, *, pretrained: Pretrained | str | None, anneal_steps: int | None
) -> Beginning:
    """The network that a run begins with.

    Args:
        options: ``name``, ``activation``, ``activation_kwargs``, ``seed`` and options of ``VisionTransformer``; None is
            not asked for.
        data: the run's images: ``image_size``, ``in_channels``, ``num_classes``, ``class_names``, ``fingerprint``,
            ``val_fraction``, ``source``, ``sample_images``.
        pretrained: a checkpoint; for a model of timm ``timm``, for its own weights.
        anneal_steps: blend the old activation into the new one over so many steps, instead of swapping at once.

    Raises:
        ValueError: options that make no network, contradict the checkpoint or do not fit the images.
    """
    shape = {
        "image_size": data.image_size,
        "in_channels": data.in_channels,
        "num_classes": data.num_classes,
    }
    if is_timm(options["name"]):
        return begin_timm(options, shape, data, weights=pretrained is not None, anneal_steps=anneal_steps)
    if isinstance(pretrained, Pretrained):
        try:
            return _begin_pretrained(pretrained, options, shape, data, anneal_steps)
        except ValueError as error:  # the models do not know what the data's options are called
            option = "--data.upsample" if data.upsample else "--data.image_size"
            raise ValueError(str(error).replace("--model.image_size", option)) from None
    assert pretrained is None, "the checkpoint has not been read"
    if options["name"] not in VIT_SIZES:
        raise ValueError(f"--model.name: {unknown('model', options['name'], VIT_SIZES)}, or timm/NAME")
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
    pretrained: Pretrained,
    options: dict[str, Any],
    shape: dict[str, Any],
    data: Any,
    anneal_steps: int | None,
) -> Beginning:
    if options["name"] is not None:
        asked = [k for k in SCRATCH if k not in ("name", "activation", "zero_init_head")]
        also = [k for k in (*asked, "embed_dim", "depth", "num_heads") if options[k] is not None]
        back = " ".join(f"--model.{option} null" for option in ("name", *also))
        raise ValueError(
            f"--model.name {options['name']}: not with --model.pretrained, which says what the model is\n"
            f"Are these the recipe's? Take them back: {back}; or start from one of configs/finetune/, which leave "
            "the network to the checkpoint"
        )
    if options["activation"] is None and options["activation_kwargs"]:
        raise ValueError(
            f"--model.activation_kwargs {options['activation_kwargs']}: needs --activation; the checkpoint's own "
            "has its options"
        )
    rest = {k: v for k, v in options.items() if k not in ("name", "activation", "activation_kwargs")}
    if rest["zero_init_head"] is None:
        rest["zero_init_head"] = True  # ViT paper, §3.2
    names = list(data.class_names)
    network, changes = build_pretrained(pretrained, **shape, class_names=names, **rest)
    own = pretrained.options["activation"], pretrained.options.get("activation_kwargs") or {}
    to = options["activation"], options["activation_kwargs"] or {}
    swapped = to[0] is not None and to != own
    lines = [_about(network, own[0], swapped), *pretrained.notes, *(change.text for change in changes)]
    lines += _overlap(pretrained.trained_on, data)
    record: dict[str, Any] = {
        "source": pretrained.source,
        "name": pretrained.name,
        "origin": pretrained.origin,
        "sha256": pretrained.sha256,
        "activation": pretrained.options["activation"],
        "changes": list(lines),
        "differences": [change.record() for change in changes],
        "swap": None,
    }
    beginning = Beginning(network, None, lines, record)
    if anneal_steps is not None and not swapped:
        raise ValueError(
            f"--model.anneal_activation {anneal_steps}: the checkpoint's activation is {own[0]} already; nothing to "
            "go to"
        )
    if swapped:
        # With the checkpoint's own head: a new one, at zero, would show no difference. And with attention by rule: not
        # every kernel knows float32, in which they are compared.
        before, _ = build_pretrained(pretrained, **{**rest, **shape, "num_classes": None, "attention": None})
        swap_and_say(beginning, before, options, data, anneal_steps)
    return beginning


def _overlap(seen: dict[str, Any], data: Any) -> list[str]:
    """A warning where images that are to judge the run may have been trained on before it."""
    same_split = seen.get("fingerprint") == data.fingerprint or seen.get("val_fraction") == data.val_fraction
    if not seen or seen["name"] != data.source.name or same_split:
        return []
    other = "unknown" if seen["val_fraction"] is None else f"{seen['val_fraction']:g}"
    return [
        f"WARNING: the checkpoint was trained on {data.source.name} with another split (--data.val_fraction {other}, "
        f"now {data.val_fraction:g}): validation images may have been among its training images"
    ]


def _about(network: Network, activation: str, swapped: bool) -> str:
    """Size and activation of a checkpoint's network, as it will be trained."""
    config = network.config
    patch, image = ("x".join(map(str, pair("", config[side]))) for side in ("patch_size", "image_size"))
    kept = "" if swapped else ", kept"
    return (
        f"network: width {config['embed_dim']}, depth {config['depth']}, {config['num_heads']} heads, "
        f"patches of {patch}, images of {image}; activation {activation}{kept}"
    )


def anneal_share(step: int, steps: int) -> float:
    """Share of the new activation at optimizer step ``step`` (from 0) of an annealing over ``steps`` steps.

    Linear: 0 at the first step, exactly 1 from step ``steps`` on.

    >>> [anneal_share(step, 4) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """
    return min(1.0, step / steps)
