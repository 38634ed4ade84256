"""Help of the small commands: short, with examples, without torch."""

import os
import subprocess
import sys

import pytest

from vit_gelu.cli import share_the_processor

COMMANDS = ("evaluate", "predict", "doctor")


def test_help_needs_no_torch_and_no_table():
    code = """
import io, sys, contextlib, importlib
for name in sys.argv[1:]:
    main = importlib.import_module(f"vit_gelu.cli.{name}").main
    for argv in (["--help"], ["x", "--jsn", "-h"]):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(argv) == 0
        assert out.getvalue().startswith(f"usage: vit-gelu {name} ")
heavy = {"torch", "numpy", "lightning", "matplotlib", "rich", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_option_and_fits_a_screen(name, capsys):
    import importlib

    module = importlib.import_module(f"vit_gelu.cli.{name}")
    parser = module._parser()
    assert module.main(["--help"]) == 0
    text = capsys.readouterr().out
    options = [s for action in parser._actions for s in action.option_strings]
    assert options
    for option in options:
        assert f"  {option}" in text
    assert "examples:" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "10000"),
        ({"OMP_WAIT_POLICY": "active"}, None),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_how_they_wait(monkeypatch, given, expected):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_the_processor()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
