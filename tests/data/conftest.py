"""Small CIFAR data sets in the official layout, made on the spot."""

import dataclasses
import hashlib
import socket
import struct
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

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

    def check(self, source):
        """The source holds these arrays, train split 9 to 1."""
        arrays = self.arrays
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


@pytest.fixture(name="dump")
def dump_fixture():
    return dump


@pytest.fixture(scope="session")
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
