"""One process at a time in a folder that it writes to; loads no torch."""

import contextlib
from pathlib import Path

from filelock import FileLock, Timeout

from vit_gelu.cli.errors import UsageError


def occupy(folder: Path, otherwise: str) -> FileLock | None:
    """Keep other processes out of a folder, until ``leave``, or until this one ends however it may.

    Args:
        folder: which is there.
        otherwise: what to say where somebody is in it.

    Returns:
        What ``leave`` takes; None where the file system has no locks.

    Raises:
        UsageError: another process has it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(otherwise) from None
    except (OSError, NotImplementedError):
        return None
    return lock


def leave(lock: FileLock | None) -> None:
    """Let others in."""
    if lock is not None:
        # Windows keeps files that are open; one that stays locks nobody out.
        with contextlib.suppress(PermissionError):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
