"""CIFAR by every door: array file, official folder, official archive, download; damaged, missing, hostile."""

import dataclasses
import hashlib
import io
import os
import pickle
import shutil
import socket
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
import torchvision

from vit_gelu.data import find_cifar, load_source
from vit_gelu.data.cifar import archive_url
from vit_gelu.data.cifar_batches import CIFAR

NAMES = ("cifar10", "cifar100")


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_pickle(value) -> bytes:
    """Opcodes that Python 2's cPickle wrote (protocol 2), as in the published files."""
    if isinstance(value, dict):
        return b"}(" + b"".join(short(k) + python2_pickle(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, bytes):
        return short(value)
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    n, width = value.shape
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNNJ"
    dtype += b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = value.tobytes()
    shape = python2_pickle(n) + python2_pickle(width) + b"\x86"
    return made + b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"


def dump(value) -> bytes:
    return b"\x80\x02" + python2_pickle(value) + b"."


def rows(images: np.ndarray) -> np.ndarray:
    """As the authors describe it: 1024 red bytes row by row, then green, then blue."""
    return np.array([[*image[..., 0].flat, *image[..., 1].flat, *image[..., 2].flat] for image in images])


@dataclasses.dataclass
class Mini:
    """A small CIFAR in the official layout, and the arrays that it was made from."""

    name: str
    arrays: dict[str, np.ndarray]
    folder: Path
    archive: Path


def make(name: str, place: Path) -> Mini:
    layout = CIFAR[name]
    rng = np.random.default_rng(1)
    n, classes = 20 * layout.num_classes, layout.num_classes
    arrays = {
        "train_images": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
        "train_labels": rng.permutation(n) % classes,
        "test_images": rng.integers(0, 256, (classes, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(classes)[::-1].copy(),
        "class_names": np.array([f"{name} class {i}" for i in range(classes)]),
    }
    folder = place / layout.folder
    folder.mkdir(parents=True)

    def batch(images, labels):
        content = {b"data": rows(images).astype(np.uint8), layout.labels_key: [int(x) for x in labels]}
        if name == "cifar100":
            content[b"coarse_labels"] = [int(x) // 5 for x in labels]
        return dump(content | {b"batch_label": b"a batch"})

    share = n // len(layout.train)
    for i, file in enumerate(layout.train):
        part = slice(i * share, (i + 1) * share)
        (folder / file).write_bytes(batch(arrays["train_images"][part], arrays["train_labels"][part]))
    (folder / layout.test).write_bytes(batch(arrays["test_images"], arrays["test_labels"]))
    names = [text.encode() for text in arrays["class_names"].tolist()]
    (folder / layout.meta).write_bytes(dump({layout.names_key: names, b"num_vis": 3072}))
    (folder / "readme.html").write_text("not a batch")
    archive = place / layout.archive
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for file in sorted(folder.iterdir(), reverse=True):
            tar.add(file, f"{layout.folder}/{file.name}")
    return Mini(name, arrays, folder, archive)


@pytest.fixture(scope="module")
def minis(tmp_path_factory) -> dict[str, Mini]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(params=NAMES)
def mini(request, minis, monkeypatch) -> Mini:
    """One of the two, with its archive's checksum in place of the official one, and no network."""
    return arm(minis[request.param], monkeypatch)


@pytest.fixture
def mini10(minis, monkeypatch) -> Mini:
    return arm(minis["cifar10"], monkeypatch)


def arm(mini: Mini, monkeypatch) -> Mini:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    layout = CIFAR[mini.name]
    changed = dataclasses.replace(
        layout,
        url=f"http://127.0.0.1:{port}/{layout.archive}",
        md5=hashlib.md5(mini.archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(CIFAR, mini.name, changed)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return mini


@pytest.fixture
def server(mini10):
    """Serves the folder with the mini archive; ``.asked`` lists the requests."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            running.asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=mini10.archive.parent)) as running:
        running.asked = []
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def check(source, mini):
    arrays = mini.arrays
    assert source.class_names == tuple(arrays["class_names"].tolist())
    assert np.array_equal(source.test.images.permute(0, 2, 3, 1).numpy(), arrays["test_images"])
    assert np.array_equal(source.test.labels.numpy(), arrays["test_labels"])
    n = len(arrays["train_labels"])
    assert (len(source.train), len(source.val)) == (n * 9 // 10, n // 10)
    got = torch.cat([source.train.images, source.val.images]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([source.train.labels, source.val.labels]).numpy()
    assert sorted((x.tobytes(), int(y)) for x, y in zip(got, labels, strict=True)) == sorted(
        (x.tobytes(), int(y)) for x, y in zip(arrays["train_images"], arrays["train_labels"], strict=True)
    )


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
        check(source, mini)
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
    check(load_source("cifar10", download=False), mini10)
    monkeypatch.setenv("VIT_GELU_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "cache" / "vit_gelu")):
        load_source("cifar10", download=False)


def test_root_that_cannot_be_written_costs_one_line(mini10, tmp_path, caplog):
    shutil.copy(mini10.archive, tmp_path)
    (tmp_path / "cifar10.npz").mkdir()  # in the way: works for root too, whom no permission stops
    check(load_source("cifar10", tmp_path), mini10)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / 'cifar10.npz'} cannot be written (")


def test_download_from_mirror(mini10, server, tmp_path):
    base = f"http://127.0.0.1:{server.server_port}"
    root = tmp_path / "new" / "folder"
    check(load_source("cifar10", root, mirror=base), mini10)
    assert (root / "cifar10.npz").exists()
    check(load_source("cifar10", root, mirror=base), mini10)
    assert len(server.asked) == 1
    whole = f"{base}/{mini10.archive.name}"
    check(load_source("cifar10", tmp_path / "other", mirror=whole), mini10)


def test_official_address_is_the_default(mini10, server, tmp_path, monkeypatch):
    url = f"http://127.0.0.1:{server.server_port}/{mini10.archive.name}"
    monkeypatch.setitem(CIFAR, "cifar10", dataclasses.replace(CIFAR["cifar10"], url=url))
    check(load_source("cifar10", tmp_path), mini10)


def test_two_starts_at_once_download_once(mini10, server, tmp_path):
    start = Barrier(2)

    def load():
        start.wait()
        return load_source("cifar10", tmp_path, mirror=f"http://127.0.0.1:{server.server_port}")

    with ThreadPoolExecutor(2) as pool:
        for source in [f.result() for f in [pool.submit(load), pool.submit(load)]]:
            check(source, mini10)
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
        (dump([1, 2]), "holds a list, not a dict"),
        (dump({b"labels": [1]}), r"'data' must be uint8 of shape \(n, 3072\)"),
        (dump({b"data": np.zeros((2, 30), np.uint8), b"labels": [0, 1]}), "'data' must be uint8 of shape"),
        (dump({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}), "'labels' must be a list of 2 int"),
        (dump({b"data": np.zeros((1, 3072), np.uint8), b"labels": [b"0"]}), "'labels' must be a list of 1"),
        (
            dump({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
            r"train_labels\[\d+\] is 10; label",
        ),
    ],
)
def test_batches_with_something_else(mini10, tmp_path, content, message):
    shutil.copytree(mini10.folder, tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
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


def test_unpickler_reads_what_todays_numpy_writes(mini10, tmp_path):
    """Folders that somebody pickled anew, with Python 3's default protocol."""
    shutil.copytree(mini10.folder, tmp_path / "cifar-10-batches-py")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    content = pickle.load(io.BytesIO(path.read_bytes()), encoding="bytes")
    path.write_bytes(pickle.dumps(content, protocol=4))
    check(load_source("cifar10", tmp_path), mini10)
