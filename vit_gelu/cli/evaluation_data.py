"""Which split ``vit-gelu evaluate`` looks at, and whether it fits the network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_gelu.cli.errors import UsageError
from vit_gelu.data import Images, Source, load_source


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, fit for the network.

    Attributes:
        source: the whole data set.
        name: test, val or train.
        images: that part.
        note: how its data differ from those of the training, one line; None where they are the same.
    """

    source: Source
    name: str
    images: Images
    note: str | None


def run_config(checkpoint: Path) -> dict[str, Any]:
    """The options of the run that a checkpoint lies in; empty for a checkpoint by itself."""
    file = checkpoint.resolve().parent.parent / "config.yaml"
    if checkpoint.resolve().parent.name != "checkpoints" or not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is not YAML: {str(error).splitlines()[0]}") from None
    return config if isinstance(config, dict) else {}


def load_split(
    trained_on: dict[str, Any],
    options: dict[str, Any],
    *,
    name: str | None,
    root: str | None,
    split: str,
    resize: bool,
    same_classes: bool = True,
) -> Split:
    """Load the data set and check that the network can be asked about it.

    Args:
        trained_on: the ``data`` part of the checkpoint's card.
        options: the ``data`` part of the run's configuration; empty where there is none.
        name: ``--data.name``; None means the data set of the training.
        root: ``--data.root``; None means the folder of the training, else the default one.
        split: test, val or train.
        resize: bring images of another size to that of the network.
        same_classes: the data must have the classes of the training.

    Raises:
        UsageError: image size, channels or class names do not fit.
        OSError, ValueError: the data set cannot be loaded.
    """
    # The card calls a file or folder by its stem alone; where it lies, the run's options know.
    own_name = options.get("name") or trained_on["name"]
    own = name is None or _same(name, own_name)
    name = own_name if name is None else name
    size = _taken_size(trained_on)
    # Pictures of a folder have no common size of their own.
    sized = own or resize or Path(name).expanduser().is_dir()
    source = load_source(
        name,
        options.get("root") if root is None else root,
        mirror=options.get("mirror"),
        image_size=size if sized else None,
        **{name: options[name] for name in ("val_fraction", "train_fraction") if own and name in options},
    )
    _check_fit(source, name, trained_on, same_classes)
    return Split(source, split, getattr(source, split), _note(source, own, name, trained_on))


def _same(name: str, other: str) -> bool:
    """Whether two names mean one data set: equal, or paths of one place."""
    return name == other or (
        Path(name).expanduser().exists()
        and Path(name).expanduser().resolve() == Path(other).expanduser().resolve()
    )


def check_head(card: dict[str, Any], run: Any) -> None:
    """Refuse a network without a head, where classes are asked for.

    Raises:
        UsageError: there is none.
    """
    if not card["network"].get("num_classes", 1):
        raise UsageError(
            f"{run}: has no head, as it was pre-trained without labels; probe its features: "
            f"vit-gelu evaluate {run} --probe linear"
        )


def _check_fit(source: Source, name: str, trained_on: dict[str, Any], same_classes: bool) -> None:
    where = f"--data.name {name}"
    if source.channels != trained_on["in_channels"]:
        raise UsageError(
            f"{where}: its images are {_colour(source.channels)}; the network was trained on "
            f"{_colour(trained_on['in_channels'])} images ({trained_on['name']}); nothing is converted silently: "
            f"bring {_colour(trained_on['in_channels'])} images, or train on {_colour(source.channels)} ones"
        )
    if same_classes:
        _check_classes(source, where, trained_on)
    if source.image_size != _taken_size(trained_on):
        height, width = _taken_size(trained_on)
        raise UsageError(
            f"{where}: its images are {source.image_size[0]} × {source.image_size[1]}; the network takes "
            f"{height} × {width}: add --resize to have them resized"
        )


def _check_classes(source: Source, where: str, trained_on: dict[str, Any]) -> None:
    ours, theirs = source.class_names, trained_on["class_names"]
    for label, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise UsageError(
                f"{where}: class {label} is {our!r} ({len(ours)} classes); the network was trained on "
                f"{trained_on['name']}, where class {label} is {their!r} ({len(theirs)} classes)"
            )
    if len(ours) != len(theirs):
        raise UsageError(
            f"{where}: has {len(ours)} classes; the network was trained on {trained_on['name']}, which has "
            f"{len(theirs)}"
        )


def _taken_size(trained_on: dict[str, Any]) -> tuple[int, int]:
    """Height and width that images come in: as the network sees them, or before they are enlarged."""
    height, width = trained_on.get("upsampled_from") or trained_on["image_size"]
    return height, width


def _colour(channels: int) -> str:
    return {1: "grey", 3: "RGB"}[channels]


def _note(source: Source, own: bool, name: str, trained_on: dict[str, Any]) -> str | None:
    if source.fingerprint == trained_on["fingerprint"]:
        return None
    hashes = f"fingerprint {source.fingerprint[:12]}, of the training {trained_on['fingerprint'][:12]}"
    if own:
        return (
            f"{name} here is not the {name} of the training (other images, labels or split; {hashes}): "
            "its test images may have been trained on"
        )
    return f"{name} is not the data of the training, {trained_on['name']} ({hashes})"
