"""Loss and accuracy while training, without a device synchronisation per step, and the stop on NaN."""

import time
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vit_gelu.training.record import now


class Diverged(RuntimeError):
    """The loss stopped being finite.

    Args:
        step: the first optimizer step (counted from 0) whose loss was NaN or infinite.
        lr: the learning rate of that step.
    """

    def __init__(self, step: int, lr: float) -> None:
        self.step, self.lr = step, lr
        super().__init__(
            f"the loss became NaN or infinite at step {step} (learning rate {lr:.3g}); "
            "try a lower --model.lr, a longer --model.warmup_epochs or --trainer.gradient_clip_val 1.0"
        )


class Monitor(Callback):
    """Sums loss and hits on the device; reads them, logs a row and checks for NaN every ``log_every_n_steps``.

    The sums are part of the checkpoint, so a resumed run logs the rows of an uninterrupted one.

    Attributes:
        latest: the last row that was logged, for displays.
        started: when the run first started, UTC.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # loss, correct, images
        self.bad_step: Tensor | None = None
        self.window_lrs: dict[int, float] = {}
        self.flushed_step = 0
        self.rows = 0
        self.latest: dict[str, float] = {}
        self.started = ""
        self._seconds_before = 0.0
        self._began = 0.0

    @property
    def seconds(self) -> float:
        """Time spent between start and end of training, evaluation included, over all parts of a resumed run."""
        return self._seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = self.started or now()
        self._began = time.monotonic()
        device = pl_module.device
        self.sums = torch.zeros(3, device=device) if self.sums is None else self.sums.to(device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        for logger in trainer.loggers:
            if hasattr(logger, "truncate"):
                logger.truncate(self.rows)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.window_lrs[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.sums is not None
        assert self.bad_step is not None
        loss = outputs["batch_loss"].float()
        n = len(batch.targets)
        self.sums += torch.stack([loss * n, outputs["correct"].float(), torch.ones_like(loss) * n])
        first_bad = (self.bad_step < 0) & ~loss.isfinite()
        self.bad_step = torch.where(first_bad, self._step, self.bad_step)
        step = trainer.global_step
        due = step != self.flushed_step and step % trainer.log_every_n_steps == 0
        if due or trainer.is_last_batch:
            self.flush(trainer)

    def flush(self, trainer: Any) -> None:
        """Read the sums (one synchronisation), stop on NaN, log a row, start anew.

        Raises:
            Diverged: a loss since the last flush was NaN or infinite.
        """
        assert self.sums is not None
        self.check_finite(trainer)
        loss, correct, images = trainer.strategy.reduce(self.sums.clone(), reduce_op="sum").tolist()
        self.sums.zero_()
        self.flushed_step = trainer.global_step
        if not images:
            return
        row = {
            "epoch": trainer.current_epoch,
            "lr": self.window_lrs[max(self.window_lrs)],
            "train_loss": loss / images,
            "train_top1": correct / images,
        }
        self.window_lrs.clear()
        self.write_row(trainer, row)

    def check_finite(self, trainer: Any) -> None:
        """Synchronise and raise ``Diverged`` if a loss was not finite on any process."""
        assert self.bad_step is not None
        bad = int(trainer.strategy.reduce(self.bad_step.clone(), reduce_op="max"))
        if bad >= 0:
            raise Diverged(bad, self.window_lrs.get(bad, float("nan")))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._seconds_before, self._began = self.seconds, 0.0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        score = pl_module.last_score
        if trainer.state.fn == "fit" and not trainer.sanity_checking and score is not None:
            row = {
                "epoch": trainer.current_epoch,
                "val_loss": score.loss,
                "val_top1": score.top1,
                "val_top5": score.top5,
            }
            self.write_row(trainer, row)

    def write_row(self, trainer: Any, row: dict[str, float]) -> None:
        """Hand a row to every logger; other callbacks add their columns through ``extend_row``."""
        for callback in trainer.callbacks:
            if hasattr(callback, "extend_row"):
                callback.extend_row(trainer, row)
        row["seconds"] = self.seconds
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        self.rows += 1
        self.latest |= row

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": None if self.sums is None else self.sums.cpu(),
            "flushed_step": self.flushed_step,
            "rows": self.rows,
            "latest": dict(self.latest),
            "started": self.started,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = state_dict["sums"]
        self.flushed_step = state_dict["flushed_step"]
        self.rows = state_dict["rows"]
        self.latest = dict(state_dict["latest"])
        self.started = state_dict["started"]
        self._seconds_before = state_dict["seconds"]
