"""Memory that was not enough, said in a line: which option to lower, and to what. Loads no torch."""

import re
import traceback
from pathlib import Path
from typing import Any

from vit_gelu.cli.errors import UsageError

# As CUDA's and Apple's allocators say it, the CPU's on Linux and on Windows, and libraries that allocate by themselves.
SAID = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "STATUS_ALLOC_FAILED",
)
EVALUATION = {"validation_step", "test_step"}


class OutOfMemory(UsageError):
    """Not enough memory for what was asked for."""


def missing_memory(error: BaseException) -> str | None:
    """What an error says about memory; None where it is about something else.

    >>> missing_memory(RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB."))
    'out of memory, asking for 3.00 GiB more'
    """
    text = str(error)
    ours = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in SAID)
    )
    if not ours:
        return None
    found = re.search(r"(?:[Tt]ried to|Unable to) allocate ([\d.]+) ([A-Za-z]+)", text)
    whole = re.search(r"(?:total capacity of|max allowed:) ([\d.]+ [KMGT]i?B)", text)
    asked = f", asking for {_readable(found[1], found[2])} more" if found is not None else ""
    return "out of memory" + asked + (f" of a device of {whole[1]}" if asked and whole is not None else "")


def _readable(number: str, unit: str) -> str:
    if unit != "bytes":
        return f"{number} {unit}"
    size, units = float(number), ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and units:
        size, unit = size / 1024, units.pop(0)
    return f"{size:.2f} {unit}"


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
