"""What nobody needs around a step: hooks that no one has, Lightning's loop for all cases, a question to CUDA."""

from typing import Any

import lightning
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback

from vit_gelu.training.checkpoints import Checkpoints
from vit_gelu.training.loop import StepLoop

OF_A_STEP = (
    "on_train_batch_start",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
    "on_train_batch_end",
)

KNOWN_VERSIONS = "2.6."  # of Lightning, whose loop ``StepLoop`` follows; with others theirs stays

WITHIN = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")


def spare_the_step(trainer: Any, module: Any, data: Any) -> None:
    """Leave out what Lightning does in every step for nobody.

    Hooks that neither a callback nor the module has are None, gradients that are None are not set to None, and the
    Trainer's loop over an epoch becomes a ``StepLoop``, where its version of Lightning is known.

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
    if not lightning.__version__.startswith(KNOWN_VERSIONS):
        return
    saves = any(isinstance(callback, Checkpoints) for callback in trainer.callbacks)
    loop: Any = StepLoop(
        trainer, module, data, nothing_within=nobody.issuperset(WITHIN), asks_for_signals=not saves
    )
    if module.leaves_no_gradients and "on_before_zero_grad" in nobody:
        loop.automatic_optimization._make_zero_grad_fn = lambda batch_idx, optimizer: None
    trainer.fit_loop.epoch_loop = loop


def spare_the_question(optimizer: Any) -> None:
    """Do not ask in every step whether a CUDA graph is being recorded: for a run on a CPU.

    As Lightning sets PYTORCH_NVML_BASED_CUDA_CHECK, the answer takes a quarter of a millisecond where torch was built
    for CUDA and there is no GPU.
    """
    for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
        if hasattr(optimizer, name):
            setattr(optimizer, name, lambda: None)
