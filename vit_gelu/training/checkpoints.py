"""Saving: ``last.ckpt`` to go on from, ``best.ckpt`` by validation; and stopping on a signal without losing a step."""

import math
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from torch import Tensor

from vit_gelu.models.anneal import finish_annealing
from vit_gelu.training.checkpoint_io import WholeCheckpointIO, discard_partial_files
from vit_gelu.training.logs import MetricsFile
from vit_gelu.training.monitor import Monitor
from vit_gelu.whole_file import whole_file


class Interrupted(RuntimeError):
    """A signal asked the run to stop; it has saved ``last.ckpt`` first.

    Args:
        signum: the signal's number.
        epoch, step: where the run stands; epochs count from 0, except on the screen.
    """

    def __init__(self, signum: int, epoch: int, step: int) -> None:
        self.signum, self.epoch, self.step = signum, epoch, step
        super().__init__(f"stopped by {signal.Signals(signum).name} in epoch {epoch + 1}, after step {step}")


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights: evaluated, saved as ``state_dict``, final after training.

    The first update copies the weights; each later step moves the average by 1 - decay (Polyak & Juditsky 1992
    in its exponential form).

    Weights of half precision (``16-true``, ``bf16-true``) have an average in float32, rounded for evaluation alone;
    float64 has one in float64.

    Args:
        decay: share of the old average that a step keeps, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._pairs: list[tuple[list[Tensor], list[Tensor]]] = []  # averaged and current: parameters, buffers
        self._exact: list[Tensor] = []  # the average, while the network has it rounded

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None and str(trainer.precision).startswith("64"):
            self._average_model.double()  # as the network will be

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:
            self._latest_update_step = trainer.global_step
            self._update(pl_module)

    @torch.no_grad()
    def _update(self, pl_module: Any) -> None:
        """What ``AveragedModel.update_parameters`` does, which asks a GPU twice per step how often it has."""
        averages = self._average_model
        assert averages is not None
        first = False
        if not self._pairs:
            first = bool(averages.n_averaged == 0)
            for kind in ("parameters", "buffers"):
                both = [[t.detach() for t in getattr(m, kind)()] for m in (averages.module, pl_module)]
                self._pairs.append((both[0], both[1]))
        (parameters, current), buffers = self._pairs
        if first:
            torch._foreach_copy_(parameters, current)
        else:
            if current[0].dtype != parameters[0].dtype:
                current = [t.to(parameters[0].dtype) for t in current]
            torch._foreach_lerp_(parameters, current, 1 - self.decay)
        if buffers[0]:
            torch._foreach_copy_(*buffers)
        averages.n_averaged += 1

    def _swap_models(self, pl_module: Any) -> None:
        averages = self._average_model
        assert averages is not None
        average = [p.data for p in averages.module.parameters()]
        comes_back = bool(self._exact)
        if not comes_back and average[0].dtype != next(pl_module.parameters()).dtype:
            self._exact = [p.clone() for p in average]
        super()._swap_models(pl_module)
        if comes_back:
            torch._foreach_copy_(average, self._exact)
            self._exact = []

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if "averaging_state" not in checkpoint:
            raise ValueError("--model.ema_decay: the checkpoint was written without averaged weights")
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        # A run that comes back with no step left has no end of its training, where the average is handed over.
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def finish_annealing(self) -> None:
        """The network has its new activations alone from now on: so has its average."""
        self._pairs = []
        if self._average_model is not None:
            finish_annealing(self._average_model)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # The average is in the module now; left here, a later validation of other weights would be swapped for it.
        self._average_model, self._pairs = None, []


SAVING = 0.01  # share of a run's time that it may spend on saving what the next minute will save again


class Checkpoints(Checkpoint):
    """Writes ``last.ckpt`` at epochs' ends, every few minutes inside an epoch and when a signal comes.

    Where epochs take less time than a hundred saves, as on a GPU with small images, not every one of them is saved;
    the last one always is.

    Files are written whole or not at all. Never inside an accumulation window (its gradients are in no
    checkpoint) and never with weights that have seen a NaN.

    Args:
        folder: where the files go.
        minutes: longest time between two saves inside an epoch.
        monitor: what knows whether the losses were finite.

    Attributes:
        best_merit, best_step: the best validation so far, see ``Score.merit``; step -1 before the first.
    """

    def __init__(self, folder: Path, monitor: Monitor, minutes: float = 5.0) -> None:
        self.folder = Path(folder)
        self.minutes = minutes
        self.monitor = monitor
        self.best_merit = -math.inf
        self.best_step = -1
        self._saved_at = 0.0
        self._saving_took = 0.0
        self._stepped = 0
        self._after_validation = False
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody asked for another
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._saved_at = time.monotonic()
        self._stepped = trainer.global_step
        if trainer.is_global_zero:
            discard_partial_files(self.folder)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal:  # asked twice: no more patience
            raise KeyboardInterrupt
        self._signal = number

    def _restore_handlers(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            # The Trainer takes its own away first, at the end of a training: they must not come back.
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._stepped:
            return
        self._stepped = trainer.global_step
        if trainer.is_last_batch:  # its end saves
            return
        wanted = bool(self._signal) or time.monotonic() - self._saved_at > 60 * self.minutes
        if trainer.world_size > 1:
            # Processes must agree, and asking costs a collective: only where rows are logged anyway.
            if trainer.global_step % trainer.log_every_n_steps:
                return
            wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted and is_validated_now(trainer):  # saved before that, the resumed run would skip it
            self._after_validation = True
        elif wanted:
            self.save_last(trainer)
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        patience = min(self._saving_took / SAVING, 60 * self.minutes)
        wanted = bool(self._signal) or time.monotonic() - self._saved_at >= patience
        if trainer.world_size > 1:
            wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted or is_last_epoch(trainer):
            self.save_last(trainer)
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        score = pl_module.last_score
        if trainer.state.fn != "fit" or trainer.sanity_checking or score is None:
            return
        if score.merit > self.best_merit:
            self.best_merit, self.best_step = score.merit, trainer.global_step
            _save(trainer, self.best)
        if self._after_validation:
            self._after_validation = False
            self.save_last(trainer)
            self._stop_if_asked(trainer)

    def adopt_last(self, merit: float, step: int, copy: bool) -> None:
        """Make ``last.ckpt`` the best as well: for a run that ended before its first validation."""
        self.best_merit, self.best_step = merit, step
        if copy and self.last.exists():
            with self.last.open("rb") as last, whole_file(self.best, "wb") as best:
                shutil.copyfileobj(last, best)

    def save_last(self, trainer: Any) -> None:
        """Write ``last.ckpt``.

        Raises:
            Diverged: a loss was not finite; the file stays as it was.
        """
        self.monitor.check_finite(trainer)
        began = time.monotonic()
        _save(trainer, self.last)
        self._saved_at = time.monotonic()
        self._saving_took = self._saved_at - began

    def _stop_if_asked(self, trainer: Any) -> None:
        asked = bool(self._signal)
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            raise Interrupted(self._signal or signal.SIGTERM, trainer.current_epoch, trainer.global_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._restore_handlers()

    def state_dict(self) -> dict[str, Any]:
        return {"best_merit": self.best_merit, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # An earlier version knew accuracies only.
        merit = state_dict["best_merit"] if "best_merit" in state_dict else state_dict["best_top1"]
        self.best_merit, self.best_step = merit, state_dict["best_step"]


def _save(trainer: Any, path: Path) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.sync()
    trainer.save_checkpoint(path)


def is_validated_now(trainer: Any) -> bool:
    """Whether a validation amid an epoch follows the step that ends; one that goes by the clock is no part of a run."""
    if trainer._val_check_time_interval is not None:
        return False
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def is_last_epoch(trainer: Any) -> bool:
    """Whether no epoch will follow the one that ends, as far as the Trainer knows."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    return (
        trainer.should_stop
        or (epochs is not None and 0 <= epochs <= trainer.current_epoch + 1)
        or 0 <= steps <= trainer.global_step
    )
