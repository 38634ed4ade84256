"""Names, paths and options; the embedded digits."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vit_gelu.data import decode_image, default_root, load_source


def test_digits_are_scikit_learns():
    source = load_source("digits")
    pixels, labels = load_digits(return_X_y=True)
    parts = (source.train, source.val, source.test)
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert (source.channels, source.image_size, source.num_classes) == (1, (8, 8), 10)
    got = [
        (tuple(round(float(v) * 16 / 255) for v in image.flatten()), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    ]
    expected = [(tuple(int(v) for v in row), int(label)) for row, label in zip(pixels, labels, strict=True)]
    assert sorted(got) == sorted(expected)
    assert source.train.images.max() == 255
    counts = np.bincount(labels)
    for part, share in zip(parts, (0.72, 0.08, 0.2), strict=True):
        assert np.abs(part.labels.bincount().numpy() - counts * share).max() <= 1.5


def test_digits_test_set_is_fixed():
    a, b = load_source("digits"), load_source("digits", split_seed=1, val_fraction=0.3)
    assert torch.equal(a.test.images, b.test.images)
    assert a.mean == b.mean
    assert a.fingerprint != b.fingerprint
    torch.manual_seed(5)
    assert load_source("digits").fingerprint == a.fingerprint


def test_wrong_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unknown data set 'cifar-10'. Did you mean 'cifar10'") as caught:
        load_source("cifar-10")
    assert str(caught.value).endswith("Choices: cifar10, cifar100, digits, or the path of an array file "
                                      "(.npz) or an image folder")  # fmt: skip
    with pytest.raises(ValueError, match=r"unknown data set 'CIFAR10'. Did you mean 'cifar10'"):
        load_source("CIFAR10")
    for name in ("faces.npz", "./faces", str(tmp_path / "faces"), "~/no such/faces"):
        with pytest.raises(
            FileNotFoundError, match=r"--data.name .*faces.*: there is no such file or folder"
        ):
            load_source(name)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_validation_is_not_optional(fraction):
    with pytest.raises(ValueError, match=r"--data.val_fraction .*: must be above 0 and below 1"):
        load_source("digits", val_fraction=fraction)


def test_validation_needs_two_images_of_a_class(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8)
    arrays = {
        "train_images": images,
        "train_labels": [0, 1],
        "test_images": images + 1,
        "test_labels": [0, 1],
    }
    np.savez(tmp_path / "tiny.npz", **arrays)
    with pytest.raises(ValueError, match="no class has two train images"):
        load_source(tmp_path / "tiny.npz")


@pytest.mark.parametrize("size", [0, -3, (8, 0)])
def test_image_size_must_be_positive(size):
    with pytest.raises(ValueError, match=r"--data.image_size .*: must be at least 1 pixel"):
        load_source("digits", image_size=size)


def test_image_size_resizes_arrays(tmp_path):
    source = load_source("digits", image_size=(16, 12))
    plain = load_source("digits")
    assert source.image_size == (16, 12)
    assert source.train.images.shape == (1294, 1, 16, 12)
    assert torch.equal(source.val.labels, plain.val.labels)
    from PIL import Image

    Image.fromarray(plain.test.images[5, 0].numpy()).save(tmp_path / "digit.png")
    expected = decode_image(tmp_path / "digit.png", (16, 12), channels=1)
    assert (source.test.images[5].int() - expected.int()).abs().max() <= 1
    assert load_source("digits", image_size=8).fingerprint == plain.fingerprint


def test_root_must_be_a_folder(tmp_path):
    (tmp_path / "cifar10.npz").touch()
    with pytest.raises(ValueError, match=r"--data.root .*cifar10.npz is a file: it must be a folder"):
        load_source("cifar10", tmp_path / "cifar10.npz", download=False)


def test_resized_images_must_fit_in_memory():
    with pytest.raises(ValueError, match=r"--data.image_size 4000 × 4000: .* would take 26.8 GiB of memory"):
        load_source("digits", image_size=4000)


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("VIT_GELU_DATA", str(tmp_path / "data"))
    assert default_root() == tmp_path / "data"
    monkeypatch.delenv("VIT_GELU_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_root() == tmp_path / "cache" / "vit_gelu"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_root() == tmp_path / "home" / ".cache" / "vit_gelu"


def test_a_share_of_the_training_images():
    """Stratified, fixed, the validation and test parts untouched; said by the fingerprint."""
    whole, part = load_source("digits"), load_source("digits", train_fraction=0.25)
    assert len(part.train) == round(0.25 * len(whole.train))
    shares = part.train.labels.bincount() / whole.train.labels.bincount()
    assert shares.min() > 0.24
    assert shares.max() < 0.26
    assert torch.equal(part.val.images, whole.val.images)
    assert torch.equal(part.test.images, whole.test.images)
    assert (part.mean, part.std) == (whole.mean, whole.std)
    assert part.fingerprint != whole.fingerprint
    rows = {image.numpy().tobytes() for image in whole.train.images}
    assert all(image.numpy().tobytes() in rows for image in part.train.images)
    assert torch.equal(part.train.images, load_source("digits", train_fraction=0.25).train.images)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_share_out_of_range(fraction):
    with pytest.raises(ValueError, match=r"--data\.train_fraction"):
        load_source("digits", train_fraction=fraction)
