"""Help of the small commands: short, with examples, without torch."""

import subprocess
import sys

import pytest

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
