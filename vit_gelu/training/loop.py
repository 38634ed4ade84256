"""Lightning's loop over the batches of an epoch, without what nobody needs of it from step to step."""

from collections import OrderedDict
from typing import Any

from lightning.pytorch.loops import _TrainingEpochLoop
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim import LBFGS

from vit_gelu.data import ImageData
from vit_gelu.data.batch import Batch
from vit_gelu.training.muon import Muon

BATCH_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device")


class StepLoop(_TrainingEpochLoop):
    """Hooks, counters, logged values, schedules and validations in Lightning's order, for less time per step.

    Once per epoch instead of in every step: which callbacks have a hook, whether an epoch is validated, whether a
    schedule looks at a metric. Not at all: contexts of a profiler that is none, moving batches that are on their
    device, going through logged values that there are none of. A step that is forward and backward pass, clipping
    and update, once each, is that, without closures for an optimizer that would call them at once.

    What is not covered by this goes Lightning's way: profilers, hooks that move batches, and the step with which a
    run goes on from a checkpoint. With closures: hooks amid a step, accumulation, scaled gradients, other optimizers.

    Args:
        trainer: whose loop this becomes; it has not trained yet.
        module: which it will train, a ``RunModule``.
        data: on which.
        nothing_within: nobody has a hook between the start and the end of a step.
        asks_for_signals: whether processes tell each other in every step of a signal to end, which waits for GPUs.
    """

    def __init__(
        self, trainer: Any, module: Any, data: Any, *, nothing_within: bool, asks_for_signals: bool
    ) -> None:
        replaced = trainer.fit_loop.epoch_loop
        super().__init__(trainer, min_steps=replaced.min_steps, max_steps=replaced.max_steps)
        moved = any(is_overridden(h, module) or is_overridden(h, data, parent=ImageData) for h in BATCH_HOOKS)
        self._usual = (
            isinstance(data, ImageData)
            and not moved
            and module.automatic_optimization
            and isinstance(trainer.profiler, PassThroughProfiler)
            and is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        )
        self._nothing_within = nothing_within and module.has_the_common_step
        self._asks_for_signals = asks_for_signals
        self._direct, self._plateaus, self._follows_steps = False, True, False
        self._validates: tuple[int, bool] | None = None  # which epoch, and whether

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer: Any = self.trainer
        module: Any = trainer.lightning_module
        self._validates = trainer.current_epoch, super()._should_check_val_epoch()
        self._direct = self._usual and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        self._at_start = [c.on_train_batch_start for c in trainer.callbacks if c.on_train_batch_start]
        self._at_end = [c.on_train_batch_end for c in trainer.callbacks if c.on_train_batch_end]
        self._closures = not (self._nothing_within and module.graphs != "step" and is_plain(trainer))
        schedules = trainer.lr_scheduler_configs
        self._plateaus = any(c.reduce_on_plateau for c in schedules)
        self._follows_steps = (
            not self._plateaus
            and all(c.interval == "step" and c.frequency == 1 for c in schedules)
            and not is_overridden("lr_scheduler_step", module)
        )

    def advance(self, data_fetcher: Any) -> None:
        """One training batch.

        Raises:
            StopIteration: there is no other, or the module wants no more of this epoch.
        """
        if self.restarting or not self._direct:
            super().advance(data_fetcher)
            return
        trainer = self.trainer
        module: Any = trainer.lightning_module
        strategy, connector = trainer.strategy, trainer._logger_connector
        progress, results = self.batch_progress, self._results
        if self.val_loop.restarting:
            self.val_loop.restarting = False
        if self._asks_for_signals and trainer.world_size > 1:
            self._broadcast_sigterm_tensor()
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = trainer.precision_plugin.convert_input(batch)
        if not (isinstance(batch, Batch) and batch.images.device == strategy.root_device):
            batch = strategy.batch_to_device(batch)

        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        module._current_fx_name = "on_train_batch_start"
        for hook in self._at_start:
            hook(trainer, module, batch, batch_idx)
        response = module.on_train_batch_start and module.on_train_batch_start(batch, batch_idx)
        strategy.on_train_batch_start(batch, batch_idx)
        if response == -1:
            module._current_fx_name = None
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            self.update_lr_schedulers("step", update_plateau_schedulers=False)
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            raise StopIteration

        progress.increment_started()
        if self._closures:
            module._current_fx_name = None
            given = OrderedDict(batch=batch, batch_idx=batch_idx)
            output = self.automatic_optimization.run(trainer.optimizers[0], batch_idx, given)
        else:
            module._current_fx_name = "training_step"
            output = self._step(trainer.optimizers[0], batch, batch_idx)
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

        module._current_fx_name = "on_train_batch_end"
        for hook in self._at_end:
            hook(trainer, module, output, batch, batch_idx)
        if module.on_train_batch_end:
            module.on_train_batch_end(output, batch, batch_idx)
        module._current_fx_name = None
        if results:
            connector.on_batch_end()
        else:
            results.batch = None
        progress.increment_completed()
        if results:
            connector.update_train_step_metrics()

    def _step(self, optimizer: Any, batch: Any, batch_idx: int) -> dict[str, Any]:
        trainer, strategy = self.trainer, self.trainer.strategy
        output: Any = strategy.training_step(batch, batch_idx)
        loss = output["loss"]
        strategy.pre_backward(loss)
        loss.backward()
        strategy.post_backward(loss)
        progress = self.automatic_optimization.optim_progress.optimizer.step
        progress.increment_ready()
        if trainer.gradient_clip_val:
            trainer.precision_plugin._clip_gradients(
                trainer.lightning_module,
                optimizer,
                trainer.gradient_clip_val,
                trainer.gradient_clip_algorithm,
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.increment_completed()
        return output | {"loss": loss.detach()}

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if update_plateau_schedulers and not self._plateaus:
            return
        if not self._follows_steps:
            super().update_lr_schedulers(interval, update_plateau_schedulers)
        elif interval == "step" and not self._should_accumulate():
            for config in self.trainer.lr_scheduler_configs:
                self.scheduler_progress.increment_ready()
                config.scheduler.step()  # type: ignore[call-arg]
                self.scheduler_progress.increment_completed()

    def _should_check_val_epoch(self) -> bool:
        epoch, validates = self._validates or (-1, False)
        return validates if epoch == self.trainer.current_epoch else super()._should_check_val_epoch()

    def _broadcast_sigterm_tensor(self) -> None:
        if self._asks_for_signals:
            super()._broadcast_sigterm_tensor()


def go_on_with_the_next_epoch(trainer: Any) -> None:
    """Where a training that counts steps comes back after an epoch's end, that epoch is over.

    Lightning takes it up again under ``max_steps``: it trains a batch more of it if no validation was due at its end,
    and counts it twice.
    """
    trainer.fit_loop._iteration_based_training = lambda: False


def is_plain(trainer: Any) -> bool:
    """Whether a step of this training is forward pass, backward pass, clipping and update, once each."""
    strategy, precision, optimizer = trainer.strategy, trainer.precision_plugin, trainer.optimizers[0]
    return (
        trainer.accumulate_grad_batches == 1
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
        and type(precision) in (Precision, MixedPrecision)
        and getattr(precision, "scaler", None) is None
        # Others may call a closure again, or not at all.
        and (type(optimizer) is Muon or type(optimizer).__module__.startswith("torch.optim."))
        and type(optimizer) is not LBFGS
    )
