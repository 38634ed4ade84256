"""Reading a checkpoint of ours: the card that says what it is, and the network it holds."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from vit_gelu.models.build import Network, build_network

CARD = "vit_gelu"
CARD_SCHEMA = 1


def find_checkpoint(path: str | Path, which: str = "last") -> Path:
    """The checkpoint file behind a run folder or a file's path.

    Args:
        path: a run folder, its ``checkpoints`` folder, or a ``.ckpt`` file.
        which: ``last`` or ``best``, for folders.

    Raises:
        ValueError: nothing there, or no such checkpoint in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise ValueError(f"{path}: no such run folder or checkpoint")
    for folder in (path / "checkpoints", path):
        if (folder / f"{which}.ckpt").is_file():
            return folder / f"{which}.ckpt"
    present = sorted(p.name for p in [*path.glob("*.ckpt"), *path.glob("checkpoints/*.ckpt")])
    raise ValueError(f"{path}: holds no {which}.ckpt (found: {', '.join(present) or 'no checkpoint at all'})")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU; only tensors and plain types are ever loaded.

    Raises:
        ValueError: not readable as a checkpoint, not one of ours, or of a newer schema.
    """
    # torch's own words for a truncated or foreign file say nothing to a user, and are not always an error of ours.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: cannot be read as a checkpoint (truncated, or another kind of file)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise ValueError(f"{path}: cannot be read as a checkpoint ({reason})") from None
    card = content.get(CARD) if isinstance(content, dict) else None
    if not isinstance(card, dict) or "state_dict" not in content:
        raise ValueError(f"{path}: is not a checkpoint of vit_gelu")
    if card["schema"] > CARD_SCHEMA:
        raise ValueError(
            f"{path}: written by a newer vit_gelu (schema {card['schema']} > {CARD_SCHEMA}); upgrade"
        )
    return content


def is_amid_a_step(content: dict[str, Any], accumulate: int) -> bool:
    """Whether a checkpoint was saved between two of the batches that share one optimizer step.

    Args:
        content: what ``read_checkpoint`` returns.
        accumulate: batches per optimizer step; the last step of an epoch may have fewer.
    """
    progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    return bool(progress["current"]["ready"] % accumulate) and not progress["is_last_batch"]


def load_network(path: str | Path, which: str = "last") -> tuple[Network, dict[str, Any]]:
    """The network of a run, in evaluation mode on the CPU, with averaged weights where the run kept them.

    Args:
        path: run folder or checkpoint file.
        which: ``last`` or ``best``, for folders.

    Returns:
        The network and the checkpoint's card: ``network`` (constructor options), ``data`` (name,
        class_names, mean, std, image_size, in_channels, fingerprint), ``seed``, ``epoch``, ``step``.

    Raises:
        ValueError: see ``find_checkpoint`` and ``read_checkpoint``, or weights that do not fit the card.
    """
    file = find_checkpoint(path, which)
    content = read_checkpoint(file)
    card = content[CARD]
    try:
        net = build_network(card["network"])
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    state = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{file}: its weights do not fit its own description: {error}") from None
    return net.eval(), card
