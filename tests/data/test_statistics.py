"""Pixel statistics against float64, and the fingerprint's one promise: same images, same hash."""

import numpy as np
import pytest
import torch

from vit_gelu.data.arrays import ImageArrays, ImageFiles
from vit_gelu.data.fingerprint import fingerprint
from vit_gelu.data.statistics import pixel_statistics


@pytest.mark.parametrize(
    "shape", [(700, 3, 5, 4), (3, 1, 8, 8), (2, 3, 300, 310), (3, 3, 600, 9), (257, 3, 1, 1)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_float64(shape, channels_last):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    x[:, 0] = np.minimum(x[:, 0], 40)
    images = torch.from_numpy(x)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    mean, std = pixel_statistics(images)
    np.testing.assert_allclose(mean, (x / 255).mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std((0, 2, 3)), rtol=1e-10)


def test_white_images_are_exact():
    # The largest sums there can be; in float32 without care they would round.
    images = torch.full((1000, 1, 7, 7), 255, dtype=torch.uint8)
    images[0, 0, 0, 0] = 254
    n = 1000 * 49
    assert pixel_statistics(images)[0] == ((255 * n - 1) / (255 * n),)
    assert pixel_statistics(images)[1][0] == pytest.approx((n - 1) ** 0.5 / (255 * n), rel=1e-12)


def test_constant_channel_divides_safely():
    images = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    images[0, 1] = 255
    assert pixel_statistics(images)[1] == (1.0, pytest.approx(0.4330127, rel=1e-6), 1.0)


def arrays(seed=0, n=6):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 5), dtype=np.uint8))
    return ImageArrays(x, torch.arange(n) % 2)


def test_fingerprint_ignores_strides_and_sees_every_change():
    a = arrays()
    first = fingerprint({"train": a, "test": a})
    last = ImageArrays(a.images.contiguous(memory_format=torch.channels_last), a.labels.clone())
    assert fingerprint({"train": last, "test": a}) == first
    pixel, label = a.images.clone(), a.labels.clone()
    pixel[3, 1, 2, 2] ^= 1
    label[5] ^= 1
    swapped = a.take(torch.tensor([1, 0, 2, 3, 4, 5]))
    flat = ImageArrays(a.images.reshape(6, 3, 5, 4), a.labels)
    others = [ImageArrays(pixel, a.labels), ImageArrays(a.images, label), swapped, flat]
    hashes = {fingerprint({"train": x, "test": a}) for x in others}
    hashes |= {fingerprint({"train": a, "test": x}) for x in others}
    hashes.add(fingerprint({"val": a, "test": a}))
    assert len(hashes) == 9
    assert first not in hashes
    assert len(first) == 32


def test_fingerprint_of_files(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"12345")
        (tmp_path / folder / "2.png").write_bytes(b"123")

    def of(folder, *names, size=(8, 8)):
        base = tmp_path / folder
        files = ImageFiles(tuple(base / name for name in names), torch.arange(len(names)), 3, size)
        return fingerprint({"train": files}, base)

    first = of("a", "1.png", "2.png")
    assert of("b", "1.png", "2.png") == first
    assert of("a", "2.png", "1.png") != first
    assert of("a", "1.png", "2.png", size=(8, 9)) != first
    (tmp_path / "b" / "1.png").write_bytes(b"123456")
    assert of("b", "1.png", "2.png") != first


def test_take_equals_indexing():
    a = arrays(n=9)
    indices = torch.tensor([8, 0, 3, 3])
    taken = a.take(indices)
    assert torch.equal(taken.images, a.images[indices])
    assert torch.equal(taken.labels, a.labels[indices])
    assert taken.images.is_contiguous(memory_format=torch.channels_last)
    assert (len(taken), taken.channels, taken.image_size) == (4, 3, (4, 5))
