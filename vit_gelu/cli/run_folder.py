"""Where a run lives: a folder that is chosen once, by the first process, and never overwritten."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.occupied import leave, occupy
from vit_gelu.training.attention import without_choice
from vit_gelu.training.checkpoint import find_checkpoint, read_checkpoint
from vit_gelu.training.config_hash import config_hash
from vit_gelu.training.record import read_record
from vit_gelu.whole_file import write_text

FOLDER_VARIABLE = "VIT_GELU_RUN_FOLDER"


def is_main_process() -> bool:
    """Whether this process is the first of its run; known before torch.distributed starts."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def free_folder(base: Path) -> Path:
    """``base``, or ``base-2``, ``base-3`` … : the first that does not exist."""
    if not base.exists():
        return base
    taken = [
        int(m[1]) for p in base.parent.glob(f"{base.name}-*") if (m := re.fullmatch(r".*-(\d+)", p.name))
    ]
    return base.with_name(f"{base.name}-{max([1, *taken]) + 1}")


def choose_folder(config: Any, resolved: dict[str, Any], kind: str = "") -> Path:
    """The run folder that the options mean.

    Args:
        config: the parsed options.
        resolved: the same as plain types, for finding the run that ``--ckpt_path last`` goes on with.
        kind: part of the name of a new folder, where it is not a plain training.

    Raises:
        UsageError: there is no such run.
    """
    if config.out is not None:
        return Path(config.out)
    if FOLDER_VARIABLE in os.environ and not is_main_process():
        return Path(os.environ[FOLDER_VARIABLE])
    if config.ckpt_path not in (None, "last"):
        checkpoint = find_checkpoint(config.ckpt_path)
        if (checkpoint.parent.parent / "config.yaml").is_file():
            return checkpoint.parent.parent
    data = Path(config.data.name).stem
    model = (
        (config.model.name or f"tuned-{Path(config.model.pretrained).name}")
        .replace("/", "-")
        .replace(":", "-")
    )
    activation = (config.model.activation or "own").rsplit(".", 1)[-1]
    parts = [data, *([kind] if kind else []), model, activation, f"seed{config.seed_everything}"]
    base = Path("runs") / "-".join(parts)
    return newest_like(base.parent, resolved) if config.ckpt_path == "last" else free_folder(base)


def newest_like(runs: Path, resolved: dict[str, Any]) -> Path:
    """The run folder under ``runs`` with these options and this seed that was begun last.

    Raises:
        UsageError: there is none.
    """
    wanted, seed = config_hash(without_choice(resolved)), resolved["seed_everything"]
    found = []
    for file in runs.glob("*/config.yaml"):
        other = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(other, dict) or other.get("seed_everything") != seed:
            continue
        if config_hash(without_choice(other)) == wanted:
            found.append(file)
    if not found:
        raise UsageError(
            f"--ckpt_path last: no run of these options under {runs}/; name its folder with --resume DIR"
        )
    return max(found, key=lambda f: f.stat().st_mtime).parent


def choose_checkpoint(asked: str | None, folder: Path) -> Path | None:
    """The checkpoint that a run goes on from; None: it begins.

    Args:
        asked: ``last``, or where the checkpoint is; None for a new run.
        folder: the run folder.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    if asked is None:
        return None
    if asked != "last":
        try:
            file = find_checkpoint(asked)
            read_checkpoint(file)
        except ValueError as error:
            raise UsageError(f"--ckpt_path {asked}: {str(error).removeprefix(f'{asked}: ')}") from None
        return file
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file() and not (folder / "record.json").is_file():
        if (folder / "config.yaml").is_file():
            # Stopped before its first checkpoint: from the start is as if it had never stopped.
            return None
        raise UsageError(f"--ckpt_path last: {folder} holds no checkpoints/last.ckpt")
    return last


class RunFolder:
    """The folder of a run, which no other process writes to between ``prepare`` and ``leave``.

    Args:
        path: where.
        resolved: all options, plain types, as they stand in ``config.yaml``.
        going_on: whether the run was begun before.
    """

    def __init__(self, path: Path, resolved: dict[str, Any], going_on: bool) -> None:
        self.path, self.resolved, self.going_on = path, resolved, going_on
        self.created = False
        self.lock: FileLock | None = None

    def prepare(self) -> dict[str, Any] | None:
        """Make the folder, keep others out of it, write ``config.yaml``; process 0 only.

        Returns:
            The record of the run when it is finished already and was asked to go on, else None.

        Raises:
            UsageError: the folder holds a run and going on with it was not asked for, or another process is at it.
        """
        if not is_main_process():
            return None
        record = read_record(self.path)
        if self.going_on and record is not None and record["status"] == "finished":
            return record
        if not self.going_on and self.path.is_dir() and any(self.path.iterdir()):
            state = "a finished run" if record else "an unfinished run, or something else"
            advice = "choose another --out" + ("" if record else f", or go on with --resume {self.path}")
            raise UsageError(f"--out {self.path}: holds {state}; nothing is overwritten: {advice}")
        self.created = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--out {self.path}: cannot be made: {error.strerror}") from None
        busy = f"{self.path}: another process is training there; wait for it, or stop it"
        self.lock = occupy(self.path, busy)
        os.environ[FOLDER_VARIABLE] = str(self.path.absolute())
        if not (self.path / "config.yaml").exists():
            self.write_config()
        return None

    def write_config(self) -> None:
        """``config.yaml``; of a run that goes on, once its checkpoint has agreed to the options."""
        if not is_main_process():
            return
        text = yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)
        write_text(self.path / "config.yaml", text)

    def leave(self) -> None:
        """Let others go on with the run."""
        leave(self.lock)
        self.lock = None

    def discard(self) -> None:
        """Remove a folder that this process made and that no step was trained in."""
        if self.created and not self._has_rows() and not any(self.path.glob("**/*.ckpt")):
            shutil.rmtree(self.path)

    def _has_rows(self) -> bool:
        file = self.path / "metrics.csv"
        return (
            file.is_file() and len(file.read_text(encoding="utf-8").splitlines()) > 1
        )  # the first names the columns
