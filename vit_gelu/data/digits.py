"""Scikit-learn's handwritten digits: embedded in the package, so a first run needs no download."""

import numpy as np
import torch
from einops import rearrange

from vit_gelu.data.arrays import ImageArrays, Parts
from vit_gelu.data.split import stratified_split

TEST_FRACTION = 0.2


def load_digits() -> Parts:
    """1,797 grey 8 × 8 images of ten digits; 0 … 16 in the original is 0 … 255 here, rounded.

    They come without an official test set: a fifth (359 images), stratified and always the same, is it.
    """
    from sklearn import datasets  # slow to import, and no other data set needs it

    pixels, labels = datasets.load_digits(return_X_y=True)
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
    images = ImageArrays(
        rearrange(torch.from_numpy(grey), "n (h w) -> n 1 h w", h=8),
        torch.from_numpy(labels.astype(np.int64)),
    )
    train, test = stratified_split(images.labels, TEST_FRACTION, 0, "digits test")
    return Parts(images.take(train), None, images.take(test), tuple(str(digit) for digit in range(10)))
