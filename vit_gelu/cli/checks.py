"""Checks of the options of ``vit-gelu train`` that need no data: words, numbers and devices."""

from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

LOGGERS = ("csv", "tensorboard", "wandb")


def check_choices(config: Namespace) -> None:
    """Check the options of ours that take one of a few words.

    Raises:
        UsageError: another word.
    """
    for name in config.loggers:
        if name not in LOGGERS:
            raise UsageError("--loggers: " + unknown("logger", name, LOGGERS))
    if config.get("test_checkpoint", "last") not in ("last", "best"):
        raise UsageError(f"--test_checkpoint {config.test_checkpoint}: must be last or best")


def check_numbers(config: Namespace) -> None:
    """Check the numbers that Lightning takes as they come, or whose errors name no option.

    Raises:
        UsageError: a value out of its range.
    """
    trainer, seed = config.trainer, config.seed_everything
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed {seed}: must lie between 0 and {2**32 - 1}")
    if trainer.accumulate_grad_batches < 1:
        raise UsageError(f"--trainer.accumulate_grad_batches {trainer.accumulate_grad_batches}: must be >= 1")
    if trainer.gradient_clip_val is not None and not trainer.gradient_clip_val >= 0:
        raise UsageError(f"--trainer.gradient_clip_val {trainer.gradient_clip_val}: must be >= 0")
    if not config.checkpoint_minutes >= 0:
        raise UsageError(f"--checkpoint_minutes {config.checkpoint_minutes}: must be >= 0")
    if trainer.devices in (0, "0"):
        raise UsageError("--trainer.devices 0: must be >= 1, or -1 or auto for all there are")
    for name in ("log_every_n_steps", "check_val_every_n_epoch"):
        value = getattr(trainer, name)
        if value is not None and value < 1:
            raise UsageError(f"--trainer.{name} {value}: must be >= 1")
    if trainer.val_check_interval == 0:
        raise UsageError(
            "--trainer.val_check_interval 0: must be > 0; --trainer.limit_val_batches 0 never validates"
        )
    if trainer.limit_train_batches == 0:
        raise UsageError("--trainer.limit_train_batches 0: leaves nothing to train on; must be > 0")
    for what in ("epochs", "steps"):
        least, most = getattr(trainer, f"min_{what}"), getattr(trainer, f"max_{what}")
        if least is not None and most is not None and 0 <= most < least:
            raise UsageError(f"--trainer.min_{what} {least}: must be <= --trainer.max_{what} {most}")
        asked = config.model.get(f"warmup_{what}")
        # Where a training is shorter than its epochs or steps say, its data tell.
        if asked is not None and most is not None and 0 <= most < asked and not trainer.fast_dev_run:
            raise UsageError(f"--model.warmup_{what} {asked:g}: must be <= --trainer.max_{what} {most}")


# What a run does in its own way, whatever the Trainer is told.
OWN_WAY = {
    "default_root_dir": "everything goes into the run folder: give --out",
    "barebones": "a run is logged and saved; for speed alone: vit-gelu bench training",
    "enable_model_summary": "no summary is printed; record.json has the number of parameters",
}
# Callbacks of Lightning's that would have no effect here, or change what is trained behind the record's back.
NO_CALLBACKS = {
    "BackboneFinetuning": "give --model.freeze",
    "BatchSizeFinder": "the batch is part of what is trained: give --data.global_batch_size",
    "GradientAccumulationScheduler": "the learning-rate schedule would not end with the training: give "
    "--trainer.accumulate_grad_batches",
    "LearningRateFinder": "the record would not know the rate: give --model.lr, or choose one with tune in a plan of "
    "vit-gelu ablate",
    "ModelPruning": "there is no network yet when it looks for what to prune",
    "ProgressBar": "a run shows its own",
    "RichProgressBar": "a run shows its own",
    "TQDMProgressBar": "a run shows its own",
    "Timer": "give --trainer.max_time",
}


def check_own_way(trainer: Namespace) -> None:
    """Check that nothing is asked of the Trainer that a run would ignore, or do without saying so.

    Raises:
        UsageError: it is.
    """
    asked = trainer.callbacks or []
    for callback in asked if isinstance(asked, list) else [asked]:
        name = str(getattr(callback, "class_path", type(callback).__name__)).rsplit(".", 1)[-1]
        if name in NO_CALLBACKS:
            raise UsageError(f"--trainer.callbacks {name}: {NO_CALLBACKS[name]}")
    for name, reason in OWN_WAY.items():
        value = getattr(trainer, name)
        if value not in (None, False):
            raise UsageError(f"--trainer.{name} {str(value).lower() if value is True else value}: {reason}")


def check_callbacks(callbacks: Sequence[Callback], logged: Sequence[str]) -> None:
    """Check what a user's callbacks look at before there is anything to see.

    Args:
        callbacks: of the Trainer.
        logged: metrics that there will be; none where nothing is validated.

    Raises:
        UsageError: a metric that there will not.
    """
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and monitor not in (None, *logged):
            why = unknown("metric", str(monitor), logged) if logged else f"without validation, no {monitor}"
            raise UsageError(f"--trainer.callbacks {type(callback).__name__}: {why}")


def check_accelerator(asked: Any) -> None:
    """Check that this machine has the kind of device that is asked for.

    Raises:
        UsageError: unknown kind, or none of it here.
    """
    if not isinstance(asked, str):
        return
    registry = AcceleratorRegistry  # asked by class: making a TPU's object needs its package
    kinds = {name: registry[name]["accelerator"].is_available() for name in registry.available_accelerators()}
    kinds["gpu"] = kinds.get("cuda", False) or kinds.get("mps", False)
    here = ["auto", *sorted(name for name, there in kinds.items() if there)]
    if asked != "auto" and asked not in kinds:
        raise UsageError("--trainer.accelerator: " + unknown("accelerator", asked, here))
    if asked not in here:
        raise UsageError(
            f"--trainer.accelerator {asked}: this machine has none (vit-gelu doctor says why); here: {', '.join(here)}"
        )
