"""What a record says about the machine."""

import subprocess
import sys
from pathlib import Path

from vit_gelu.training.record import processor_name


def test_an_apple_processor_is_named(monkeypatch):
    """Python itself says "arm" for all of them."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))

    def run(command, **_):
        assert command == ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, stdout="Apple M2\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert processor_name() == "Apple M2"
