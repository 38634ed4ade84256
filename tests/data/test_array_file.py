"""Array files: MedMNIST's layout loads, and every broken rule is named with its key."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_gelu.data import load_source
from vit_gelu.data.array_file import cache_array_file, write_array_file


def good(n=40, shape=(6, 5, 3), classes=4, **changes):
    """Arrays of a valid file, some replaced (a value) or left out (None)."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (n, *shape), dtype=np.uint8),
        "train_labels": np.arange(n) % classes,
        "test_images": rng.integers(0, 256, (n // 2, *shape), dtype=np.uint8),
        "test_labels": np.arange(n // 2) % classes,
    }
    arrays |= changes
    return {key: value for key, value in arrays.items() if value is not None}


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_rgb_file_is_split_and_described(tmp_path):
    arrays = good(class_names=np.array(["ant", "bee", "cat", "dog"]))
    source = load_source(save(tmp_path / "insects.npz", **arrays), val_fraction=0.2)
    assert source.name == "insects"
    assert source.class_names == ("ant", "bee", "cat", "dog")
    assert source.num_classes == 4
    assert (source.image_size, source.channels) == ((6, 5), 3)
    assert (len(source.train), len(source.val), len(source.test)) == (32, 8, 20)
    assert source.train.images.dtype == torch.uint8
    assert source.train.labels.dtype == torch.int64
    assert np.array_equal(source.test.images.permute(0, 2, 3, 1).numpy(), arrays["test_images"])
    # Every train image is in exactly one part, with its label.
    rows = torch.cat([source.train.images, source.val.images]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([source.train.labels, source.val.labels]).numpy()
    got = sorted((row.tobytes(), int(label)) for row, label in zip(rows, labels, strict=True))
    whole = zip(arrays["train_images"], arrays["train_labels"], strict=True)
    assert got == sorted((row.tobytes(), int(label)) for row, label in whole)
    # Statistics are of all that was delivered for training, whatever the split.
    np.testing.assert_allclose(source.mean, (arrays["train_images"] / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(source.std, (arrays["train_images"] / 255).std((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_medmnist_layout(tmp_path, shape, dtype):
    """Grey images, labels of shape (n, 1), a validation part of its own, compressed."""
    arrays = good(shape=shape)
    arrays |= {"val_images": arrays["test_images"][:8] // 2, "val_labels": arrays["test_labels"][:8]}
    for key in ("train_labels", "val_labels", "test_labels"):
        arrays[key] = arrays[key].astype(dtype)[:, None]
    np.savez_compressed(tmp_path / "tissue.npz", **arrays)
    source = load_source(str(tmp_path / "tissue.npz"))
    assert (len(source.train), len(source.val), len(source.test)) == (40, 8, 20)
    assert source.channels == 1
    assert source.class_names == ("0", "1", "2", "3")
    assert np.array_equal(source.val.images[:, 0].numpy(), arrays["val_images"].reshape(8, 6, 5))
    assert source.val.labels.tolist() == [0, 1, 2, 3] * 2
    assert len(source.mean) == len(source.std) == 1


def test_order_of_memory_does_not_matter(tmp_path):
    arrays = good()
    fortran = {key: np.asfortranarray(value) for key, value in arrays.items()}
    a = load_source(save(tmp_path / "a.npz", **arrays))
    assert load_source(save(tmp_path / "b.npz", **fortran)).fingerprint == a.fingerprint
    assert load_source(tmp_path / "a.npz", split_seed=1).fingerprint != a.fingerprint


IMAGES = good()["train_images"]
LABELS = good()["train_labels"]
BAD = {
    "key missing": ({"test_labels": None}, r"key 'test_labels' is missing Keys: train_images"),
    "key misspelt": (
        {"train_labels": None, "train_lables": LABELS},
        "key 'train_labels' is missing; did you mean its key 'train_lables'",
    ),
    "optional key misspelt": (
        {"class_name": np.array(["a", "b", "c", "d"])},
        "key 'class_names' is missing; did you mean its key 'class_name'",
    ),
    "validation half there": ({"val_images": IMAGES}, "val_images is there but val_labels is missing"),
    "floats": (
        {"train_images": IMAGES / 255},
        r"train_images is float64; pixels must be uint8, 0 to 255; scale 0-1 floats",
    ),
    "int16": ({"test_images": IMAGES.astype(np.int16)}, "test_images is int16; pixels must be uint8"),
    "channels first": (
        {"train_images": IMAGES.transpose(0, 3, 1, 2)},
        r"shape \(40, 3, 6, 5\).*channels come last",
    ),
    "alpha": ({"train_images": np.zeros((40, 6, 5, 4), np.uint8)}, "drop the alpha channel"),
    "flat": ({"train_images": IMAGES.reshape(40, -1)}, r"shape \(40, 90\); it must be"),
    "volumes": ({"train_images": np.zeros((40, 8, 8, 8), np.uint8)}, r"shape \(40, 8, 8, 8\); it must be"),
    "empty": (
        {"test_images": IMAGES[:0], "test_labels": LABELS[:0]},
        r"test_images is empty: shape \(0, 6, 5, 3\)",
    ),
    "lengths": ({"train_labels": LABELS[:-1]}, "train_images has 40 images but train_labels 39 labels"),
    "sizes": ({"test_images": IMAGES[:20, :5]}, "test_images are 5 × 5 × 3 but train_images 6 × 5 × 3"),
    "float labels": ({"train_labels": LABELS.astype(float)}, "train_labels is float64; labels must be int"),
    "names": ({"train_labels": np.array(list("abcd"))[LABELS]}, r"is <U1; labels must be .*np\.unique\(x"),
    "one-hot floats": ({"train_labels": np.eye(4)[LABELS]}, r"float64; labels must be .*argmax\(1\)"),
    "one-hot": ({"train_labels": np.eye(4, dtype=int)[LABELS]}, r"shape \(40, 4\).*one-hot.*argmax"),
    "negative": ({"test_labels": LABELS[:20] - 1}, r"test_labels\[0\] is -1; labels must be 0 … 3"),
    "unknown class": ({"test_labels": LABELS[:20] + 1}, r"test_labels\[3\] is 4; labels must be 0 … 3"),
    "out of range": (
        {"class_names": np.array(["a", "b", "c"])},
        r"train_labels\[3\] is 3; labels must be 0 … 2 \(3 classes\)",
    ),
    "gap": ({"train_labels": LABELS + (LABELS > 1)}, r"train_labels has no image of class 2 \(2\)"),
    "from one": ({"train_labels": LABELS + 1}, r"train_labels has no image of class 0 \(0\)"),
    "class without images": (
        {"class_names": np.array(list("abcde"))},
        r"train_labels has no image of class 4 \(e\)",
    ),
    "names twice": ({"class_names": np.array(list("abca"))}, "class_names has a twice"),
    "names not text": ({"class_names": np.arange(4)}, "class_names is int64 of shape"),
    "one class": ({"train_labels": LABELS * 0, "test_labels": LABELS[:20] * 0}, "at least two classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_rules_are_named(tmp_path, case):
    changes, message = BAD[case]
    path = save(tmp_path / "bad.npz", **good(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        load_source(path)
    assert str(caught.value).startswith(f"--data.name {path}: ")
    assert len(str(caught.value).splitlines()) <= 2


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("key", ["train_labels", "class_names", "train_images"])
def test_pickled_objects_are_refused_unread(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()] * 40, dtype=object)
    path = save(tmp_path / "bad.npz", **good(**{key: bomb}))
    with pytest.raises(ValueError, match=f"key '{key}' holds pickled objects, which are refused"):
        load_source(path)
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="is not an array file"):
        load_source(tmp_path / "raw.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6, 0.999])
def test_truncated_file(tmp_path, keep):
    path = save(tmp_path / "cut.npz", **good())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"cut.npz \(\d+ bytes\) is not an array file .*or is truncated"):
        load_source(path)


def test_damaged_file(tmp_path):
    path = save(tmp_path / "bits.npz", **good())
    data = bytearray(path.read_bytes())
    at = data.index(good()["train_images"].tobytes()[:50])
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="key 'train_images' cannot be read, the file is damaged: Bad CRC"):
        load_source(path)


def test_other_archives_and_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "docs.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"key 'train_images' is missing Keys: readme.txt"):
        load_source(tmp_path / "docs.npz")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes.txt \(5 bytes\) is not an array file"):
        load_source(tmp_path / "notes.txt")


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "kept.npz"
    write_array_file(path, good())
    with np.load(path, allow_pickle=False) as file:
        assert all(np.array_equal(file[key], value) for key, value in good().items())
    before = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        write_array_file(path, good(n=4))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["kept.npz"]


def test_cache_that_cannot_be_written_costs_one_line(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache_array_file(tmp_path / "file" / "x.npz", good())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("every start will decode again")
    assert "x.npz cannot be written (" in line
