"""Downloads against a server on this machine that breaks off, ignores ranges, or sends something else."""

import hashlib
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest

from vit_gelu.data.download import DownloadError, download, md5_of
from vit_gelu.data.progress import progress

CONTENT = np.random.default_rng(0).bytes(1_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path.

    ``break_after``: bytes sent before the connection is cut, one entry per request, None for all of them.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.length, self.status = CONTENT, True, True, None
        self.break_after: list[int | None] = []
        self.asked: list[tuple[str, str | None]] = []
        self.shift = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, span = self.server, self.headers["Range"]
        server.asked.append((self.path, span))
        if server.status:
            return self.send_error(server.status)
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span and server.ranges else 0
        whole = len(server.content)
        if start >= whole:
            return self.send_error(416)
        self.send_response(206 if span and server.ranges else 200)
        if span and server.ranges:
            start += server.shift
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if server.length:
            self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        cut = server.break_after.pop(0) if server.break_after else None
        self.wfile.write(server.content[start:] if cut is None else server.content[start : start + cut])
        return None

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data.bin"


def asked_from(server) -> list[int]:
    return [int(span[6:-1]) if span else 0 for _, span in server.asked]


@pytest.mark.parametrize("length", [True, False])
def test_download(server, target, length):
    server.length = length
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert [p.name for p in target.parent.iterdir()] == ["data.bin"]


def test_file_address(target, tmp_path):
    (tmp_path / "there").write_bytes(CONTENT)
    download((tmp_path / "there").as_uri(), target, MD5)
    assert target.read_bytes() == CONTENT


def test_broken_connections_are_continued(server, target):
    server.break_after = [300_000, 1, 0, 0, 400_000]
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert asked_from(server) == [0, 300_000, 300_001, 300_001, 300_001, 700_001]


def test_what_an_earlier_start_left_is_continued(server, target):
    server.break_after = [250_000] + [0] * 3
    with pytest.raises(DownloadError, match=r"broke after 0.2 of 1.0 MB; the 0.2 MB so far are kept, the n"):
        download(server.url, target, MD5)
    assert not target.exists()
    server.asked.clear()
    download(server.url, target, MD5)
    assert asked_from(server) == [250_000]
    assert target.read_bytes() == CONTENT


def test_complete_part_needs_no_second_download(server, target):
    target.with_name("data.bin.part").write_bytes(CONTENT)
    download(server.url, target, MD5)
    assert asked_from(server) == [1_000_000]
    assert target.read_bytes() == CONTENT


def test_server_without_ranges_starts_again(server, target):
    server.ranges = False
    server.break_after = [300_000]
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_wrong_range_is_not_spliced_in(server, target):
    server.break_after = [300_000]
    server.shift = 7
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert asked_from(server) == [0, 300_000, 0]


def test_part_of_another_file_is_thrown_away(server, target):
    target.with_name("data.bin.part").write_bytes(b"x" * 1000)
    download(server.url, target, MD5)
    assert asked_from(server) == [1000, 0]
    assert target.read_bytes() == CONTENT


def test_wrong_content_never_becomes_the_file(server, target):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(
        DownloadError, match=f"is not the expected file: its md5 is [0-9a-f]{{32}}, not {MD5}"
    ):
        download(server.url, target, MD5)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 503])
def test_refusals(server, target, status):
    server.status = status
    with pytest.raises(DownloadError, match=f"the server answered {status}"):
        download(server.url, target, MD5)
    assert len(server.asked) == 1


def test_nobody_there(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match="refused"):
        download(f"http://127.0.0.1:{port}/x", target, MD5)
    assert list(target.parent.iterdir()) == []


def test_md5(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert md5_of(tmp_path / "abc") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321, appendix A.5


def test_progress_is_a_line_per_tenth_without_terminal(server, target, capsys, monkeypatch):
    monkeypatch.setattr("vit_gelu.data.progress.QUIET_SECONDS", 0.0)
    download(server.url, target, MD5)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 10
    assert lines[-1] == "downloading data.bin: 1.0 MB of 1.0 MB, 100 %"
    with progress("decoding x", 1000, "images") as show:
        for done in range(1, 1001):
            show(done)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"decoding x: {n} of 1000 images, {n // 10} %" for n in range(100, 1001, 100)]
    with progress("decoding y", None, "images") as show:
        for done in range(1, 2501):
            show(done)
    assert capsys.readouterr().err.splitlines() == ["decoding y: 1000 images", "decoding y: 2000 images"]


def test_progress_is_a_bar_on_a_terminal(server, target, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    download(server.url, target, MD5)
    shown = capsys.readouterr().err
    assert "downloading data.bin" in shown
    assert "1.0/1.0 MB" in shown
    assert "━" in shown
