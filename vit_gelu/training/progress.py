"""What a person sees while training: a live bar on a terminal, one line per epoch anywhere else."""

import sys
import time
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from vit_gelu.duration import clock
from vit_gelu.training.monitor import Monitor
from vit_gelu.training.speed import SpeedMeter

REFRESH_SECONDS = 1.0  # drawing takes milliseconds on the thread that trains
LINE_SECONDS = 30.0


class Display(Callback):
    """Shows loss, accuracy, images per second and the time left; on process 0 only.

    It reads what the monitor has fetched already, so it never waits for the device.

    Args:
        monitor, speed: where the figures come from.
        stream: where to write; standard output by default.
    """

    def __init__(self, monitor: Monitor, speed: SpeedMeter, stream: Any = None) -> None:
        self.monitor, self.speed = monitor, speed
        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self._total = 0
        self._done = 0
        self._shown_at = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._total = int(trainer.estimated_stepping_batches)
        self._done = trainer.global_step
        self._shown_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        if self.live:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                auto_refresh=False,
            )
            self.task = self.progress.add_task(
                self._epoch(trainer), total=self._total, completed=self._done, figures=""
            )
            self.progress.start()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._done = trainer.global_step
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._shown_at < (
            REFRESH_SECONDS if self.live else LINE_SECONDS
        ):
            return
        self._shown_at = now
        if self.progress is not None and self.task is not None:
            self.progress.update(
                self.task,
                completed=self._done,
                description=self._epoch(trainer),
                figures=self._figures(),
                refresh=True,
            )
        elif not trainer.is_last_batch:
            self.console.print(f"{self._epoch(trainer)}  step {self._done}/{self._total}  {self._figures()}")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._shown_at = time.monotonic()
            line = f"{self._epoch(trainer)}  step {self._done}/{self._total}  {self._figures(epoch=True)}"
            (self.progress.console if self.progress else self.console).print(line)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    @staticmethod
    def _epoch(trainer: Any) -> str:
        total = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "?"
        return f"epoch {trainer.current_epoch + 1}/{total}"

    def _figures(self, epoch: bool = False) -> str:
        row = self.monitor.latest
        parts = []
        if "train_loss" in row:
            top1 = f"  top-1 {100 * row['train_top1']:.1f} %" if "train_top1" in row else ""
            parts.append(f"loss {row['train_loss']:.3f}{top1}")
        if "val_loss" in row:
            top1 = f"  val top-1 {100 * row['val_top1']:.2f} %" if "val_top1" in row else ""
            parts.append(f"val loss {row['val_loss']:.3f}{top1}")
        rate = self.speed.images_per_second(last=50)
        if rate is not None:
            parts.append(f"{rate:,.0f} images/s")
            left = (self._total - self._done) * self.speed.global_batch / rate
            if self._done < self._total:
                parts.append(f"{clock(left)} left")
        return "  ".join(parts)
