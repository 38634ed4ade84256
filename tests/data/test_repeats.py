"""Images that judge and were trained on: counted against a loop over all pairs."""

import warnings

import numpy as np
import pytest
import torch

from tests.data.test_array_file import good, save
from vit_gelu.data import load_source
from vit_gelu.data.arrays import ImageArrays, Parts
from vit_gelu.data.repeats import count_repeats


def part(images):
    return ImageArrays(torch.as_tensor(images), torch.zeros(len(images), dtype=torch.int64))


def test_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    train, val, test = (rng.integers(0, 2, (n, 1, 2, 3), dtype=np.uint8) for n in (20, 15, 30))
    expected = {
        name: sum(any(np.array_equal(image, other) for other in train) for image in images)
        for name, images in (("val", val), ("test", test))
    }
    assert 0 < expected["test"] < 30
    assert count_repeats(Parts(part(train), part(val), part(test), ("a",))) == expected
    assert count_repeats(Parts(part(train), None, part(test), ("a",))) == {"test": expected["test"]}


def test_the_order_in_memory_does_not_matter():
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 4, 5), dtype=np.uint8)
    last = torch.as_tensor(images).contiguous(memory_format=torch.channels_last)
    assert count_repeats(Parts(part(images), None, part(last), ("a",))) == {"test": 8}
    one_bit = images.copy()
    one_bit[3, 2, 1, 4] ^= 1
    assert count_repeats(Parts(part(images), None, part(one_bit), ("a",))) == {"test": 7}


def test_an_array_file_that_tests_what_it_trains_on(tmp_path):
    arrays = good()
    arrays["test_images"][:3] = arrays["train_images"][5:8]
    with pytest.warns(UserWarning, match=r"leak\.npz: 3 of 20 test images are training images as well"):
        load_source(save(tmp_path / "leak.npz", **arrays))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_source(save(tmp_path / "sound.npz", **good()))
