"""Folders that appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MARKER = "export.json"


def refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    """Check that an export may be written to ``folder``.

    Raises:
        ValueError: there is something, and ``overwrite`` is not set or it is no export.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"--out {folder}: is there and no folder; choose another")
    if not any(folder.iterdir()):
        return
    if not (folder / MARKER).is_file():
        raise ValueError(
            f"--out {folder}: is there and holds no export of ours (no {MARKER}), so it is never replaced; "
            "choose another"
        )
    if not overwrite:
        raise ValueError(
            f"--out {folder}: holds an export already; nothing is overwritten: choose another --out, or add "
            "--overwrite"
        )


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; renamed to it at the end, deleted after an exception.

    What is at ``folder`` stays until then. Call ``refuse_to_overwrite`` first.

    Raises:
        OSError: it cannot be written.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
