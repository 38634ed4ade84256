"""``metrics.csv``: every logged row of a run, one file, never lost."""

import csv
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vit_gelu.whole_file import naming, whole_file

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_top1",
    "images_per_second",
    "val_loss",
    "val_top1",
    "val_top5",
    "seconds",
)
LOSS_COLUMNS = tuple(name for name in COLUMNS if "top" not in name)  # of training without classes


class MetricsFile(Logger):
    """Rows of metrics in a CSV file.

    A row is on disk when ``log_metrics`` returns. A run that resumes keeps the rows up to its checkpoint
    (``truncate``) and writes the later ones again, so that no step stands there twice.

    Args:
        path: the file; its folder is made when the first row comes.
        columns: what its first line names; a later row may add more.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = list(columns)
        self.rows = 0

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsFile":
        return self

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds the options of the run."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: column -> value; a new column is added to the file.
            step: number of optimizer steps taken.
        """
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self.columns]
        if new:
            old_rows = self.read()
            self.columns += new
            self._rewrite(old_rows)
        if not self.path.exists():
            self._rewrite([])
        with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        self.rows += 1

    def read(self) -> list[dict[str, str]]:
        """All rows as text; empty when there is no file."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    @rank_zero_only
    def truncate(self, rows: int) -> None:
        """Keep the first ``rows`` rows.

        Raises:
            ValueError: the file holds fewer.
        """
        kept = self.read()
        if len(kept) < rows:
            raise ValueError(
                f"{self.path} holds {len(kept)} rows, the checkpoint counted {rows}; a run goes on in its own folder "
                "(or in a copy of it, named by --out)"
            )
        if kept:
            self.columns = list(kept[0])
        self._rewrite(kept[:rows])
        self.rows = rows

    @rank_zero_only
    def sync(self) -> None:
        """Have the rows on the disk before a checkpoint counts them, should the power fail."""
        if self.path.exists():
            with self.path.open("a", encoding="utf-8") as file:
                os.fsync(file.fileno())

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self.path, newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
