"""Activations in a whole ViT: the training step and the inference step, on synthetic images on the device."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from vit_gelu.bench.comparison import (
    Comparison,
    OutOfTime,
    Referee,
    Say,
    check_compiled,
    figures,
    title,
)
from vit_gelu.bench.compiling import COMPILED, Compilation
from vit_gelu.bench.devices import device_clock
from vit_gelu.bench.options import DTYPES, Options
from vit_gelu.bench.subject import PASSES, Subject, Workload, synthetic_batch
from vit_gelu.bench.timing import Competitor
from vit_gelu.cli.errors import UsageError
from vit_gelu.training.peak import device_peak


def measure(work: Workload, dtype: str, mode: str, options: Options, peak: float, say: Say) -> Comparison:
    """Compare all activations in one model, dtype and mode.

    Args:
        work: model and batch.
        dtype, mode: how it runs.
        options: what both benchmarks take.
        peak: what the device can do, in FLOP/s.
        say: gets a line on what is going on.

    Raises:
        OutOfTime: the deadline came first.
        ValueError: options that make no model.
    """
    labels = work.labels(dtype, mode)
    clock = device_clock(options.device, ahead=False)
    referee = Referee(options, clock, mode)
    batch = synthetic_batch(work, options.device)
    subjects: dict[str, Subject] = {}

    def observed(name: str, compilation: Compilation | None) -> None:
        if compilation is not None:
            referee.notes += check_compiled(name, compilation)
        if options.deadline():
            raise OutOfTime

    compiling = mode == COMPILED
    try:
        for name in options.activations:
            say(f"{title(labels)}: {'compiling' if compiling else 'building'} {name}")
            subjects[name] = Subject(name, work, dtype, mode, batch)
            observed(name, subjects[name].compilation)
        kept = {name: subject.kept() for name, subject in subjects.items()}
        say(f"{title(labels)}: timing")
        times = {
            "train": referee.time("train", {n: Competitor(s.calls["train"]) for n, s in subjects.items()})
        }
        referee.notes += launch_bound(
            {n: (s.launch_seconds, statistics.median(times["train"][n])) for n, s in subjects.items()}
        )
        broken = [n for n, s in subjects.items() if not bool(torch.isfinite(s.train()))]
        if broken:
            referee.notes.append(f"the loss is not finite: {', '.join(broken)}")
        for name, subject in subjects.items():
            if compiling:
                say(f"{title(labels)}: compiling inference of {name}")
            subject.to_inference()
            observed(name, subject.inference_compilation)
        inference = {n: Competitor(s.calls["inference"]) for n, s in subjects.items()}
        times["inference"] = referee.time("inference", inference)
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{title(labels)}: {reason}; take a smaller --batch_size, or fewer --activations: all are in memory at once"
        ) from error
    if options.device.type == "cpu":  # again: others who use the machine may have slowed the first
        peak = max(peak, device_peak(options.device, DTYPES[dtype]))
    rows = []
    for name, subject in subjects.items():
        flops = subject.flops()
        row: dict[str, Any] = {"activation": name}
        for what in PASSES:
            found = figures(times[what], name, options.baseline)
            rate = work.batch / found["seconds"]["median"]
            row[what] = found | {
                "images_per_second": rate,
                "flops_per_image": flops[what],
                "mfu": flops[what] * rate / peak,
            }
        row |= {
            "attention": subject.attention,
            "kept_bytes": kept[name],
            "peak_memory_bytes": subject.peak_bytes,
            "parameters": sum(p.numel() for p in subject.net.parameters()),
            "compile": subject.compilation._asdict() if subject.compilation else None,
            "compile_inference": (
                subject.inference_compilation._asdict() if subject.inference_compilation else None
            ),
        }
        rows.append(row)
    labels["peak_flops_measured"] = peak
    return Comparison(labels, PASSES, rows, times, referee.alone(), referee.notes)


def launch_bound(seconds: Mapping[str, tuple[float | None, float]]) -> list[str]:
    """A note on who took as long to be launched as to run, so that their kernels' time is not in their figures.

    Args:
        seconds: by name, to launch a step, None on a CPU; and of a step.

    >>> launch_bound({"relu": (0.002, 0.010), "gelu": (0.0098, 0.010), "silu": (None, 0.010)})
    ['the GPU waits for the processor (gelu): this is the time of launching; take --cuda_graphs true or a larger batch']
    """
    waiting = [name for name, (launch, step) in seconds.items() if launch is not None and launch > 0.9 * step]
    if not waiting:
        return []
    return [
        f"the GPU waits for the processor ({', '.join(waiting)}): this is the time of launching; take --cuda_graphs "
        "true or a larger batch"
    ]


def comparisons(
    works: Sequence[Workload], options: Options, say: Say
) -> Iterator[tuple[dict[str, Any], Comparison | None]]:
    """All comparisons, each with its labels; None for those that the deadline left out."""
    peaks: dict[str, float] = {}
    for work in works:
        for dtype in options.dtypes:
            for mode in options.modes:
                found = None
                if not options.deadline():
                    if dtype not in peaks:
                        say(f"measuring what the device can do in {dtype}")
                        peaks[dtype] = device_peak(options.device, DTYPES[dtype])
                    try:
                        found = measure(work, dtype, mode, options, peaks[dtype], say)
                        peaks[dtype] = found.labels["peak_flops_measured"]
                    except OutOfTime:
                        found = None
                yield work.labels(dtype, mode), found
