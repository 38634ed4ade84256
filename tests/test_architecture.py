"""The house rules: imports run one way, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vit_gelu"

# What each room may import of ours, besides itself.
ALLOWED = {
    "randomness": set(),
    "suggest": set(),
    "compile_cache": set(),
    "whole_file": set(),
    "duration": set(),
    "figure_style": {"whole_file"},
    "user_cache": set(),
    "cpu_kernels": {"user_cache"},
    "activations": {"suggest", "cpu_kernels"},
    "models": {
        "randomness",
        "suggest",
        "whole_file",
        "user_cache",
        "activations",
        "compile_cache",
        "cpu_kernels",
    },
    "data": {"randomness", "suggest", "user_cache"},
    "training": {
        "randomness",
        "suggest",
        "whole_file",
        "duration",
        "activations",
        "compile_cache",
        "models",
        "data",
    },
    "probes": {"randomness", "suggest"},
    "export": {"randomness", "suggest", "whole_file", "activations", "models", "data", "training"},
    "cli": {
        "whole_file",
        "export",
        "randomness",
        "suggest",
        "activations",
        "models",
        "data",
        "training",
        "probes",
        "ablation",
        "bench",
        "analysis",
    },
    "bench": {
        "randomness",
        "suggest",
        "whole_file",
        "activations",
        "compile_cache",
        "models",
        "data",
        "training",
        "cli",
    },
    "analysis": {"whole_file", "figure_style", "activations", "models", "data", "training", "cli"},
    "ablation": {"randomness", "suggest", "whole_file", "figure_style", "duration", "cli"},
}


def imports_of(path: Path) -> set[str]:
    """Rooms of ours that a file imports, at any depth of the file."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            names = [
                ".".join([*base, *((node.module or "").split(".") if node.module else []), alias.name])
                for alias in node.names
            ]
        for name in names:
            parts = name.split(".")
            if parts[0] == "vit_gelu" and len(parts) > 1:
                rooms.add(parts[1])
    return rooms


FILES = sorted(
    p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem not in ("__init__", "__main__")
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in ALLOWED, f"{room} is not in the plan of the house"
    assert imports_of(path) - {room, "__version__"} <= ALLOWED[room]


def loaded_after(code: str) -> set[str]:
    code += "\nimport sys; print(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light():
    assert not loaded_after("import vit_gelu; vit_gelu.build_vit") & {
        "lightning",
        "pytorch_lightning",
        "matplotlib",
    }


def test_help_imports_no_torch():
    code = "import sys; sys.argv = ['vit-gelu', '--help']\nfrom vit_gelu.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code"
    assert not loaded_after(code) & {"torch", "lightning", "numpy", "matplotlib"}
