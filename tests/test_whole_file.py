"""Files that are written whole or not at all, on a disk that is full above all."""

import errno
import os

import pytest

from vit_gelu.whole_file import naming, whole_file, write_text


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_text_is_utf8_and_what_was_there_is_replaced(tmp_path):
    file = tmp_path / "a.txt"
    for text in ("− 1\n", "σ"):
        write_text(file, text)
        assert file.read_bytes() == text.encode()
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()]
)
def test_what_was_there_stays_after_any_error(tmp_path, error):
    file = tmp_path / "a.bin"
    file.write_bytes(b"before")

    def write():
        with whole_file(file, "wb") as opened:
            opened.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert file.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_names_the_file(tmp_path, monkeypatch, call):
    """Python names a file that it cannot open, not one that it cannot write."""
    file = tmp_path / "a.txt"
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="not written: No space left on device") as refused:
        write_text(file, "text")
    assert refused.value.filename == str(file)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="broken picture"), naming(file):
        raise OSError("broken picture")
    with pytest.raises(FileNotFoundError) as refused, naming(file):
        file.open()
    assert refused.value.filename == str(file)
