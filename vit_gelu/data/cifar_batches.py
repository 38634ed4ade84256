"""CIFAR as its authors publish it: pickled batches of rows, read without trusting the pickles."""

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange

# What numpy's own pickles call to rebuild an array; the same function under numpy 1's and 2's names.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class CifarLayout:
    """Names of files and keys in one of the official archives.

    Attributes:
        name: cifar10 or cifar100.
        url, md5: of the archive, as published at https://www.cs.toronto.edu/~kriz/cifar.html.
        folder: the folder that the archive holds.
        train, test: files of that folder, in the order that makes up the data set.
        meta: the file with the class names.
        labels_key, names_key: in those files.
        num_classes: how many there are.
    """

    name: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels_key: bytes
    names_key: bytes
    num_classes: int

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]


CIFAR = {
    "cifar10": CifarLayout(
        name="cifar10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        meta="batches.meta",
        labels_key=b"labels",
        names_key=b"label_names",
        num_classes=10,
    ),
    "cifar100": CifarLayout(
        name="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        meta="meta",
        labels_key=b"fine_labels",
        names_key=b"fine_label_names",
        num_classes=100,
    ),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds plain Python values and numpy arrays; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR batch needs: refused, it could run any program"
            ) from None


def _unpickle(data: bytes, file: str) -> dict[bytes, Any]:
    try:
        value = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{file} is no CIFAR batch, or is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no CIFAR batch: it holds a {type(value).__name__}, not a dict")
    return value


def _batch(data: bytes, file: str, layout: CifarLayout) -> tuple[np.ndarray, np.ndarray]:
    batch = _unpickle(data, file)
    rows, labels = batch.get(b"data"), batch.get(layout.labels_key)
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 3072:
        raise ValueError(f"{file}: 'data' must be uint8 of shape (n, 3072)")
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(type(x) is int for x in labels):
        key = layout.labels_key.decode()
        raise ValueError(f"{file}: {key!r} must be a list of {len(rows)} integers, one per row of 'data'")
    return rearrange(rows, "n (c h w) -> n h w c", c=3, h=32), np.array(labels, dtype=np.int64)


def _folder_files(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in wanted if (path / name).is_file()}


def _archive_files(path: Path, folder: str, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted members of an archive, in one pass: seeking back would unzip it from the start again."""
    members = {f"{folder}/{name}": name for name in wanted}
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name in members and (stream := archive.extractfile(member)):
                    files[members[member.name]] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path} is no .tar.gz archive, or is truncated: {error}") from error
    return files


def read_batches(path: Path, layout: CifarLayout) -> dict[str, np.ndarray]:
    """Read the official folder, or the archive that holds it.

    Args:
        path: of the folder, or of the ``.tar.gz``.
        layout: an entry of ``CIFAR``.

    Returns:
        The arrays of an array file: ``train_images`` uint8 (n, 32, 32, 3), ``train_labels`` int64 (n,),
        ``test_images``, ``test_labels``, ``class_names``.

    Raises:
        ValueError: a file is missing, damaged, or asks for more than arrays; names the file.
    """
    wanted = (*layout.train, layout.test, layout.meta)
    files = _folder_files(path, wanted) if path.is_dir() else _archive_files(path, layout.folder, wanted)
    missing = [name for name in wanted if name not in files]
    if missing:
        raise ValueError(f"{path} is not {layout.name} as published: it lacks {', '.join(missing)}")
    train = [_batch(files[name], f"{path}: {name}", layout) for name in layout.train]
    test_images, test_labels = _batch(files[layout.test], f"{path}: {layout.test}", layout)
    names = _unpickle(files[layout.meta], f"{path}: {layout.meta}").get(layout.names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"{path}: {layout.meta}: {layout.names_key.decode()!r} must be a list of names")
    return {
        "train_images": np.concatenate([images for images, _ in train]),
        "train_labels": np.concatenate([labels for _, labels in train]),
        "test_images": np.ascontiguousarray(test_images),
        "test_labels": test_labels,
        "class_names": np.array([name.decode() for name in names]),
    }
