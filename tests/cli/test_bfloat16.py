"""Emulated bfloat16 is said in one line, and only where it is known."""

import pytest

from tests.training.helpers import arguments
from vit_gelu.cli import machine, options
from vit_gelu.cli.options import TrainCLI


@pytest.mark.parametrize(
    ("lacks", "precision", "warned"),
    [
        (True, "bf16-mixed", True),
        (True, "bf16-true", True),
        (True, "32-true", False),
        (False, "bf16-mixed", False),
    ],
)
def test_announcement(tmp_path, monkeypatch, capsys, lacks, precision, warned):
    monkeypatch.setattr(options, "lacks_bfloat16", lambda: lacks)
    TrainCLI.parse(arguments(tmp_path / "run", trainer__precision=precision)).announce()
    lines = capsys.readouterr().err.splitlines()
    assert (
        len([line for line in lines if line.startswith("warning: this processor has no bfloat16")]) == warned
    )
    if warned:
        assert f"--trainer.precision {precision}" in " ".join(lines)


@pytest.mark.parametrize(("instructions", "lacks"), [(None, True), ("avx512_bf16", False)])
def test_what_the_processor_says(monkeypatch, instructions, lacks):
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: instructions)
    if not machine.Path("/proc/cpuinfo").is_file():
        lacks = False  # a system that does not tell
    assert machine.lacks_bfloat16() is lacks
