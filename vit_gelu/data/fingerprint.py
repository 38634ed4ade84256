"""A hash that tells whether two runs trained on the same data."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from einops import rearrange

from vit_gelu.data.arrays import ImageArrays, Images


def fingerprint(parts: Mapping[str, Images], base: Path | None = None) -> str:
    """BLAKE2b over all images and labels, in order: 32 hexadecimal digits.

    Where the images came from does not count, only what they are: an array file and the official archive
    of the same data set agree. Images that stay on disk are not read: their paths relative to ``base``,
    their sizes in bytes and the size they are decoded to stand for them.

    Args:
        parts: e.g. train, val and test.
        base: folder of the image files; needed when there are ``ImageFiles``.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, part in parts.items():
        if isinstance(part, ImageArrays):
            rows = rearrange(part.images, "n c h w -> n h w c").contiguous()
            digest.update(f"{name} arrays {tuple(rows.shape)}\n".encode())
            digest.update(rows.numpy().data)
        else:
            assert base is not None
            digest.update(f"{name} files {len(part)} {part.channels} {part.image_size}\n".encode())
            for path in part.paths:
                digest.update(os.fsencode(f"{path.relative_to(base).as_posix()}\0{path.stat().st_size}\n"))
        digest.update(part.labels.numpy().astype("<i8").data)
    return digest.hexdigest()
