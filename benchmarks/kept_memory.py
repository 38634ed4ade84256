"""What it is worth on a CPU that a training keeps the memory it frees, for its next step.

usage: python benchmarks/kept_memory.py [OPTIONS]

The training step of ViT-Ti/4 on 32x32 images in one process, which by turns keeps the memory that it frees (as
``vit-gelu train`` does on a CPU) and gives large blocks back to the system (as every program does by default). Linux
with glibc only. The last column is images/s with memory kept over images/s without, paired by round, median and 95 %
interval.

  --precision P ...   float32 bf16 (autocast) (default: float32)
  --mode M ...        eager compiled (default: both)
  --batch N           128      --rounds N    12      --min_seconds X   1, of one timed block
  --threads N         CPU threads
  --out FILE.json     write a result file
"""

import argparse
import ctypes
import functools
import sys
from typing import Any

import checkout  # noqa: F401
import torch
from report import Options, describe, heading, run_script, save, table
from rotation import Case, Ratio, paired_ratio, quartiles, time_in_rotation
from training_step import MODES, PRECISIONS, steps_of

from vit_gelu.cli.arguments import at_least, one_of
from vit_gelu.cli.errors import UsageError
from vit_gelu.models import build_vit
from vit_gelu.training.memory import keep_freed_memory
from vit_gelu.training.speed import Exclusivity

DEFAULTS = {-4: 65_536, -1: 128 * 1024}  # mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD


def give_back_freed_memory() -> None:
    """glibc's own behaviour again."""
    library = ctypes.CDLL(None)
    for parameter, value in DEFAULTS.items():
        library.mallopt(parameter, value)
    library.malloc_trim(0)


WAYS = {"kept": keep_freed_memory, "given back": give_back_freed_memory}


def options() -> Options:
    parser = Options("kept_memory", common=("threads", "out"))
    parser.add_argument(
        "--precision", nargs="+", type=one_of("precision", list(PRECISIONS)), default=["float32"]
    )
    parser.add_argument("--mode", nargs="+", type=one_of("mode", list(MODES)), default=list(MODES))
    parser.add_argument("--batch", type=at_least(1), default=128)
    parser.add_argument("--rounds", type=at_least(1), default=12)
    parser.add_argument("--min_seconds", type=float, default=1.0)
    return parser


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Time both ways: the content of the result file."""
    if sys.platform != "linux" or not keep_freed_memory():
        raise UsageError("this C library cannot be told to keep memory: Linux with glibc only")
    device = torch.device("cpu")
    exclusive = Exclusivity(device)
    net = build_vit("vit_tiny", image_size=32, patch_size=4, num_classes=10, seed=0)
    images, labels = torch.randn(asked.batch, 3, 32, 32), torch.randint(10, (asked.batch,))
    asked.phase = ["train"]
    steps, kernels = steps_of(net, images, labels, asked)

    def ready(case: Case, way: str) -> None:
        case.prepare()
        WAYS[way]()
        case.run()  # the first step after a change is neither the one nor the other

    cases = {
        f"{mode}/{precision}/{way}": Case(case.run, asked.batch, functools.partial(ready, case, way))
        for (_, mode, precision), case in steps.items()
        for way in WAYS
    }
    timings = time_in_rotation(cases, rounds=asked.rounds, device=device, min_seconds=asked.min_seconds)
    rows = []
    for _, mode, precision in steps:
        kept, given_back = (timings.seconds[f"{mode}/{precision}/{way}"] for way in WAYS)
        for way, seconds in zip(WAYS, (kept, given_back), strict=True):
            step_ms = [1e3 * asked.batch * q for q in quartiles(seconds)]
            row = {"precision": precision, "mode": mode, "memory": way, "n": len(seconds), "step_ms": step_ms}
            row["kept_over_given_back"] = paired_ratio(given_back, kept)._asdict() if way == "kept" else None
            rows.append(row)
    return {
        **describe("kept_memory", asked, device),
        "exclusive": exclusive.check(),
        "batch": asked.batch,
        "attention": kernels,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(heading(result, result["exclusive"]), "\n")
    lines = [
        [
            r["precision"],
            r["mode"],
            r["memory"],
            f"{r['step_ms'][1]:.4g}",
            f"{r['step_ms'][0]:.4g} - {r['step_ms'][2]:.4g}",
            str(Ratio(**r["kept_over_given_back"])) if r["kept_over_given_back"] else "",
            r["n"],
        ]
        for r in result["rows"]
    ]
    print(
        table(
            ["precision", "mode", "freed memory", "ms a step", "quartiles", "kept / given back", "n"], lines
        )
    )


def run(asked: argparse.Namespace) -> int:
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("kept_memory", __doc__, options(), run))
