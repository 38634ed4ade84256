"""Tiny ablations of the digits."""

from pathlib import Path
from typing import Any

import yaml

from tests.training.helpers import ROOT, TINY

TRAIN = {
    name: value
    for name, value in TINY.items()
    if name not in ("trainer.devices", "trainer.enable_progress_bar")
} | {"trainer.enable_progress_bar": False}


def specification(**changes: Any) -> dict[str, Any]:
    """A plan as a user writes it."""
    plan = {
        "config": str(ROOT / "tests/training/empty.yaml"),
        "overrides": TRAIN,
        "arms": ["gelu", "gelu_stochastic"],
        "seeds": 2,
    }
    return plan | changes


def write_plan(path: Path, **changes: Any) -> str:
    """The same as a file."""
    path.write_text(yaml.safe_dump(specification(**changes)))
    return str(path)
