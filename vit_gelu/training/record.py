"""The run folder and its ``record.json``: the only thing that ablations and reports read."""

import contextlib
import functools
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vit_gelu.models.linear import computed_by
from vit_gelu.training.metrics import MaskedScore, Score
from vit_gelu.whole_file import write_text

if TYPE_CHECKING:
    import lightning.pytorch as pl

SCHEMA = 1


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, default=str) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run folder, or None when the run has not ended.

    Raises:
        ValueError: the file is not a record, or of a newer schema than this version knows.
    """
    path = Path(folder) / "record.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a record of a run ({error})") from None
    if schema > SCHEMA:
        raise ValueError(
            f"{path}: schema {schema} is newer than this version knows ({SCHEMA}); upgrade vit_gelu"
        )
    return record


def git_commit() -> str | None:
    """Commit of the code that runs, with ``-dirty`` where tracked files differ; None outside a checkout."""
    # In a container the checkout is often another user's, of which git says nothing unless told that it is safe; its
    # code is what runs here anyway.
    package = Path(__file__).resolve().parents[1]
    git = ["git", "-c", "safe.directory=*", "-C", str(package)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10
        )
        if tracked.returncode:
            return None
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


@functools.cache
def code_commit() -> str | None:
    """``git_commit`` when this process first asked: of the code that it has loaded, whatever is edited meanwhile."""
    return git_commit()


def processor_name() -> str:
    """The CPU's model name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    if sys.platform == "darwin":  # platform.processor() says "arm"
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                command, capture_output=True, text=True, timeout=10, check=True
            ).stdout.strip()
    return platform.processor() or platform.machine()


def software_and_device(device: torch.device) -> dict[str, Any]:
    """Versions, the device's name and the commit: what a measured number must not stand without."""

    def package(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "vit_gelu": package("vit_gelu"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "lightning": package("lightning"),
        "timm": package("timm"),
        "device": torch.cuda.get_device_name(device)
        if cuda
        else f"{processor_name()} ({torch.get_num_threads()} threads)",
        "device_type": device.type,
        "git": code_commit(),
    }


def environment(
    trainer: "pl.Trainer", compiled: bool, graphs: str | None, *, autotuned: bool = False
) -> dict[str, Any]:
    """Versions, devices and precision of a run, and how its network and steps are launched."""
    device, precision = trainer.strategy.root_device, str(trainer.precision)
    return software_and_device(device) | {
        "n_devices": trainer.world_size,
        "precision": precision,
        "compiled": compiled,
        "autotuned": autotuned or None,
        "cuda_graphs": graphs,
        "linear_kernel": computed_by(device.type, bfloat16="bf16" in precision, compiled=compiled),
    }


def score_dict(score: Score | MaskedScore | None, split: str) -> dict[str, Any] | None:
    """A score as it stands in the record; shares are fractions 0–1."""
    if score is None:
        return None
    if isinstance(score, MaskedScore):
        return score._asdict()
    fields = ("top1", "top5", "loss", "n", "correct") if split == "test" else ("top1", "loss", "n", "correct")
    return {name: getattr(score, name) for name in fields}


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
