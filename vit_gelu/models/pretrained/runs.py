"""A run folder or checkpoint of ours.

Only the file is shared with training, which this room may not import: the card under ``CARD`` says what the
network is, and ``state_dict`` holds it under ``net.``.
"""

import zipfile
from pathlib import Path
from typing import Any

import yaml

from vit_gelu.models.pretrained.checkpoint import FREE, OPTION, Pretrained
from vit_gelu.models.pretrained.files import read_pickled, sha256_of
from vit_gelu.models.pretrained.keys import account, shapes_of

CARD = "vit_gelu"
CARD_SCHEMA = 1


def checkpoint_in(folder: Path) -> Path | None:
    """``last.ckpt`` of a run folder or of its ``checkpoints`` folder; None if it is neither."""
    for place in (folder / "checkpoints", folder):
        if (place / "last.ckpt").is_file():
            return place / "last.ckpt"
    return None


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is one of our run folders, with or without a checkpoint in it."""
    return (
        (folder / "checkpoints").is_dir() or any(folder.glob("*.ckpt")) or (folder / "record.json").is_file()
    )


def read_run(path: Path, source: str) -> Pretrained:
    """The network of a run folder (its last checkpoint, averaged weights where it kept them) or ``.ckpt`` file.

    Raises:
        ValueError: no checkpoint there, not readable, not ours, or not of a ``VisionTransformer``.
    """
    file = checkpoint_in(path) if path.is_dir() else path
    if file is None:
        found = sorted(p.name for p in [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
        raise ValueError(
            f"{OPTION} {path}: a run folder without last.ckpt (found: {', '.join(found) or 'no checkpoint'})"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{OPTION} {file}: cannot be read as a checkpoint (truncated, or another kind of file)"
        )
    content = read_pickled(file)
    card = content.get(CARD) if isinstance(content, dict) else None
    if not isinstance(card, dict) or "state_dict" not in content:
        raise ValueError(f"{OPTION} {file}: is not a checkpoint of vit_gelu")
    if card["schema"] > CARD_SCHEMA:
        raise ValueError(
            f"{OPTION} {file}: written by a newer vit_gelu (schema {card['schema']} > {CARD_SCHEMA}); upgrade"
        )
    state = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
    options = _options(card["network"], file)
    account(shapes_of(options), state, str(file))
    data = card["data"]
    notes = (f"checkpoint: {file.name} of the run",) if path.is_dir() else ()
    name = path.name if path.is_dir() else path.stem
    return Pretrained(
        source,
        name,
        "vit_gelu",
        options,
        state,
        tuple(data["mean"]),
        tuple(data["std"]),
        sha256_of(file),
        notes,
        class_names=tuple(data.get("class_names") or ()),
        trained_on={
            "name": data.get("name"),
            "fingerprint": data.get("fingerprint"),
            "val_fraction": _val_fraction(file),
        },
    )


def _val_fraction(file: Path) -> float | None:
    """Share of the training images that the run of a checkpoint kept for validation; None where nothing says it."""
    config = file.resolve().parent.parent / "config.yaml"
    try:
        return float(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["val_fraction"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def _options(network: dict[str, Any], file: Path) -> dict[str, Any]:
    if "embed_dim" not in network:
        raise ValueError(
            f"{OPTION} {file}: holds {network.get('name', 'another network')}, no Vision Transformer of ours; "
            "only those are read here"
        )
    return {name: value for name, value in network.items() if name not in FREE}
