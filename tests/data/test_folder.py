"""Image folders: classes, parts, the cache, and what is wrong with a folder."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vit_gelu.data import ImageArrays, ImageFiles, decode_image, load_source
from vit_gelu.data import folder as folder_module

CLASSES = ("cat", "dog", "eel")
BICUBIC = transforms.InterpolationMode.BICUBIC


@pytest.fixture
def make(tmp_path):
    """Writes an image folder with 4, 5 and 6 train images of its classes, and fewer elsewhere."""

    def build(*parts, name="pets", classes=CLASSES):
        rng = np.random.default_rng(0)
        for part in parts:
            for i, class_name in enumerate(classes):
                place = tmp_path / name / part / class_name
                place.mkdir(parents=True)
                for k in range(4 + i if part == "train" else 2):
                    pixels = rng.integers(0, 256, (20 + 3 * k, 24 - i, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(place / f"{k}.{'png' if k % 2 else 'PNG'}")
        return tmp_path / name

    return build


@pytest.fixture
def load(tmp_path):
    """Loads with 16 × 16 pixels and the cache in a folder of the test's own."""

    def call(path, **options):
        return load_source(path, tmp_path / "cache", **{"image_size": 16, **options})

    return call


def peer(path, size=16):
    resize = transforms.Compose(
        [transforms.Resize(size, BICUBIC), transforms.CenterCrop(size), transforms.PILToTensor()]
    )
    return ImageFolder(path, resize)


def same_images(images: ImageArrays, dataset) -> bool:
    expected = sorted((x.numpy().tobytes(), y) for x, y in dataset)
    got = sorted((x.numpy().tobytes(), int(y)) for x, y in zip(images.images, images.labels, strict=True))
    return got == expected


def merge(a: ImageArrays, b: ImageArrays) -> ImageArrays:
    return ImageArrays(torch.cat([a.images, b.images]), torch.cat([a.labels, b.labels]))


@pytest.mark.parametrize("parts", [("train", "test"), ("train", "val"), ("train", "val", "test")])
def test_equals_torchvision(make, load, parts):
    folder = make(*parts)
    source = load(folder, val_fraction=0.3)
    assert source.class_names == CLASSES
    assert (source.name, source.channels, source.image_size) == ("pets", 3, (16, 16))
    test = "test" if "test" in parts else "val"
    assert same_images(source.test, peer(folder / test))
    assert [tuple(x) for x in source.test.labels[None].tolist()] == [(0, 0, 1, 1, 2, 2)]
    if len(parts) == 3:
        assert same_images(source.train, peer(folder / "train"))
        assert same_images(source.val, peer(folder / "val"))
    else:
        assert same_images(merge(source.train, source.val), peer(folder / "train"))
        assert source.val.labels.bincount().tolist() == [1, 2, 2]
    pixels = torch.stack([x for x, _ in peer(folder / "train")]).numpy() / 255
    np.testing.assert_allclose(source.mean, pixels.mean((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(source.std, pixels.std((0, 2, 3)), rtol=1e-10)


def test_second_start_decodes_nothing(make, load, monkeypatch, tmp_path):
    folder = make("train", "test")
    first = load(folder)

    def never(*_args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder_module, "decode_image", never)
    assert load(folder).fingerprint == first.fingerprint
    assert load(os.path.relpath(folder)).fingerprint == first.fingerprint
    with pytest.raises(AssertionError, match="decoded again"):
        load(folder, image_size=12)
    assert len(os.listdir(tmp_path / "cache" / "folders")) == 1


def change_content(folder):
    pixels = np.zeros((20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "train" / "cat" / "1.png")


def rename(folder):
    (folder / "train" / "cat" / "1.png").rename(folder / "train" / "cat" / "9.png")


def add(folder):
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "train" / "eel" / "7.png")


def remove(folder):
    (folder / "train" / "eel" / "5.png").unlink()


@pytest.mark.parametrize("change", [change_content, rename, add, remove])
def test_a_changed_folder_is_decoded_again(make, load, change, tmp_path):
    folder = make("train", "test")
    before = load(folder).fingerprint
    change(folder)
    after = load(folder)
    assert after.fingerprint != before
    assert same_images(merge(after.train, after.val), peer(folder / "train"))
    assert same_images(after.test, peer(folder / "test"))
    assert len(os.listdir(tmp_path / "cache" / "folders")) == 1


def test_a_file_of_the_same_size_but_another_time_is_decoded_again(make, load):
    folder = make("train", "test")
    path = folder / "test" / "dog" / "0.PNG"

    def write(value, seconds):
        Image.fromarray(np.full((24, 24, 3), value, np.uint8)).save(path, compress_level=0)
        os.utime(path, (seconds, seconds))
        return path.stat().st_size

    size = write(1, 1000)
    before = load(folder).fingerprint
    assert write(2, 1001) == size
    assert load(folder).fingerprint != before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken"])
def test_a_broken_cache_is_made_anew(make, load, tmp_path, caplog, content):
    folder = make("train", "test")
    before = load(folder).fingerprint
    (file,) = (tmp_path / "cache" / "folders").iterdir()
    file.write_bytes(content)
    assert load(folder).fingerprint == before
    assert "decoding" in caplog.text
    caplog.clear()
    assert load(folder).fingerprint == before
    assert not caplog.records


def test_a_cache_that_cannot_be_written_costs_one_line(make, tmp_path, caplog):
    folder = make("train", "test")
    (tmp_path / "file").touch()
    source = load_source(folder, tmp_path / "file" / "below", image_size=16)
    assert same_images(source.test, peer(folder / "test"))
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot be written" in line


def test_large_folders_stay_files(make, load, monkeypatch, tmp_path):
    folder = make("train", "test")
    arrays = load(folder, val_fraction=0.3)
    total = sum(map(len, (arrays.train, arrays.val, arrays.test)))
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", total * 3 * 16 * 16)
    assert isinstance(load(folder).train, ImageArrays)
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", total * 3 * 16 * 16 - 1)
    shutil.rmtree(tmp_path / "cache")
    files = load(folder, val_fraction=0.3)
    assert not (tmp_path / "cache").exists()
    for part in ("train", "val", "test"):
        images, expected = getattr(files, part), getattr(arrays, part)
        assert isinstance(images, ImageFiles)
        assert (images.image_size, images.channels) == ((16, 16), 3)
        assert torch.equal(images.labels, expected.labels)
        decoded = torch.stack([decode_image(p, images.image_size, images.channels) for p in images.paths])
        assert torch.equal(decoded, expected.images)
    # Few enough files that the sample for the statistics is all of them.
    assert files.mean == arrays.mean
    assert files.std == arrays.std
    assert files.fingerprint != arrays.fingerprint
    assert load(folder, val_fraction=0.3).fingerprint == files.fingerprint
    rename(folder)
    assert load(folder, val_fraction=0.3).fingerprint != files.fingerprint


def test_default_size(make, tmp_path):
    source = load_source(make("train", "test"), tmp_path / "cache")
    assert source.image_size == (224, 224)


def test_nested_hidden_and_other_files(make, load, caplog):
    folder = make("train", "test")
    before = load(folder).fingerprint
    deep = folder / "train" / "cat" / "more" / "and more"
    deep.mkdir(parents=True)
    shutil.copy(folder / "train" / "cat" / "0.PNG", deep / "x.png")
    for name in (".hidden.png", ".DS_Store"):
        (folder / "train" / "dog" / name).write_bytes(b"x")
    (folder / "train" / ".cache").mkdir()
    assert not caplog.records
    source = load(folder)
    assert source.fingerprint != before
    assert len(source.train) + len(source.val) == 16
    assert not caplog.records
    (folder / "train" / "cat" / "notes.txt").touch()
    (folder / "test" / "loose.png").touch()
    assert load(folder).fingerprint == source.fingerprint
    (line,) = [record.getMessage() for record in caplog.records]
    assert "2 files are not images of a class, and are not used: " in line
    assert "train/cat/notes.txt" in line
    assert "test/loose.png" in line


def spoil_class(folder):
    shutil.rmtree(folder / "train" / "dog")
    (folder / "train" / "dog").mkdir()


def spoil_test_class(folder):
    for file in (folder / "test" / "eel").iterdir():
        file.rename(file.with_suffix(".txt"))


def spoil_image(folder):
    (folder / "test" / "dog" / "1.png").write_bytes(b"not an image")


def cut_image(folder):
    path = folder / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:200])


BROKEN = {
    "no train": (
        lambda f: (f / "train").rename(f / "training"),
        r"has no train/ \(did you mean its training/",
    ),
    "no test": (lambda f: shutil.rmtree(f / "test"), "has no test/ and val/; found: train\n"),
    "test misspelt": (
        lambda f: (f / "test").rename(f / "tests"),
        r"no test/ and val/ \(did you mean its tests",
    ),
    "classes at the top": (lambda f: [(f / "train" / c).rename(f / c) for c in CLASSES], "two class folders"),
    "nothing": (lambda f: [shutil.rmtree(f / p) for p in ("train", "test")], "no train/; found: no folders"),
    "class missing in test": (
        lambda f: shutil.rmtree(f / "test" / "dog"),
        "class folder 'dog' is in train/ but not in test/",
    ),
    "class missing in train": (
        lambda f: (f / "test" / "fox").mkdir(),
        "class folder 'fox' is in test/ but not in train/",
    ),
    "empty class": (spoil_class, r"class folder train/dog has no image \(\.jpg"),
    "empty test class": (spoil_test_class, "class folder test/eel has no image"),
    "unreadable image": (spoil_image, "cannot read the image .*test/dog/1.png: "),
    "truncated image": (cut_image, "cannot read the image .*train/dog/3.png: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused(make, load, tmp_path, case):
    folder = make("train", "test")
    spoil, message = BROKEN[case]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "cache").exists()


def test_unreadable_image_among_many_files_is_named(make, load, monkeypatch):
    folder = make("train", "test")
    monkeypatch.setattr(folder_module, "MEMORY_LIMIT", 0)
    cut_image(folder)
    with pytest.raises(ValueError, match=r"cannot read the image .*train/dog/3.png: "):
        load(folder)
