"""Where images come from: every data set, by name or path, in one form."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from vit_gelu.data.array_file import read_array_file
from vit_gelu.data.arrays import ImageArrays, Images, Parts, Source
from vit_gelu.data.cifar import load_cifar
from vit_gelu.data.decode import decode_image
from vit_gelu.data.digits import load_digits
from vit_gelu.data.fingerprint import fingerprint
from vit_gelu.data.folder import load_folder
from vit_gelu.data.repeats import warn_of_repeats
from vit_gelu.data.resize import resize_images
from vit_gelu.data.split import divide, stratified_split
from vit_gelu.data.statistics import pixel_statistics
from vit_gelu.suggest import unknown
from vit_gelu.user_cache import cache_folder

NAMES = ("cifar10", "cifar100", "digits")
RESIZED_LIMIT = 16 * 2**30
STATISTICS_SAMPLE = 512


def default_root() -> Path:
    """The folder for data sets: ``$VIT_GELU_DATA``, else ``vit_gelu`` in the user's cache folder.

    Raises:
        ValueError: neither is there.
    """
    if root := os.environ.get("VIT_GELU_DATA"):
        return Path(root).expanduser()
    try:
        return cache_folder()
    except OSError:
        raise ValueError("--data.root: this user has no home folder; name one for the data sets") from None


def check_fractions(val_fraction: float, train_fraction: float) -> None:
    """Refuse shares that leave nothing to validate or to train on.

    Raises:
        ValueError: names the option.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(
            f"--data.val_fraction {val_fraction}: must be above 0 and below 1; "
            "the best checkpoint is chosen on the validation images"
        )
    if not 0 < train_fraction <= 1:
        raise ValueError(f"--data.train_fraction {train_fraction}: must be above 0 and at most 1")


def load_source(
    name: str | Path,
    root: str | Path | None = None,
    *,
    mirror: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    train_fraction: float = 1.0,
    split_seed: int = 0,
    download: bool = True,
) -> Source:
    """Load a data set: train, validation and test images with all that is known about them.

    The test part is the official one. The validation part is the data set's own where it has one; else it
    is split off train: fixed, stratified, the same for every run.

    Args:
        name: ``cifar10``, ``cifar100``, ``digits``, or the path of an array file (.npz; see
            ``vit_gelu.data.array_file``) or of an image folder (see ``vit_gelu.data.folder``).
        root: the folder where CIFAR is looked for and downloaded to, and where decoded image folders are
            kept; None means ``default_root()``.
        mirror: another address to download CIFAR from: the archive's, or that of the folder with it.
        image_size: side, or (height, width), in pixels, that images are resized to and centre cropped;
            None means as they are, and 224 × 224 for image folders.
        val_fraction: share of the train part to split off, in (0, 1).
        train_fraction: share of what is left of the train part that is kept, in (0, 1]; fixed, stratified.
        split_seed: of that split; not the seed of a run.
        download: False: never download.

    Raises:
        FileNotFoundError: no such file or folder, or CIFAR is neither there nor downloadable.
        ValueError: an unknown name, a bad option, or data that is damaged or breaks a rule; says which.

    >>> digits = load_source("digits")
    >>> digits.train.images.shape, len(digits.val), len(digits.test), digits.num_classes
    (torch.Size([1294, 1, 8, 8]), 144, 359, 10)
    """
    size = _checked_size(image_size)
    check_fractions(val_fraction, train_fraction)
    if root is not None and Path(root).expanduser().is_file():
        raise ValueError(f"--data.root {root} is a file: it must be a folder; --data.name takes array files")
    path = Path(name).expanduser()
    if name == "digits":
        parts = load_digits()
    elif name in NAMES:
        parts = load_cifar(str(name), _folder(root), mirror, download)
    elif path.is_dir():
        parts = load_folder(path, _folder(root), size)
    elif path.is_file():
        parts = read_array_file(path, f"--data.name {path}")
        warn_of_repeats(parts, f"--data.name {path}")
    elif _looks_like_a_path(str(name)):
        raise FileNotFoundError(f"--data.name {name}: there is no such file or folder")
    else:
        message = unknown("data set", str(name), NAMES)
        raise ValueError(f"--data.name: {message}, or the path of an array file (.npz) or an image folder")
    if size is not None:
        parts = _resized(parts, size)
    title = str(name) if name in NAMES else path.resolve().name.removesuffix(".npz")
    return _describe(title, parts, val_fraction, train_fraction, split_seed, path)


def _folder(root: str | Path | None) -> Path:
    folder = default_root() if root is None else Path(root).expanduser()
    if folder.is_file():
        raise ValueError(f"$VIT_GELU_DATA {folder} is a file: it must be a folder")
    return folder


def _looks_like_a_path(name: str) -> bool:
    return any(sign in name for sign in ("/", "\\", "~")) or name.endswith(".npz")


def _checked_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height < 1 or width < 1:
        raise ValueError(f"--data.image_size {image_size}: must be at least 1 pixel")
    return height, width


def _resized(parts: Parts, size: tuple[int, int]) -> Parts:
    given = [part for part in (parts.train, parts.val, parts.test) if isinstance(part, ImageArrays)]
    needed = sum(len(part) * part.channels * size[0] * size[1] for part in given)
    if any(part.image_size != size for part in given) and needed > RESIZED_LIMIT:
        raise ValueError(
            f"--data.image_size {size[0]} × {size[1]}: the resized images would take "
            f"{needed / 2**30:.1f} GiB of memory; at most {RESIZED_LIMIT // 2**30} GiB"
        )

    def resized(part: Images) -> Images:
        return (
            ImageArrays(resize_images(part.images, size), part.labels)
            if isinstance(part, ImageArrays)
            else part
        )

    val = None if parts.val is None else resized(parts.val)
    return Parts(resized(parts.train), val, resized(parts.test), parts.class_names)


def _describe(
    name: str, parts: Parts, val_fraction: float, train_fraction: float, split_seed: int, base: Path
) -> Source:
    mean, std = pixel_statistics(_pixels(parts.train))
    train, val = parts.train, parts.val
    if val is None:
        kept, aside = stratified_split(train.labels, val_fraction, split_seed, "validation")
        if not len(aside):
            raise ValueError(
                f"--data.name {name}: no class has two train images, so none can be split off for validation"
            )
        train, val = divide(train, kept, aside)
    if train_fraction < 1:
        train = train.take(stratified_split(train.labels, train_fraction, split_seed, "train_fraction")[1])
    return Source(
        name=name,
        train=train,
        val=val,
        test=parts.test,
        class_names=parts.class_names,
        mean=mean,
        std=std,
        image_size=train.image_size,
        channels=train.channels,
        fingerprint=fingerprint({"train": train, "val": val, "test": parts.test}, base),
    )


def _pixels(images: Images) -> torch.Tensor:
    """All pixels where they are in memory; else those of 512 files spread evenly over the classes."""
    if isinstance(images, ImageArrays):
        return images.images
    count = min(STATISTICS_SAMPLE, len(images))
    chosen = [images.paths[i * len(images) // count] for i in range(count)]
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return torch.stack(
            list(pool.map(lambda p: decode_image(p, images.image_size, images.channels), chosen))
        )
