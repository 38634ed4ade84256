"""Loss and accuracy while training, without a device synchronisation per step, and the stop on NaN."""

import math
import time
from typing import Any, NamedTuple

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from vit_gelu.data.transfer import Fetch
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


class _Row(NamedTuple):
    """A row whose numbers are on their way from the device."""

    trainer: Any
    numbers: Fetch  # (2, n): loss and hits of each step
    steps: tuple[int, ...]
    images: tuple[int, ...]
    sums: list[float]  # as ``Monitor.sums``, without these steps
    lrs: dict[int, float]  # of each step
    lr: float  # of the last one
    epoch: int  # the last one's, which the Trainer has left already when the training is over
    step: int


class Monitor(Callback):
    """Keeps loss and hits on the device; logs a row and checks for NaN every ``log_every_n_steps``.

    Hits are those of a step that counts ``correct``. A step only puts its two scalars aside: arithmetic on them would
    be a dozen kernels a step. On a single GPU nobody waits for a row: it is written after the step that finds its
    numbers there, or at the end of the epoch, before a validation or a checkpoint. The sums are part of the
    checkpoint, and are added up in the order of the steps, so a resumed run logs the rows of an uninterrupted one.

    Attributes:
        latest: the last row that was logged, for displays.
        started: when the run first started, UTC.
    """

    def __init__(self) -> None:
        self.sums = [0.0, 0.0, 0.0]  # loss, correct, images; of this process, since the last row
        self.bad_step = -1
        self.lr, self.epoch = math.nan, 0  # of the last step
        self.window_lrs: dict[int, float] = {}
        self.flushed_step = 0
        self.validated_step = -1
        self.rows = 0
        self.latest: dict[str, float] = {}
        self.started = ""
        self._waiting: list[tuple[int, int, Tensor, Tensor]] = []  # step, images, loss, correct
        self._coming: _Row | None = None
        self._cut = False
        self._counts_hits = True  # masked pre-training has none
        self._seconds_before = 0.0
        self._began = 0.0

    @property
    def seconds(self) -> float:
        """Time spent between start and end of training, evaluation included, over all parts of a resumed run."""
        return self._seconds_before + (time.monotonic() - self._began if self._began else 0.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.started = self.started or now()
        self._began = time.monotonic()
        self.bad_step = -1
        self._cut_logs(trainer)

    def _cut_logs(self, trainer: Any) -> None:
        """Drop the rows that an earlier part of the run wrote after its checkpoint; once."""
        for logger in () if self._cut else trainer.loggers:
            if hasattr(logger, "truncate"):
                logger.truncate(self.rows)
        self._cut = True

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._step, self.epoch = trainer.global_step, trainer.current_epoch
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.window_lrs[self._step] = self.lr

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._counts_hits = "correct" in outputs
        loss = outputs["batch_loss"]
        hits = outputs["correct"] if self._counts_hits else torch.zeros_like(loss)
        self._waiting.append((self._step, len(batch.targets), loss, hits))
        if self._coming is not None and self._coming.numbers.is_there():
            self.finish_row()
        step = trainer.global_step
        due = step != self.flushed_step and step % trainer.log_every_n_steps == 0
        last = trainer.is_last_batch or step == trainer.max_steps
        if due or last:
            self.flush(trainer, wait=last)

    def _put_aside(self) -> tuple[tuple[int, ...], tuple[int, ...], Tensor]:
        """Steps, images, and loss and hits (2, n) on the device, of what was put aside until now."""
        if not self._waiting:
            return (), (), torch.empty(2, 0)
        steps, images, losses, hits = zip(*self._waiting, strict=True)
        self._waiting.clear()
        return steps, images, torch.stack([torch.stack(losses).float(), torch.stack(hits).float()])

    def _add(
        self, sums: list[float], steps: tuple[int, ...], images: tuple[int, ...], numbers: Tensor
    ) -> None:
        for step, n, loss, correct in zip(steps, images, *numbers.tolist(), strict=True):
            if self.bad_step < 0 and not math.isfinite(loss):
                self.bad_step = step
            for i, value in enumerate((loss * n, correct, n)):
                sums[i] += value

    def flush(self, trainer: Any, wait: bool = True) -> None:
        """Log a row of the steps since the last one, and stop on NaN.

        Args:
            trainer: of the run.
            wait: for the device; else the row is written, and NaN found, as soon as its numbers are there.

        Raises:
            Diverged: a loss since the last row, or of an earlier row that was on its way, was NaN or infinite.
        """
        self.finish_row()
        steps, images, numbers = self._put_aside()
        last = self.lr, self.epoch, trainer.global_step
        self._coming = _Row(trainer, Fetch(numbers), steps, images, self.sums, self.window_lrs, *last)
        self.sums, self.window_lrs, self.flushed_step = [0.0, 0.0, 0.0], {}, trainer.global_step
        # Several processes add up their sums, so that they must all write at the same step.
        if wait or trainer.world_size > 1 or self._coming.numbers.is_there():
            self.finish_row()

    def finish_row(self) -> None:
        """Write the row that is on its way, if there is one; waits for its numbers.

        Raises:
            Diverged: a loss of it was NaN or infinite.
        """
        if self._coming is None:
            return
        coming, self._coming = self._coming, None
        trainer, sums = coming.trainer, coming.sums
        self._add(sums, coming.steps, coming.images, coming.numbers.values())
        self._stop_if_bad(trainer, coming.lrs)
        loss, correct, images = self._over_processes(trainer, sums, "sum")
        if not images:
            return
        row = {"epoch": coming.epoch, "lr": coming.lr, "train_loss": loss / images}
        if self._counts_hits:
            row["train_top1"] = correct / images
        self.write_row(trainer, row, coming.step)

    def check_finite(self, trainer: Any) -> None:
        """Wait for the device and raise ``Diverged`` if a loss was not finite on any process."""
        self.finish_row()
        self._add(self.sums, *self._put_aside())
        self._stop_if_bad(trainer, self.window_lrs)

    def _stop_if_bad(self, trainer: Any, lrs: dict[int, float]) -> None:
        (bad,) = self._over_processes(trainer, [self.bad_step], "max")
        if bad >= 0:
            raise Diverged(int(bad), lrs.get(int(bad), float("nan")))

    @staticmethod
    def _over_processes(trainer: Any, values: list[Any], how: str) -> list[Any]:
        if trainer.world_size == 1:
            return values
        dtype = torch.int64 if how == "max" else torch.float32
        return trainer.strategy.reduce(
            torch.tensor(values, dtype=dtype, device=trainer.strategy.root_device), reduce_op=how
        ).tolist()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.finish_row()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.finish_row()
        self._seconds_before, self._began = self.seconds, 0.0

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        score = pl_module.last_score
        # After the training too, where it ended between two validations.
        if trainer.global_step != self.validated_step and not trainer.sanity_checking and score is not None:
            self.validated_step = trainer.global_step
            figures = {f"val_{name}": value for name, value in score.figures().items()}
            self.write_row(trainer, {"epoch": self.epoch, **figures}, trainer.global_step)

    def write_row(self, trainer: Any, row: dict[str, float], step: int) -> None:
        """Hand the row of a step to every logger; other callbacks add their columns through ``extend_row``."""
        self._cut_logs(trainer)  # a training with no step left has not started
        for callback in trainer.callbacks:
            if hasattr(callback, "extend_row"):
                callback.extend_row(trainer, row)
        row["seconds"] = self.seconds
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
        self.rows += 1
        self.latest |= row

    def state_dict(self) -> dict[str, Any]:
        self.finish_row()
        self._add(self.sums, *self._put_aside())
        return {
            "sums": list(self.sums),
            "lr": self.lr,  # killed after its last step, a run comes back to write its last row
            "epoch": self.epoch,
            "flushed_step": self.flushed_step,
            "validated_step": self.validated_step,
            "rows": self.rows,
            "latest": dict(self.latest),
            "started": self.started,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        sums = state_dict["sums"]  # a tensor, or nothing, where an earlier version wrote it
        self.sums = [0.0, 0.0, 0.0] if sums is None else [float(value) for value in sums]
        self.flushed_step = state_dict["flushed_step"]
        self.validated_step = state_dict.get("validated_step", -1)
        self.rows = state_dict["rows"]
        self.latest = dict(state_dict["latest"])
        # An earlier version wrote neither; its last row has them.
        self.lr = float(state_dict.get("lr", self.latest.get("lr", math.nan)))
        self.epoch = int(state_dict.get("epoch", self.latest.get("epoch", 0)))
        self.started = state_dict["started"]
        self._seconds_before = state_dict["seconds"]
