"""Every training command in the README parses, and what it imports exists."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
TRAINING = re.compile(r"(?:.* )?(?:python )?train\.py (.*)")


@pytest.mark.parametrize("line", [line for line in LINES if TRAINING.match(line)])
def test_training_commands_parse(line, monkeypatch):
    from vit_gelu.cli.configs import expand_configs
    from vit_gelu.cli.options import build_parser

    monkeypatch.chdir(ROOT)
    match = TRAINING.match(line)
    assert match
    build_parser().parse_args(expand_configs(shlex.split(match[1], comments=True)))


def test_there_are_commands_to_check():
    assert sum(bool(TRAINING.match(line)) for line in LINES) >= 6


def test_relative_links_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_listed_activations_are_the_table():
    from vit_gelu.activations import ACTIVATIONS

    section = TEXT.split("## Choose the activation")[1].split("What each one is")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) == set(ACTIVATIONS)
