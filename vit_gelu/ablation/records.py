"""Run folders as they lie on disk: which there are, and whether each record is sound by itself."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vit_gelu.cli.errors import UsageError

SCHEMA = 1
RECORD, CONFIG, CURVES = "record.json", "config.yaml", "metrics.csv"
# Nothing of ours lies deeper in a run.
NOT_ENTERED = {"checkpoints", "tensorboard", "wandb"}
TOLERANCE = 1e-9
# What a record must have to be compared.
TEXTS = (
    "activation",
    "order_hash",
    "config_hash",
    "model.name",
    "dataset.name",
    "dataset.fingerprint",
    "env.device_type",
    "env.device",
    "env.precision",
)
WHOLE_NUMBERS = (
    "seed",
    "steps",
    "epochs",
    "global_batch_size",
    "dataset.train_n",
    "dataset.val_n",
    "dataset.test_n",
)


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where its record lies.
        record: ``record.json``, checked.
        arm: the name under which it is compared; given by ``pairing``.
    """

    folder: Path
    record: dict[str, Any]
    arm: str = ""

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return int(self.record["seed"])

    @property
    def order_hash(self) -> str:
        """Hash of the order of images that the run saw."""
        return str(self.record["order_hash"])

    @property
    def env(self) -> dict[str, Any]:
        """Versions, device and precision."""
        return dict(self.record["env"])


@dataclass(frozen=True)
class LeftOut:
    """A run that counts nowhere, and why.

    Attributes:
        folder: of the run.
        reason: a sentence's end, such as ``diverged at step 40``.
        record: what could be read of it; empty when nothing could.
        diverged: whether training itself failed, which is a result too.
    """

    folder: Path
    reason: str
    record: dict[str, Any] = field(default_factory=dict)
    diverged: bool = False


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """Every run in or under the folders.

    Args:
        folders: run folders, or folders that hold some at any depth, copied from anywhere.

    Returns:
        Finished runs with sound records, by folder; the others, each with its reason.

    Raises:
        UsageError: a folder is missing, or there is no run in any of them.
    """
    found: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(
                f"{folder}: {'is a file, not a folder' if folder.exists() else 'no such folder'}"
            )
        for place in _run_folders(folder):
            found.setdefault(place.resolve(), place)
    if not found:
        listed = ", ".join(str(f) for f in folders)
        raise UsageError(
            f"no runs under {listed}: a run folder holds {RECORD}; vit-gelu train --out DIR makes one"
        )
    runs, left_out = [], []
    for place in sorted(found.values()):
        result = read_run(place)
        if isinstance(result, Run):
            runs.append(result)
        else:
            left_out.append(result)
    return runs, left_out


def _run_folders(folder: Path) -> list[Path]:
    places = []
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if name not in NOT_ENTERED and not name.startswith("."))
        if RECORD in files or {CONFIG, CURVES} <= set(files):
            places.append(Path(place))
    return places


def read_run(folder: Path) -> Run | LeftOut:
    """The run in a folder, or why it cannot be used."""
    path = folder / RECORD
    if not path.exists():
        return LeftOut(folder, f"not finished: no {RECORD}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return LeftOut(folder, f"{RECORD} cannot be read: {error}")
    schema = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        return LeftOut(folder, f"{RECORD} is not the record of a run")
    if schema > SCHEMA:
        return LeftOut(
            folder, f"schema {schema} is newer than this version knows ({SCHEMA}); upgrade vit_gelu"
        )
    if record.get("status") == "diverged":
        return LeftOut(folder, f"diverged at step {record.get('diverged_step')}", record, diverged=True)
    if record.get("status") != "finished":
        return LeftOut(folder, f"status is {record.get('status')!r}, not 'finished'", record)
    if record.get("objective", "classification") != "classification":
        return LeftOut(folder, f"{record['objective']} pre-training, which has no accuracy", record)
    flaw = find_flaw(record)
    return LeftOut(folder, flaw, record) if flaw else Run(folder, record)


def only_tuned(record: dict[str, Any]) -> bool:
    """Whether a run was there to choose what its ablation tuned: by its seed, which is none of the ablation's."""
    tuned = record.get("tuned")
    return isinstance(tuned, dict) and record.get("seed") in (tuned.get("seeds") or ())


def find_flaw(record: dict[str, Any]) -> str | None:
    """What contradicts itself or is missing in a finished run's record; None if nothing."""
    for name in TEXTS:
        if not isinstance(look_up(record, name), str) or not look_up(record, name):
            return f"the record has no {name}"
    for name in WHOLE_NUMBERS:
        value = look_up(record, name)
        if not isinstance(value, int) or isinstance(value, bool):
            return f"the record's {name} is {value!r}, not a whole number"
    if not isinstance(record.get("arm", ""), str):
        return f"the record's arm is {record['arm']!r}, not a text"
    if not isinstance(record.get("tuned") or {}, dict):
        return f"the record's tuned is {record['tuned']!r}, not a mapping"
    for split in ("val", "test"):
        flaw = _score_flaw(record.get(split), record["dataset"][f"{split}_n"], split)
        if flaw:
            return flaw
    return None


def _score_flaw(score: Any, n: int, split: str) -> str | None:
    if not isinstance(score, dict):
        return None if split == "val" and n == 0 else f"the record has no {split} score"
    for name in ("top1", "loss", *(("top5",) if split == "test" else ())):
        value = score.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{split} {name} is {value!r}, not a finite number"
    if score.get("n") != n:
        return f"{split} was measured on {score.get('n')} images, the split has {n}"
    correct = score.get("correct")
    if correct is not None and abs(score["top1"] * n - correct) > TOLERANCE * n:
        return f"{split} top-1 {score['top1']} is not {correct} of {n}"
    return None


def look_up(record: dict[str, Any], name: str) -> Any:
    """The value under a dotted name, None where there is none.

    >>> look_up({"test": {"top1": 0.5}}, "test.top1")
    0.5
    """
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
