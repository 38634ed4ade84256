"""Image folders: ``train/<class>/*`` and ``test/<class>/*`` (or ``val``), any size, any count."""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from vit_gelu.data.array_file import cache_array_file, read_array_file, read_keys
from vit_gelu.data.arrays import ImageFiles, Images, Parts
from vit_gelu.data.check import checked_parts
from vit_gelu.data.decode import decode_image
from vit_gelu.data.listing import Listing, list_folder
from vit_gelu.data.progress import progress

log = logging.getLogger(__name__)

MEMORY_LIMIT = 512 * 2**20
DEFAULT_SIZE = (224, 224)
CHANNELS = 3


def load_folder(folder: Path, cache: Path, image_size: tuple[int, int] | None) -> Parts:
    """List an image folder, and decode it if it is small.

    The parts are ``train`` and ``test``; ``val`` is the validation part where both ``test`` and ``val``
    exist, and the test part where only ``val`` does (as in ImageNet; validation is then split off train).
    Classes are the folder names, sorted. Files of up to 512 MiB when decoded are decoded once, as RGB, and
    kept in one array file under ``cache``, which is made anew when a file's name, size or time changes;
    larger data sets stay files.

    Args:
        folder: of the data set.
        cache: where array files are kept.
        image_size: height and width to decode to; None means 224 × 224.

    Raises:
        ValueError: a part or class is missing or empty, or an image cannot be read; names it.
    """
    where = f"--data.name {folder}"
    if image_size is None:
        image_size = DEFAULT_SIZE
    listings, class_names = list_folder(folder, where)
    count = sum(len(listing.paths) for listing in listings.values())
    if count * CHANNELS * image_size[0] * image_size[1] <= MEMORY_LIMIT:
        return _decoded(folder, listings, class_names, cache, image_size)
    parts: dict[str, Images] = {
        name: ImageFiles(listing.paths, torch.tensor(listing.labels), CHANNELS, image_size)
        for name, listing in listings.items()
    }
    return Parts(parts["train"], parts.get("val"), parts["test"], class_names)


def _decoded(
    folder: Path,
    listings: dict[str, Listing],
    class_names: tuple[str, ...],
    cache: Path,
    image_size: tuple[int, int],
) -> Parts:
    """Decode everything, or read what an earlier start decoded."""
    place = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=6).hexdigest()
    file = cache / "folders" / f"{folder.resolve().name}-{place}-{image_size[0]}x{image_size[1]}.npz"
    key = _cache_key(folder, listings)
    if file.exists():
        try:
            kept = read_keys(file, str(file), ("cache_key",)).get("cache_key")
            if kept is not None and str(kept) == key:
                return read_array_file(file, str(file))
        except ValueError as error:
            log.warning("%s; decoding %s again", error, folder)
    arrays = {"cache_key": np.array(key), "class_names": np.array(class_names)}
    total = sum(len(listing.paths) for listing in listings.values())
    done = 0
    with (
        progress(f"decoding {folder.name}", total, "images") as show,
        ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool,
    ):
        for name, listing in listings.items():
            images = np.empty((len(listing.paths), *image_size, CHANNELS), dtype=np.uint8)
            decoded = pool.map(lambda path: decode_image(path, image_size, CHANNELS), listing.paths)
            for i, image in enumerate(decoded):
                images[i] = rearrange(image.numpy(), "c h w -> h w c")
                done += 1
                show(done)
            arrays[f"{name}_images"] = images
            arrays[f"{name}_labels"] = np.array(listing.labels, dtype=np.int64)
    cache_array_file(file, arrays)
    return checked_parts(arrays, f"--data.name {folder}")


def _cache_key(folder: Path, listings: dict[str, Listing]) -> str:
    """Changes when a file is added, removed, renamed, resized or touched."""
    digest = hashlib.blake2b(digest_size=16)
    for name, listing in listings.items():
        for path in listing.paths:
            stat = path.stat()
            line = f"{name}\0{path.relative_to(folder).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            digest.update(os.fsencode(line))
    return digest.hexdigest()
