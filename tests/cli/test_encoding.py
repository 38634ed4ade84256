"""Output where the terminal's or file's encoding lacks characters: Windows', or a shell without a locale."""

import os
import subprocess
import sys

import pytest

from tests.training.helpers import ROOT


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_report_is_printed_in_any_encoding(tmp_path, encoding):
    runs = ROOT / "docs" / "ablation_digits" / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "vit_gelu", "report", str(runs), "--out", str(tmp_path / "report")],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(encoding)
    assert "?" not in text
    assert "[-1.64, -0.47]" in text
    assert "±" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
