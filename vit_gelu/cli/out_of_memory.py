"""A training whose memory was not enough: which option to lower, and to what. Loads no torch."""

import traceback
from pathlib import Path
from typing import Any

from vit_gelu.cli.errors import UsageError

EVALUATION = {"validation_step", "test_step"}


class OutOfMemory(UsageError):
    """Not enough memory for what was asked for."""


def less_memory(
    words: str, error: BaseException, config: Any, *, folder: Path, processes: int, full_precision: bool
) -> OutOfMemory:
    """What to say of a training that took too much: the option to lower, on a second line to what, and how to go on.

    Args:
        words: of ``missing_memory``.
        error: with its traceback, which tells a training step from an evaluation.
        config: the options of the run.
        folder: of the run.
        processes: that share a training batch.
        full_precision: whether it computes in float32 alone.
    """
    names = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    choices, go_on = [], ""
    if names & EVALUATION:
        option, batch = "--data.eval_batch_size", config.data.eval_batch_size
        if batch > 1:
            choices.append(f"{option} {batch // 2}")
        if choices and (folder / "checkpoints" / "last.ckpt").is_file():
            go_on = f"\ngo on with --resume {folder} {choices[0]}"
    else:
        option, batch = "--data.global_batch_size", config.data.global_batch_size
        half = batch // 2 // processes * processes
        if half:
            steps = 2 * config.trainer.accumulate_grad_batches
            choices.append(
                f"{option} {half} with --trainer.accumulate_grad_batches {steps}, as many images a step"
            )
        if config.model.get("mlp_memory") == "fast":
            choices.append("--model.mlp_memory lean")
    if full_precision:
        choices.append("--trainer.precision bf16-mixed")
    tried = "; or ".join(choices or ["a smaller network"])
    return OutOfMemory(f"{option} {batch}: {words}\ntry {tried}{go_on}")
