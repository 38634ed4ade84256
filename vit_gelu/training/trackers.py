"""Loggers that show runs elsewhere (Weights & Biases, TensorBoard, ...): each run is one there, and says what it is.

The rows of ``metrics.csv`` go to all of them; here are the options that a run was made with, and what came out.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

OUTCOME = (  # of the record
    "status",
    "val",
    "test",
    "speed",
    "epochs",
    "steps",
    "seconds",
    "best",
    "order_hash",
)


def wandb_logger(folder: Path) -> WandbLogger:
    """A run of Weights & Biases that belongs to a run folder: resumed, it goes on with the same one.

    In the project that the environment names (``WANDB_PROJECT``), or in ``vit_gelu``.

    Args:
        folder: the run folder, below which its files are kept.

    Raises:
        ModuleNotFoundError: wandb is not installed.
    """
    # Its own folders are called run-TIME-ID, or offline-run-TIME-ID.
    earlier = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.split("run-")[-1])
    return WandbLogger(
        name=folder.name,
        project=os.environ.get("WANDB_PROJECT") or "vit_gelu",
        save_dir=str(folder),
        id=earlier[-1].name.rsplit("-", 1)[1] if earlier else None,
    )


class Trackers:
    """What a run tells its loggers besides its rows.

    Args:
        loggers: of the Trainer, which has not trained yet.
        config: the resolved options of the run.
    """

    def __init__(self, loggers: Sequence[Logger], config: dict[str, Any]) -> None:
        self.loggers, self.config = loggers, config
        # A run that somebody else has begun in this process (a sweep) stays theirs to end.
        self._own = [x for x in loggers if isinstance(x, WandbLogger) and not _is_running()]

    @rank_zero_only
    def begin(self) -> None:
        """Tell the options; TensorBoard wants them together with what came out."""
        for logger in self.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.config)

    @rank_zero_only
    def conclude(self, record: dict[str, Any]) -> None:
        """Tell what came out; it is the last that they are told.

        Args:
            record: what stands in ``record.json``.
        """
        outcome = dict(_flat({name: record.get(name) for name in OUTCOME}))
        numbers = {k: v for k, v in outcome.items() if isinstance(v, int | float)}
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.summary.update(outcome)
            elif isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.config, {f"outcome/{k}": v for k, v in numbers.items()})
            logger.finalize("success")

    @rank_zero_only
    def end(self, failed: bool) -> None:
        """End what would otherwise take in the rows of the next run of this process.

        Args:
            failed: the run has not come to its end.
        """
        for logger in self._own:
            if _is_running():
                logger.experiment.finish(exit_code=int(failed))


def _is_running() -> bool:
    import wandb

    return wandb.run is not None


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif value is not None:
            yield prefix + name, value
