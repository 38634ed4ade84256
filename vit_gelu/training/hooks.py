"""What nobody needs around a step: hooks that no one has, reading a signature, a question to all processes."""

from collections import OrderedDict
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.call import _call_strategy_hook
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.optim import LBFGS

from vit_gelu.data import ImageData
from vit_gelu.data.batch import Batch
from vit_gelu.training.checkpoints import Checkpoints
from vit_gelu.training.muon import Muon

OF_A_STEP = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)

WITHIN = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
BATCH_HOOKS = ("on_before_batch_transfer", "on_after_batch_transfer", "transfer_batch_to_device")


def spare_the_step(trainer: Any, module: Any, data: Any) -> None:
    """Leave out what Lightning does in every step for nobody: half a millisecond.

    Hooks that neither a callback nor the module has are None. Not repeated are: reading the arguments of
    ``training_step`` off its source; looking for a hook that moves batches, which are on their device; setting
    gradients to None that are None; looking through logged values and plateau schedulers that there are none of;
    wrapping forward and backward pass in closures for an optimizer that would call them at once.

    Where ``Checkpoints`` agrees on signals at the steps that are logged, processes no longer ask each other for
    them in every step, which would wait for every GPU.

    Args:
        trainer: with all its callbacks.
        module: which it will train, a ``RunModule``.
        data: on which.
    """
    nobody = set(OF_A_STEP)
    for owner, base in (*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)):
        for hook in OF_A_STEP:
            if getattr(type(owner), hook) is getattr(base, hook) and hook not in vars(owner):
                setattr(owner, hook, None)
            else:
                nobody.discard(hook)
    loop = trainer.fit_loop.epoch_loop
    if any(isinstance(callback, Checkpoints) for callback in trainer.callbacks):
        loop._broadcast_sigterm_tensor = lambda: None
    if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2):
        loop._build_kwargs = lambda kwargs, batch, batch_idx: OrderedDict(batch=batch, batch_idx=batch_idx)
    if module.leaves_no_gradients and "on_before_zero_grad" in nobody:
        loop.automatic_optimization._make_zero_grad_fn = lambda batch_idx, optimizer: None
    watched = not isinstance(trainer.profiler, PassThroughProfiler)  # which times what the closures call
    if module.has_the_common_step and nobody.issuperset(WITHIN) and not watched:
        _spare_closures(trainer, loop.automatic_optimization, module)
    _spare_schedules(trainer, loop)
    _spare_metrics(trainer)
    moved = any(is_overridden(h, module) or is_overridden(h, data, parent=ImageData) for h in BATCH_HOOKS)
    if isinstance(data, ImageData) and not moved:
        _spare_transfer(module)


def spare_the_question(optimizer: Any) -> None:
    """Do not ask in every step whether a CUDA graph is being recorded: for a run on a CPU.

    As Lightning sets PYTORCH_NVML_BASED_CUDA_CHECK, the answer takes a quarter of a millisecond where torch was built
    for CUDA and there is no GPU.
    """
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        if hasattr(optimizer, name):
            setattr(optimizer, name, lambda: None)


def _spare_closures(trainer: Any, automatic: Any, module: Any) -> None:
    run = automatic.run

    def step(optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Any]:
        if module.graphs == "step" or automatic._skip_backward or not _is_plain(trainer, optimizer):
            whole: dict[str, Any] = run(optimizer, batch_idx, kwargs)
            return whole
        output: dict[str, Any] = _call_strategy_hook(trainer, "training_step", *kwargs.values())
        loss = output["loss"]
        trainer.strategy.pre_backward(loss)
        loss.backward()
        trainer.strategy.post_backward(loss)
        progress = automatic.optim_progress.optimizer.step
        progress.increment_ready()
        if trainer.gradient_clip_val:
            trainer.precision_plugin._clip_gradients(
                module, optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.increment_completed()
        return output | {"loss": loss.detach()}

    automatic.run = step


def _is_plain(trainer: Any, optimizer: Any) -> bool:
    """Whether a step is forward, backward, clipping and update, once each, and nothing else."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
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


def _spare_schedules(trainer: Any, loop: Any) -> None:
    update = loop.update_lr_schedulers

    def update_lr_schedulers(interval: str, update_plateau_schedulers: bool) -> None:
        if not update_plateau_schedulers or any(c.reduce_on_plateau for c in trainer.lr_scheduler_configs):
            update(interval, update_plateau_schedulers)

    loop.update_lr_schedulers = update_lr_schedulers


def _spare_metrics(trainer: Any) -> None:
    connector = trainer._logger_connector
    look_through = connector.on_batch_end

    def on_batch_end() -> None:
        results = trainer._results
        if results:
            look_through()
        else:
            results.batch = results.batch_size = None

    connector.on_batch_end = on_batch_end


def _spare_transfer(module: Any) -> None:
    transfer = module._apply_batch_transfer_handler

    def handler(batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        there = isinstance(batch, Batch) and batch.images.device == device
        return batch if there else transfer(batch, device, dataloader_idx)

    module._on_before_batch_transfer = lambda batch, dataloader_idx=0: batch
    module._apply_batch_transfer_handler = handler
