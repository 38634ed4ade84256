"""Output where the terminal's or file's encoding lacks characters: Windows', or a shell without a locale."""

import io
import sys

import pytest

from vit_gelu.cli import main

LINE = "GELU −1.06 [−1.64, +0.10] points ± 0.2, σ → 1 …"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", LINE),
        ("ascii", "GELU -1.06 [-1.64, +0.10] points +- 0.2, sigma -> 1 ..."),
        ("cp1252", "GELU -1.06 [-1.64, +0.10] points ± 0.2, sigma -> 1 …"),
    ],
)
def test_commands_print_in_any_encoding(monkeypatch, encoding, expected):
    written = [io.BytesIO(), io.BytesIO()]
    for name, to in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(to, encoding))
    main(["--version"])
    for stream, to in zip((sys.stdout, sys.stderr), written, strict=True):
        print(LINE, file=stream, flush=True)
        assert to.getvalue().decode(encoding).splitlines()[-1] == expected
