"""What a benchmark leaves behind: one record, two tables, a picture; nothing that is there is overwritten."""

import csv
import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vit_gelu.bench.comparison import Comparison, flattened, title
from vit_gelu.cli.errors import UsageError
from vit_gelu.training.exclusivity import summed_up
from vit_gelu.training.record import now, processor_name, software_and_device, write_json
from vit_gelu.whole_file import whole_file

RECORD, TABLE, ROUNDS, PICTURES = "bench.json", "bench.csv", "rounds.csv", ("bench.png", "bench.svg")
FILES = (RECORD, TABLE, ROUNDS, *PICTURES)
SCHEMA = 1


def claim_folder(folder: Path) -> None:
    """Make the folder, or refuse it.

    Raises:
        UsageError: it is a file, or holds results.
        OSError: it cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder}: is a file, not a folder")
    present = [name for name in FILES if (folder / name).exists()]
    if present:
        raise UsageError(
            f"--out {folder}: holds results already ({', '.join(present)}); nothing is overwritten: choose another"
        )
    folder.mkdir(parents=True, exist_ok=True)


def discard_if_empty(folder: Path) -> None:
    """Remove a folder that nothing was written to."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def load_average() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and software, as far as they can change a time."""
    cuda = device.type == "cuda"
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = None
    with warnings.catch_warnings():  # torch 2.9 answers with a word about newer settings
        warnings.simplefilter("ignore")
        float32 = torch.get_float32_matmul_precision()
    return software_and_device(device) | {
        "device_index": device.index,
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "float32_matmul_precision": float32,
        "triton": triton if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


class Results:
    """The results of one benchmark, on disk after each comparison, so that a run that is stopped leaves them.

    Args:
        folder: claimed already.
        kind: activations or training.
        asked: the options, for the record.
        device: that is measured.
    """

    def __init__(self, folder: Path, kind: str, asked: Mapping[str, Any], device: torch.device) -> None:
        self.folder = folder
        self.comparisons: list[Comparison] = []
        self.record: dict[str, Any] = {
            "schema": SCHEMA,
            "kind": kind,
            "status": "unfinished",
            "asked": dict(asked),
            "env": environment(device),
            "started": now(),
            "ended": None,
            "load_average": {"start": load_average(), "end": None},
            "exclusive": None,
            "notes": [],
            "left_out": [],
            "rows": [],
        }

    def add(self, comparison: Comparison) -> None:
        """Keep a comparison and write what there is."""
        self.comparisons.append(comparison)
        self.record["exclusive"] = summed_up([c.exclusive for c in self.comparisons])
        self.record["notes"] += [f"{comparison.title}: {note}" for note in comparison.notes]
        common = comparison.labels | {"exclusive": comparison.exclusive}
        self.record["rows"] += [finite(common | row) for row in comparison.rows]
        self.write()

    def leave_out(self, labels: Mapping[str, Any]) -> None:
        """Note a comparison that the time limit left out."""
        self.record["left_out"].append(title(labels))

    def finish(self) -> None:
        """Write everything, the record as finished."""
        self.record["status"] = "finished"
        self.write()

    def write(self) -> None:
        """Tables first, then the record: where it is, they are."""
        self.record["ended"] = now()
        self.record["load_average"]["end"] = load_average()
        write_csv(self.folder / TABLE, [flattened(row) for row in self.record["rows"]])
        write_csv(self.folder / ROUNDS, list(self._rounds()))
        write_json(self.folder / RECORD, self.record)

    def _rounds(self) -> list[dict[str, Any]]:
        """Every single time, so that anybody can do the statistics again."""
        keys = ("size", "batch", "dtype", "mode")
        return [
            {k: c.labels[k] for k in keys}
            | {"pass": what, "round": i, "activation": name, "seconds": seconds}
            for c in self.comparisons
            for what, times in c.times.items()
            for name, series in times.items()
            for i, seconds in enumerate(series)
        ]


def finite(value: Any) -> Any:
    """The same with NaN and infinities as words, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows under the union of their columns, whole or not at all; without rows, no file."""
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with whole_file(path, newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
