"""Files that are there whole or not at all, and errors that name the file."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of writing name the file; as it comes, only that of opening does.

    Raises:
        OSError: with the file's name.
    """
    try:
        yield
    except OSError as error:
        # A library's own error may have a message and no number.
        raise OSError(error.errno, f"not written: {error.strerror or error}", str(path)) from None


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """Open a file for writing: it is written beside its place, and put there when all of it is on the disk.

    Args:
        path: in a folder that exists.
        mode: ``w`` for UTF-8 text, or ``wb``.
        newline: as ``open`` takes it.

    Raises:
        OSError: the disk is full, or does not let us. Names the file, which is as it was, as after any other error.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming(path):
            with partial.open(mode, newline=newline, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as file:
        file.write(text)
