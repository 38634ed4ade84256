"""What a run says before it starts: what is built, and that bfloat16 is emulated, where that is known."""

import pytest

from tests.training.helpers import arguments
from vit_gelu.cli import announcement, machine
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
def test_emulated_bfloat16(tmp_path, monkeypatch, capsys, lacks, precision, warned):
    monkeypatch.setattr(announcement, "lacks_bfloat16", lambda: lacks)
    announcement.announce(TrainCLI.parse(arguments(tmp_path / "run", trainer__precision=precision)))
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "vit_small of embed_dim 32, depth 2, num_heads 2, activation"),
        ({"embed_dim": 384, "num_heads": "null"}, "vit_small of depth 2, activation"),
        ({"embed_dim": 384, "depth": 12, "num_heads": 6}, "vit_small, activation"),
    ],
)
def test_a_size_that_is_not_that_of_the_name(tmp_path, capsys, given, words):
    """A recipe that sets the width wins over a name on the command line: not without a word."""
    sizes = {f"model__{k}": v for k, v in given.items()}
    announcement.announce(TrainCLI.parse(arguments(tmp_path / "run", model__name="vit_small", **sizes)))
    assert capsys.readouterr().out.startswith(words)
