"""The official folders and archives: read as published; damaged or hostile ones are refused."""

import dataclasses
import hashlib
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torchvision

from vit_gelu.data import load_source
from vit_gelu.data.cifar_batches import CIFAR


def test_layouts_are_the_published_ones():
    for name, peer in (
        ("cifar10", torchvision.datasets.CIFAR10),
        ("cifar100", torchvision.datasets.CIFAR100),
    ):
        layout = CIFAR[name]
        assert (layout.url, layout.md5, layout.archive) == (peer.url, peer.tgz_md5, peer.filename)
        assert layout.folder == peer.base_folder
        assert list(layout.train) == [file for file, _ in peer.train_list]
        assert [layout.test] == [file for file, _ in peer.test_list]
        assert (layout.meta, layout.names_key.decode()) == (peer.meta["filename"], peer.meta["key"])


def test_mini_is_what_torchvision_reads(mini):
    """The made files are in the official layout, for somebody else's reader too."""
    peer = getattr(torchvision.datasets, mini.name.upper())

    class Unchecked(peer):
        def _check_integrity(self):
            return True

        def _load_meta(self):
            pass

    read = Unchecked(mini.folder.parent, train=True)
    assert np.array_equal(read.data, mini.arrays["train_images"])
    assert read.targets == mini.arrays["train_labels"].tolist()


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no tar", "lacks a batch"])
def test_archive_that_has_the_checksum_but_not_the_content(mini10, tmp_path, monkeypatch, damage):
    path = tmp_path / mini10.archive.name
    data = mini10.archive.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "no gzip":
        path.write_bytes(b"hello" * 1000)
    else:
        with tarfile.open(path, "w:gz") as tar:
            if damage == "lacks a batch":
                tar.add(mini10.folder / "test_batch", "cifar-10-batches-py/test_batch")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(CIFAR, "cifar10", dataclasses.replace(CIFAR["cifar10"], md5=md5))
    message = {
        "cut": "is no .tar.gz archive, or is truncated",
        "no gzip": "is no .tar.gz archive, or is truncated",
        "no tar": "it lacks data_batch_1, data_batch_2",
        "lacks a batch": "it lacks data_batch_1, data_batch_2",
    }[damage]
    with pytest.raises(ValueError, match=message):
        load_source("cifar10", tmp_path)
    assert not (tmp_path / "cifar10.npz").exists()


class Exploit:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def test_hostile_pickles_are_refused_unread(mini10, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    attacks = [
        (os.system, "touch exploded"),
        (eval, "open('exploded', 'w')"),
        (np.load, "exploded"),
        (getattr, "x", "upper"),
    ]
    for file in ("data_batch_1", "test_batch", "batches.meta"):
        for protocol in (0, 2, 4, 5):
            for call, *args in attacks:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(mini10.folder, folder)
                (folder / file).write_bytes(pickle.dumps(Exploit(call, *args), protocol))
                with pytest.raises(ValueError, match=rf"{file} is no CIFAR batch.* asks for \w+(\.\w+)+, "):
                    load_source("cifar10", tmp_path)
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "cifar10.npz").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no CIFAR batch, or is damaged"),
        (b"hello", "is no CIFAR batch, or is damaged"),
        ([1, 2], "holds a list, not a dict"),
        ({b"labels": [1]}, r"'data' must be uint8 of shape \(n, 3072\)"),
        ({b"data": np.zeros((2, 30), np.uint8), b"labels": [0, 1]}, "'data' must be uint8 of shape"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, "'labels' must be a list of 2 int"),
        ({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"0"]}, "'labels' must be a list of 1"),
        (
            {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]},
            r"train_labels\[\d+\] is 10; label",
        ),
    ],
)
def test_batches_with_something_else(mini10, dump, tmp_path, content, message):
    shutil.copytree(mini10.folder, tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(
        content if isinstance(content, bytes) else dump(content)
    )
    with pytest.raises(ValueError, match=message):
        load_source("cifar10", tmp_path)


def test_damaged_batches_never_escape_as_other_errors(mini10, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(mini10.folder, folder)
    data = (folder / "batches.meta").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        (folder / "batches.meta").write_bytes(broken[: rng.integers(1, len(data) + 1)])
        try:
            load_source("cifar10", tmp_path)
            (tmp_path / "cifar10.npz").unlink()
        except ValueError:
            refused += 1
    assert refused > 100


def test_unpickler_reads_what_todays_numpy_writes(mini10, tmp_path):
    """Folders that somebody pickled anew, with Python 3's default protocol."""
    shutil.copytree(mini10.folder, tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = pickle.load(io.BytesIO(path.read_bytes()), encoding="bytes")
    path.write_bytes(pickle.dumps(content, protocol=4))
    mini10.check(load_source("cifar10", tmp_path))
