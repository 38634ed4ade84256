"""Images that are to judge a network and that it was trained on: counted, pixel for pixel, and said."""

import hashlib
import warnings

import numpy as np

from vit_gelu.data.arrays import ImageArrays, Parts


def _digests(part: ImageArrays) -> list[bytes]:
    rows = np.ascontiguousarray(part.images.permute(0, 2, 3, 1).numpy()).reshape(len(part), -1)
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]


def count_repeats(parts: Parts) -> dict[str, int]:
    """How many images of ``val`` and ``test`` are in ``train`` as well, whatever their labels; of images in memory.

    A validation part that is yet to be split off is not counted: it is among the images of ``train``.
    """
    judging = {"val": parts.val, "test": parts.test}
    if not isinstance(parts.train, ImageArrays):
        return {}
    trained = set(_digests(parts.train))
    return {
        name: sum(digest in trained for digest in _digests(part))
        for name, part in judging.items()
        if isinstance(part, ImageArrays)
    }


def warn_of_repeats(parts: Parts, where: str) -> None:
    """Warn where accuracy would be measured on images of the training.

    Args:
        parts: of a data set.
        where: how messages call it.
    """
    for name, count in count_repeats(parts).items():
        part = parts.val if name == "val" else parts.test
        if count and part is not None:
            warnings.warn(
                f"{where}: {count:,} of {len(part):,} {name} images are training images as well, pixel for pixel: "
                f"{name} accuracy may be too high",
                stacklevel=3,
            )
