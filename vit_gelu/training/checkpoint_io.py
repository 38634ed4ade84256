"""Checkpoint files that are there whole or not at all, on whatever disk."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from vit_gelu.whole_file import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, and puts it in its place at the end.

    Lightning writes in the system's folder for temporary files and moves from there: to another disk, which a run
    folder is mostly on, that is a copy over the file that was there, and a process that is killed meanwhile, or
    a disk that is full, has lost both.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save.

        Args:
            checkpoint: what is saved.
            path: of the file; what is no path of this machine (``s3://...``) goes Lightning's way.
            storage_options: none are known.

        Raises:
            OSError: the disk is full, or does not let us; what was there before is there still.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as file:
            file.write(pickled(checkpoint).getbuffer())


def pickled(content: Any) -> io.BytesIO:
    """What ``torch.save`` writes: its own writer makes a RuntimeError of a full disk."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer


def discard_partial_files(folder: Path) -> None:
    """Remove what a process left that was killed while it saved."""
    for file in folder.glob("*.ckpt.partial"):
        file.unlink()
