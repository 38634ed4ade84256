"""Short runs through the same door as the user's."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]

# A digits run of a second or two with everything random switched on.
TINY = {
    "data.name": "digits",
    "data.global_batch_size": 128,
    "data.augment": "digits",
    "model.patch_size": 4,
    "model.embed_dim": 32,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.attention": "explicit",  # nothing is measured
    "model.lr": 0.003,
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.log_every_n_steps": 3,
    "trainer.enable_progress_bar": "false",
}


def arguments(out: Path, **options: Any) -> list[str]:
    """Command line of a tiny run; dots in option names are written as two underscores."""
    merged = TINY | {k.replace("__", "."): v for k, v in options.items()}
    flags = [f"--{k}={v}" for k, v in merged.items()]
    return [
        "--config",
        str(ROOT / "tests/training/empty.yaml"),
        "--out",
        str(out),
        '--loggers=["csv"]',
        *flags,
    ]


def train(out: Path, *extra: str, **options: Any) -> dict[str, Any]:
    """Train in this process; returns the record."""
    from vit_gelu.cli.train import main

    status = main([*arguments(out, **options), *extra])
    assert status == 0, status
    return json.loads((out / "record.json").read_text())


def in_process(argv: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """``vit-gelu`` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **kwargs.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "vit_gelu", *argv], capture_output=True, text=True, cwd=ROOT, env=env, **kwargs
    )


def weights(out: Path, key: str = "state_dict", name: str = "last") -> dict[str, torch.Tensor]:
    """Weights in a run's checkpoint."""
    return torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)[key]


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Equal to the bit, key by key."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different


def metrics(out: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv without what depends on the clock."""
    with (out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
