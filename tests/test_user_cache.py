"""A cache for users without a home, or whose home cannot be written."""

import os
import stat

import pytest

from vit_gelu.data import default_root, load_source
from vit_gelu.user_cache import cache_file, cache_folder

needs_users = pytest.mark.skipif(not hasattr(os, "getuid"), reason="no such users here")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that stands in for the system's temporary one."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


@pytest.fixture
def no_home(monkeypatch):
    """A number for a user, as containers have them: no name, no home."""

    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("VIT_GELU_DATA", raising=False)
    monkeypatch.setattr(
        "pathlib.Path.expanduser", lambda path: nobody(path) if str(path).startswith("~") else path
    )


def test_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_file("kernels", "a.so") == tmp_path / "cache/vit_gelu/kernels/a.so"
    assert (tmp_path / "cache/vit_gelu/kernels").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/vit_gelu"


@needs_users
def test_one_for_a_while_where_there_is_none(temporary, no_home):
    file = cache_file("kernels", "a.so")
    assert file == temporary / f"vit_gelu-{os.getuid()}" / "kernels" / "a.so"
    assert stat.S_IMODE((temporary / f"vit_gelu-{os.getuid()}").stat().st_mode) == 0o700
    file.write_text("code")
    assert cache_file("kernels", "a.so").read_text() == "code"


@needs_users
def test_what_is_there_serves_though_nothing_can_be_added(tmp_path, temporary, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = cache_file("kernels", "a.so")
    file.write_text("code")
    monkeypatch.setattr(
        "os.access", lambda path, mode: False
    )  # the tests may run as root, who may write anywhere
    assert cache_file("kernels", "a.so") == file
    assert cache_file("kernels", "b.so").parent.parent.parent == temporary
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert cache_file("kernels", "a.so").parent.parent.parent == temporary


@needs_users
@pytest.mark.parametrize("how", ["writable by others", "a link"])
def test_code_is_not_loaded_from_where_others_may_write(how, tmp_path, temporary, no_home):
    folder = temporary / f"vit_gelu-{os.getuid()}"
    if how == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(PermissionError, match="is not this user's alone"):
        cache_file("kernels", "a.so")


def test_data_sets_need_a_place_of_their_own(no_home, monkeypatch):
    with pytest.raises(ValueError, match=r"--data\.root: this user has no home folder; name one"):
        default_root()
    with pytest.raises(ValueError, match=r"--data\.root: this user has no home folder"):
        load_source("cifar10")
    assert len(load_source("digits").test) == 359
