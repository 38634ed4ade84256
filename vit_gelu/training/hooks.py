"""What nobody needs around a step: hooks that no one has, reading a signature, a question to all processes."""

import inspect
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback

from vit_gelu.training.checkpoints import Checkpoints

OF_A_STEP = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)


def spare_the_step(trainer: Any, module: LightningModule) -> None:
    """Set the hooks of a step to None where a callback or the module has nothing of its own.

    Six hooks of six callbacks, each in a context of the profiler, and the arguments of ``training_step``, read
    off its source's signature every time, are a quarter of a millisecond per step.

    Where ``Checkpoints`` agrees on signals at the steps that are logged, processes no longer ask each other for
    them in every step, which would wait for every GPU.

    Args:
        trainer: with all its callbacks.
        module: which it will train.
    """
    for owner, base in (*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)):
        for hook in OF_A_STEP:
            if getattr(type(owner), hook) is getattr(base, hook) and hook not in vars(owner):
                setattr(owner, hook, None)
    step: Any = type(module).training_step
    step.__signature__ = inspect.signature(step)
    loop = trainer.fit_loop.epoch_loop
    if any(isinstance(callback, Checkpoints) for callback in trainer.callbacks):
        loop._broadcast_sigterm_tensor = lambda: None
