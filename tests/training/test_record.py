"""What a record says about the machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.helpers import train
from vit_gelu.training import record
from vit_gelu.training.record import git_commit, processor_name
from vit_gelu.training.speed import SpeedMeter


def test_an_apple_processor_is_named(monkeypatch):
    """Python itself says "arm" for all of them."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))

    def run(command, **_):
        assert command == ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, stdout="Apple M2\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert processor_name() == "Apple M2"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_the_code(tmp_path, monkeypatch):
    """In a checkout of somebody else's too, as containers have them; none for a package that merely lies in one."""

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    file = tmp_path / "package" / "training" / "record.py"
    file.parent.mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "other.py").write_text("")
    monkeypatch.setattr(record, "__file__", str(file))
    assert git_commit() is None
    git("init", "-q")
    git("add", "other.py")
    git("commit", "-qm", "without the package")
    assert git_commit() is None
    git("add", "package/__init__.py")
    git("commit", "-qm", "with it")
    head = git("rev-parse", "HEAD")[:12]
    assert git_commit() == head
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(subprocess.CalledProcessError):
        git("status")
    assert git_commit() == head
    (tmp_path / "other.py").write_text("changed")
    assert git_commit() == f"{head}-dirty"


def test_a_run_records_the_commit_that_it_began_with(tmp_path, monkeypatch):
    """Whatever is committed or edited while it trains."""
    commit = ["at the start"]
    monkeypatch.setattr(record, "git_commit", lambda: commit[-1])
    monkeypatch.setattr(SpeedMeter, "on_train_end", lambda *_: commit.append("edited since"))
    record.code_commit.cache_clear()
    try:
        train(tmp_path / "run", trainer__max_epochs=1)
    finally:
        record.code_commit.cache_clear()
    assert commit[-1] == "edited since"
    assert json.loads((tmp_path / "run" / "record.json").read_text())["env"]["git"] == "at the start"
