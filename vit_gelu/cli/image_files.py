"""From files and folders on the command line to a list of image files, and from those to batches."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from vit_gelu.cli.errors import UsageError
from vit_gelu.data import decode_image
from vit_gelu.data.listing import SUFFIXES

REASONS_SHOWN = 3


def find_images(paths: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The image files behind files and folders.

    A file counts whatever its name is; folders are searched to the bottom, in sorted order, for files with
    the suffix of an image. Hidden files and folders are left alone.

    Args:
        paths: of files and folders.

    Returns:
        The image files, in the order in which they were asked for, and the other files of the folders.

    Raises:
        UsageError: a path leads nowhere, or a folder holds no image.
    """
    found: list[Path] = []
    others: list[Path] = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            before = len(found)
            for file in _files_under(path, set()):
                (found if file.suffix.lower() in SUFFIXES else others).append(file)
            if len(found) == before:
                raise UsageError(f"{text}: this folder holds no image ({', '.join(SUFFIXES)})")
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"{text}: no such file or folder")
    return found, others


def _files_under(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Files first, then folders, each sorted; a link to a folder that it lies in is not followed."""
    entries = sorted((e for e in os.scandir(folder) if e.name[0] != "."), key=lambda e: e.name)
    yield from (Path(e.path) for e in entries if not e.is_dir())
    above = above | {folder.resolve()}
    for entry in entries:
        if entry.is_dir() and Path(entry.path).resolve() not in above:
            yield from _files_under(Path(entry.path), above)


def decoded_batches(
    files: Sequence[Path], batch_size: int, image_size: tuple[int, int], channels: int
) -> Iterator[Tensor]:
    """Decode image files, batch after batch; at the end say which ones could not be read.

    Args:
        files: to decode, in this order.
        batch_size: images per batch; the last may be smaller.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).

    Yields:
        uint8 (b, channels, *image_size). Once a file has failed, nothing more: the rest is only checked.

    Raises:
        UsageError: after all files were tried, if any cannot be read; names the first ones.
    """

    def decode(file: Path) -> Tensor | str:
        try:
            return decode_image(file, image_size, channels)
        except (OSError, ValueError) as error:
            return str(error).splitlines()[0]

    reasons: list[str] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), batch_size):
            results = list(pool.map(decode, files[start : start + batch_size]))
            reasons += [r for r in results if isinstance(r, str)]
            if not reasons:
                yield torch.stack([r for r in results if not isinstance(r, str)])
    if len(reasons) == 1:
        raise UsageError(reasons[0])
    if reasons:
        more = [f"… and {len(reasons) - REASONS_SHOWN} more"] if len(reasons) > REASONS_SHOWN else []
        head = f"{len(reasons)} of {len(files)} images cannot be read; nothing was predicted"
        raise UsageError("\n".join([head, *reasons[:REASONS_SHOWN], *more]))
