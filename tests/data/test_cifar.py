"""CIFAR by every door: array file, official folder, official archive, download; damaged, missing, hostile."""

import dataclasses
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from vit_gelu.data import find_cifar, load_source
from vit_gelu.data.cifar import archive_url
from vit_gelu.data.cifar_batches import CIFAR

NAMES = ("cifar10", "cifar100")


def test_every_door_gives_the_same(mini, tmp_path):
    layout = CIFAR[mini.name]
    doors = {door: tmp_path / door for door in ("archive", "folder", "array file", "below", "inside")}
    for place in doors.values():
        place.mkdir()
    shutil.copy(mini.archive, doors["archive"])
    shutil.copytree(mini.folder, doors["folder"] / layout.folder)
    np.savez_compressed(doors["array file"] / f"{mini.name}.npz", **mini.arrays)
    (doors["below"] / mini.name).mkdir()
    shutil.copy(mini.archive, doors["below"] / mini.name)
    shutil.copytree(mini.folder, doors["inside"] / layout.folder)
    doors["inside"] /= layout.folder
    sources = {door: load_source(mini.name, root) for door, root in doors.items()}
    for source in sources.values():
        mini.check(source)
    assert len({source.fingerprint for source in sources.values()}) == 1
    # The second start reads the array file that the first one left.
    for door, root in doors.items():
        assert (root / f"{mini.name}.npz").exists()
        assert find_cifar(mini.name, root) == root / f"{mini.name}.npz"
        assert load_source(mini.name, root).fingerprint == sources[door].fingerprint
        assert not [file for file in os.listdir(root) if file.endswith(".tmp")]


def test_array_file_comes_first_then_folder(mini, tmp_path):
    layout = CIFAR[mini.name]
    shutil.copy(mini.archive, tmp_path)
    assert find_cifar(mini.name, tmp_path) == tmp_path / layout.archive
    shutil.copytree(mini.folder, tmp_path / layout.folder)
    assert find_cifar(mini.name, tmp_path) == tmp_path / layout.folder
    np.savez(tmp_path / f"{mini.name}.npz", **mini.arrays)
    assert find_cifar(mini.name, tmp_path) == tmp_path / f"{mini.name}.npz"
    assert find_cifar(mini.name, tmp_path / "nowhere") is None


def test_default_root(mini10, tmp_path, monkeypatch):
    np.savez(tmp_path / "cifar10.npz", **mini10.arrays)
    monkeypatch.setenv("VIT_GELU_DATA", str(tmp_path))
    mini10.check(load_source("cifar10", download=False))
    monkeypatch.setenv("VIT_GELU_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "cache" / "vit_gelu")):
        load_source("cifar10", download=False)


def test_root_that_cannot_be_written_costs_one_line(mini10, tmp_path, caplog):
    shutil.copy(mini10.archive, tmp_path)
    (tmp_path / "cifar10.npz").mkdir()  # in the way: works for root too, whom no permission stops
    mini10.check(load_source("cifar10", tmp_path))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / 'cifar10.npz'} cannot be written (")


def test_download_from_mirror(mini10, server, tmp_path):
    base = f"http://127.0.0.1:{server.server_port}"
    root = tmp_path / "new" / "folder"
    mini10.check(load_source("cifar10", root, mirror=base))
    assert (root / "cifar10.npz").exists()
    mini10.check(load_source("cifar10", root, mirror=base))
    assert len(server.asked) == 1
    whole = f"{base}/{mini10.archive.name}"
    mini10.check(load_source("cifar10", tmp_path / "other", mirror=whole))


def test_official_address_is_the_default(mini10, server, tmp_path, monkeypatch):
    url = f"http://127.0.0.1:{server.server_port}/{mini10.archive.name}"
    monkeypatch.setitem(CIFAR, "cifar10", dataclasses.replace(CIFAR["cifar10"], url=url))
    mini10.check(load_source("cifar10", tmp_path))


def test_two_starts_at_once_download_once(mini10, server, tmp_path):
    start = Barrier(2)

    def load():
        start.wait()
        return load_source("cifar10", tmp_path, mirror=f"http://127.0.0.1:{server.server_port}")

    with ThreadPoolExecutor(2) as pool:
        for source in [f.result() for f in [pool.submit(load), pool.submit(load)]]:
            mini10.check(source)
    assert len(server.asked) == 1


def test_offline(mini10, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_source("cifar10", tmp_path)
    message = str(caught.value)
    assert 3 <= len(message.splitlines()) <= 4
    for part in (
        f"--data.name cifar10: not found in --data.root {tmp_path}",
        "cifar10.npz, cifar-10-batches-py/ and cifar-10-python.tar.gz",
        f"Downloading {CIFAR['cifar10'].url} failed: ",
        "refused",
        "--data.mirror",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="download is off"):
        load_source("cifar10", tmp_path / "absent", download=False)
    assert not (tmp_path / "absent").exists()


def test_mirror_with_another_file(mini10, server, tmp_path, monkeypatch):
    monkeypatch.setitem(CIFAR, "cifar10", dataclasses.replace(CIFAR["cifar10"], md5="0" * 32))
    with pytest.raises(FileNotFoundError, match=r"is not the expected file: its md5 is [0-9a-f]{32}, not 00"):
        load_source("cifar10", tmp_path, mirror=f"http://127.0.0.1:{server.server_port}")
    assert not [file for file in os.listdir(tmp_path) if file.startswith("cifar")]


def test_download_to_a_place_that_cannot_be(mini10, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded to .*file/x: Not a directory"):
        load_source("cifar10", tmp_path / "file" / "x")


@pytest.mark.parametrize("mirror", ["mirror.example/cifar", "ftp://mirror.example", "http:///x", ""])
def test_mirror_must_be_an_address(mirror, tmp_path):
    with pytest.raises(ValueError, match=r"--data.mirror .* is not a web address"):
        load_source("cifar10", tmp_path, mirror=mirror)


def test_mirror_address():
    layout = CIFAR["cifar100"]
    for given, expected in {
        None: layout.url,
        "https://a.example/b": "https://a.example/b/cifar-100-python.tar.gz",
        "https://a.example": "https://a.example/cifar-100-python.tar.gz",
        "https://a.example/x.tgz?download=1": "https://a.example/x.tgz?download=1",
        "https://a.example/get/?key=1": "https://a.example/get/cifar-100-python.tar.gz?key=1",
        "file:///data/cifar": "file:///data/cifar/cifar-100-python.tar.gz",
    }.items():
        assert archive_url(layout, given) == expected


def test_incomplete_archive(mini, tmp_path):
    data = mini.archive.read_bytes()
    (tmp_path / mini.archive.name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"is incomplete or not the official archive: its md5 is .*\nDelete"):
        load_source(mini.name, tmp_path)


def test_array_file_of_another_data_set(mini10, tmp_path):
    arrays = mini10.arrays
    small = arrays | {key: arrays[key][:, ::2, ::2] for key in ("train_images", "test_images")}
    np.savez(tmp_path / "cifar10.npz", **small)
    with pytest.raises(ValueError, match=r"is not cifar10: it has 10 classes and images of 16 × 16 × 3"):
        load_source("cifar10", tmp_path)
    np.savez(tmp_path / "cifar100.npz", **arrays)
    with pytest.raises(ValueError, match=r"is not cifar100: it has 10 classes .* not 100 and 32 × 32 × 3"):
        load_source("cifar100", tmp_path)


REAL = Path(os.environ.get("VIT_GELU_DATA") or "/nonexistent")
MOMENTS = {
    # Of all pixels of the 50,000 train images; the deviations often quoted, 0.2023 …, are of something else.
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@pytest.mark.parametrize("name", NAMES)
def test_real(name):
    if find_cifar(name, REAL) is None:
        pytest.skip(f"no {name} under $VIT_GELU_DATA")
    source = load_source(name, REAL, download=False)
    classes = CIFAR[name].num_classes
    assert (len(source.train), len(source.val), len(source.test)) == (45_000, 5_000, 10_000)
    assert source.train.labels.bincount().tolist() == [45_000 // classes] * classes
    assert source.val.labels.bincount().tolist() == [5_000 // classes] * classes
    assert source.test.labels.bincount().tolist() == [10_000 // classes] * classes
    assert tuple(round(x, 4) for x in source.mean) == MOMENTS[name][0]
    assert tuple(round(x, 4) for x in source.std) == MOMENTS[name][1]
    assert source.class_names[0] == {"cifar10": "airplane", "cifar100": "apple"}[name]
    assert source.class_names[-1] == {"cifar10": "truck", "cifar100": "worm"}[name]
