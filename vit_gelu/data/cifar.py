"""CIFAR-10 and CIFAR-100: looked for on disk first, downloaded when that is all that is left."""

import sys
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from vit_gelu.data.array_file import cache_array_file, read_array_file
from vit_gelu.data.arrays import Parts
from vit_gelu.data.check import checked_parts
from vit_gelu.data.cifar_batches import CIFAR, CifarLayout, read_batches
from vit_gelu.data.download import DownloadError, download, md5_of


def find_cifar(name: str, root: Path) -> Path | None:
    """Where a CIFAR data set is, or None.

    Looked for in ``root``, in ``root/<name>``, and beside ``root`` if that is itself the official folder:
    the array file (``cifar10.npz``), the official folder (``cifar-10-batches-py``), the official archive
    (``cifar-10-python.tar.gz``); the first kind that turns up counts.

    Args:
        name: cifar10 or cifar100.
        root: the folder to look in; need not exist.
    """
    layout = CIFAR[name]
    places = [root, root / name]
    if root.name == layout.folder:
        places.append(root.parent)
    for file in (f"{name}.npz", layout.folder, layout.archive):
        for place in places:
            path = place / file
            if path.is_file() or (file == layout.folder and (path / layout.test).is_file()):
                return path
    return None


def archive_url(layout: CifarLayout, mirror: str | None) -> str:
    """The address to download from: the official one, or the mirror's.

    Args:
        layout: of the data set.
        mirror: the archive's whole address, or that of the folder that holds it.

    Raises:
        ValueError: the mirror is not an http, https or file address.

    >>> archive_url(CIFAR["cifar10"], "http://mirror.example/cifar/")
    'http://mirror.example/cifar/cifar-10-python.tar.gz'
    """
    if mirror is None:
        return layout.url
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.scheme == "file"):
        raise ValueError(f"--data.mirror {mirror!r} is not a web address (http://…, https://… or file:///…)")
    if parts.path.endswith((".tar.gz", ".tgz")):
        return mirror
    return parts._replace(path=f"{parts.path.rstrip('/')}/{layout.archive}").geturl()


def load_cifar(name: str, root: Path, mirror: str | None = None, may_download: bool = True) -> Parts:
    """Find, and if need be download, one of the CIFAR data sets; leave an array file for the next start.

    Args:
        name: cifar10 or cifar100 (its 100 fine classes).
        root: the folder to look in and to write to.
        mirror: see ``archive_url``.
        may_download: False: only look.

    Raises:
        FileNotFoundError: not there, and not downloadable; says what to do.
        ValueError: what is there is damaged or something else.
    """
    layout = CIFAR[name]
    url = archive_url(layout, mirror)
    path = find_cifar(name, root) or _fetch(layout, root, url, may_download)
    where = f"--data.name {name}: {path}"
    if path.suffix == ".npz":
        return _expect_cifar(read_array_file(path, where), layout, where)
    if path.is_file() and (md5 := md5_of(path)) != layout.md5:
        raise ValueError(
            f"{where} is incomplete or not the official archive: its md5 is {md5}, not {layout.md5}\n"
            "Delete it to have it downloaded"
        )
    arrays = read_batches(path, layout)
    parts = _expect_cifar(checked_parts(arrays, where), layout, where)
    cache_array_file(root / f"{name}.npz", arrays)
    return parts


def _fetch(layout: CifarLayout, root: Path, url: str, may_download: bool) -> Path:
    """Download the archive into ``root``; of several processes one does, the others wait for it."""
    problem = "Nothing was downloaded: download is off"
    if may_download:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{layout.name}.lock"):
                found = find_cifar(layout.name, root)
                if found is None:
                    found = root / layout.archive
                    print(f"{layout.name}: downloading {url} to {root}", file=sys.stderr, flush=True)
                    download(url, found, layout.md5)
                return found
        except DownloadError as error:
            problem = f"Downloading {url} failed: {error}"
        except OSError as error:
            problem = f"It cannot be downloaded to {root}: {error.strerror or error}"
    raise FileNotFoundError(
        f"--data.name {layout.name}: not found in --data.root {root}\n"
        f"Looked for {layout.name}.npz, {layout.folder}/ and {layout.archive}. {problem}\n"
        f"Put {layout.archive} from {layout.url} there, name the folder that has it with --data.root, "
        "or another address with --data.mirror"
    )


def _expect_cifar(parts: Parts, layout: CifarLayout, where: str) -> Parts:
    (height, width), channels = parts.train.image_size, parts.train.channels
    if (len(parts.class_names), height, width, channels) != (layout.num_classes, 32, 32, 3):
        raise ValueError(
            f"{where} is not {layout.name}: it has {len(parts.class_names)} classes and images of "
            f"{height} × {width} × {channels}, not {layout.num_classes} and 32 × 32 × 3"
        )
    return parts
