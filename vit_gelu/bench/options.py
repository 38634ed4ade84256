"""What both benchmarks are asked for, checked before anything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vit_gelu.activations import ACTIVATIONS, resolve_activation
from vit_gelu.bench.compiling import COMPILED, MODES, require_compiler
from vit_gelu.bench.timing import Deadline
from vit_gelu.cli.device import choose_device
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The trainer's words for a training in these dtypes.
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Options:
    """What both benchmarks are asked for.

    Attributes:
        activations: names or import paths; the baseline is one of them.
        baseline: what ratios are taken to.
        dtypes: keys of ``DTYPES``.
        modes: eager, compiled.
        device: cpu or cuda.
        rounds: how often each competitor is timed, >= 2.
        min_time: seconds of one competitor's turn in a round.
        deadline: when to stop.
    """

    activations: tuple[str, ...]
    baseline: str
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    device: torch.device
    rounds: int
    min_time: float
    deadline: Deadline


def unique(option: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names, if none is there twice.

    Raises:
        UsageError: one is.
    """
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise UsageError(f"{option}: {twice} is named twice")
    return tuple(names)


def choose_activations(names: Sequence[str] | None, baseline: str) -> tuple[tuple[str, ...], str | None]:
    """Names that exist, the baseline among them, and a note if it was added.

    Args:
        names: as asked for; None: the whole registry.
        baseline: a name as well.

    Raises:
        ValueError: unknown, or named twice.
    """
    chosen = unique("--activations", list(ACTIVATIONS) if names is None else names)
    for option, name in [("--activations", n) for n in chosen] + [("--baseline", baseline)]:
        try:
            resolve_activation(name)
        except ValueError as error:
            raise UsageError(f"{option}: {error}") from None
    if baseline in chosen:
        return chosen, None
    return (*chosen, baseline), f"{baseline} is measured as well: ratios are taken to it (--baseline)"


def choose_dtypes(names: Sequence[str] | None, device_type: str) -> tuple[str, ...]:
    """Names of ``DTYPES`` that the device can do; precisions of the trainer are understood.

    Raises:
        UsageError: unknown, named twice, or float16 on a CPU.
    """
    there = [d for d in DTYPES if device_type == "cuda" or d != "float16"]
    if names is None:
        return tuple(there)
    by_precision = {p: d for d, p in PRECISIONS.items()}
    chosen = unique("--dtypes", [by_precision.get(n, n) for n in names])
    for name in chosen:
        if name not in DTYPES:
            raise UsageError("--dtypes: " + unknown("dtype", name, there))
        if name not in there:
            raise UsageError(f"--dtypes {name}: only on a GPU. Choices on a CPU: {', '.join(there)}")
    return chosen


def choose_options(
    *,
    activations: Sequence[str] | None,
    baseline: str,
    dtypes: Sequence[str] | None,
    compile: str | None,
    device: str,
    rounds: int,
    min_time: float,
    time_limit: float | None,
    default_compile: dict[str, str],
) -> tuple[Options, list[str]]:
    """Check everything; the deadline begins now.

    Args:
        activations, baseline, dtypes, device, rounds, min_time: see ``Options``; None: the default.
        compile: true, false, both, or None for the default.
        time_limit: seconds, or None.
        default_compile: by kind of device.

    Returns:
        The options, and notes on what was added to what was asked for.

    Raises:
        ValueError: something that is not there or not possible, with the valid choices.
    """
    deadline = Deadline(time_limit)
    place = choose_device(device)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    if rounds < 2:
        raise UsageError(f"--rounds {rounds}: at least 2, or there is no interval")
    if not min_time > 0:
        raise UsageError(f"--min_time {min_time}: must be > 0 seconds")
    if time_limit is not None and not time_limit > 0:
        raise UsageError(f"--time_limit {time_limit}: must be > 0 seconds")
    names, note = choose_activations(activations, baseline)
    kinds = choose_dtypes(dtypes, place.type)
    asked = default_compile[place.type] if compile is None else compile
    modes = MODES[asked]
    if COMPILED in modes:
        require_compiler(f"--compile {asked}", place.type)
    options = Options(names, baseline, kinds, modes, place, rounds, min_time, deadline)
    return options, [note] if note else []
