"""How a run of one of timm's models begins (``--model.name timm/NAME``): with its activation swapped in place."""

from typing import Any

from torch import nn

from vit_gelu.models.pretrained.change import Change
from vit_gelu.models.timm_model import PREFIX, TimmModel, check_timm_name
from vit_gelu.training.scratch import SCRATCH
from vit_gelu.training.start import Beginning, swap_and_say

# What a model of timm is not asked for: its default means nothing there.
NOT_TIMMS: dict[str, Any] = {
    **{option: None for option in SCRATCH if option not in ("name", "activation", "zero_init_head")},
    **dict.fromkeys(("embed_dim", "depth", "num_heads", "layer_scale", "representation_size")),
    "attention_dropout": 0.0,
    "patch_dropout": 0.0,
    "attention": "auto",
    "mlp_memory": "fast",
    "residual_precision": "full",
    "init": "timm",
    "whiten_patches": False,
    "attention_choice": None,
}
TIMMS_OWN = "timm"  # --model.pretrained of a model of timm: its weights from the hub


def is_timm(name: str | None) -> bool:
    """Whether ``--model.name`` asks for a model of timm."""
    return name is not None and name.startswith(PREFIX)


def check_timm_options(options: dict[str, Any]) -> None:
    """Refuse what was given and means nothing to a model of timm, all at once.

    Args:
        options: of the network and of training, by name.

    Raises:
        ValueError: there is such an option.
    """
    given = {k: options[k] for k, default in NOT_TIMMS.items() if options.get(k, default) != default}
    if given:
        several = "not options" if len(given) > 1 else "not an option"
        listed = ", ".join(
            f"--model.{k} {str(v).lower() if isinstance(v, bool) else v}" for k, v in given.items()
        )
        back = " ".join(
            f"--model.{k} {'null' if NOT_TIMMS[k] is None else str(NOT_TIMMS[k]).lower()}" for k in given
        )
        raise ValueError(
            f"{listed}: {several} of {options['name']}, which is timm's own\n"
            f"Are these the recipe's? Take them back: {back}"
        )


def begin_timm(
    options: dict[str, Any], shape: dict[str, Any], data: Any, *, weights: bool, anneal_steps: int | None
) -> Beginning:
    name, activation, kwargs = options["name"], options["activation"], options["activation_kwargs"]
    rates = {"drop_path": "drop_path_rate", "dropout": "drop_rate"}
    own = {theirs: options[ours] for ours, theirs in rates.items() if options[ours]}
    if not weights:
        network = TimmModel(
            name, **shape, activation=activation, activation_kwargs=kwargs, seed=options["seed"], **own
        )
        return Beginning(network, lines=[f"{name}: activation {activation or network.native_activation}"])
    network = TimmModel(name, **shape, seed=options["seed"], pretrained=True, **own)
    old, classes = timm_classes(name), network.timm_model.num_classes
    how = "kept; whether they are the same ones is not known" if classes == old else "new"
    if options["zero_init_head"] is not False and classes != old:
        nn.init.zeros_(network.timm_model.get_classifier().weight)
        nn.init.zeros_(network.timm_model.get_classifier().bias)
        how += ", zero"
    head = Change("head", f"{old} classes", f"{classes} classes", how)
    record = {
        "source": name,
        "name": name,
        "origin": "timm",
        "activation": network.native_activation,
        "changes": [head.text],
        "differences": [head.record()],
        "swap": None,
    }
    beginning = Beginning(network, None, [head.text], record)
    if activation is not None:
        before = TimmModel(
            name, **{**shape, "num_classes": timm_classes(name)}, seed=options["seed"], pretrained=True
        )
        swap_and_say(beginning, before, options, data, anneal_steps)
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
