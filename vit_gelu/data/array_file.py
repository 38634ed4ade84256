"""Array files (.npz): every image and label of a data set in one file, MedMNIST's layout.

Keys: ``train_images``, ``train_labels``, ``test_images``, ``test_labels``; optional ``val_images`` with
``val_labels``, and ``class_names``. Images are uint8 of shape (n, h, w) or (n, h, w, 1) when grey,
(n, h, w, 3) when RGB; labels are integers 0 … K-1 of shape (n,) or (n, 1).
"""

import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_gelu.data.arrays import Parts
from vit_gelu.data.check import checked_parts
from vit_gelu.suggest import nearest

log = logging.getLogger(__name__)

REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
OPTIONAL = ("val_images", "val_labels", "class_names")


def read_array_file(path: Path, where: str) -> Parts:
    """Read and check an array file.

    Args:
        path: of the file.
        where: how messages call it, e.g. ``--data.name my.npz``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an array file, is damaged, holds pickled objects, or holds something that
            cannot be images with labels; names the key.
    """
    return checked_parts(read_keys(path, where, (*REQUIRED, *OPTIONAL)), where)


def read_keys(path: Path, where: str, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of ``keys`` that an array file has, unchecked; a key that looks misspelt is an error."""
    if not path.exists():
        raise FileNotFoundError(f"{where}: there is no file {path}")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{where}: {path} ({path.stat().st_size} bytes) is not an array file (.npz), or is truncated"
        )
    found = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            if key in keys:
                found[key] = _read(file, key, where)
        for key in (*REQUIRED, *OPTIONAL):
            others = [name for name in file.files if name not in (*REQUIRED, *OPTIONAL)]
            close = nearest(key, others, n=1)
            if key in keys and key not in found and (close or key in REQUIRED):
                hint = f"; did you mean its key {close[0]!r}?" if close else ""
                raise ValueError(
                    f"{where}: key {key!r} is missing{hint} Keys: {', '.join(file.files) or 'none'}\n"
                    f"An array file has {', '.join(REQUIRED)}; optional: {', '.join(OPTIONAL)}"
                )
    return found


def _read(file: Mapping[str, np.ndarray], key: str, where: str) -> np.ndarray:
    try:
        value = file[key]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{where}: key {key!r} cannot be read, the file is damaged: {error}") from error
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{where}: key {key!r} holds pickled objects, which are refused: reading them can run any "
                "program. Save plain arrays (images uint8, labels int64, names as text)"
            ) from error
        raise ValueError(f"{where}: key {key!r} cannot be read, the file is damaged: {error}") from error
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{where}: key {key!r} is not an array")
    return value


def write_array_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an array file, uncompressed, whole or not at all.

    Raises:
        OSError: the folder cannot be written, the disk is full, …; ``path`` is then as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for key, value in arrays.items():
                    with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, value, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_array_file(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an array file that only saves time: where it cannot be written, one line says so."""
    try:
        write_array_file(path, arrays)
    except OSError as error:
        log.warning("%s cannot be written (%s): every start will decode again", path, error.strerror or error)
