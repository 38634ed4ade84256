"""Where a run lives: a folder that is chosen once, by the first process, and never overwritten."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from vit_gelu.cli.errors import UsageError
from vit_gelu.training.attention import without_choice
from vit_gelu.training.checkpoint import find_checkpoint
from vit_gelu.training.config_hash import config_hash

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
