"""Checks of the options of ``vit-gelu train`` that need no data: words, numbers and devices."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.accelerators import AcceleratorRegistry

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
    if trainer.devices in (0, "0"):
        raise UsageError("--trainer.devices 0: must be >= 1, or -1 or auto for all there are")


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
