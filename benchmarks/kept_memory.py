"""What it is worth on a CPU that a training keeps the memory it frees, for its next step.

usage: python benchmarks/kept_memory.py [OPTIONS]

The training step of ViT-Ti/4 on 32x32 images in fresh processes, by turns with memory kept (as ``vit-gelu train`` does
on a CPU) and with large blocks given back to the system (as every program does by default: what a process once kept
it does not give back, so one process cannot do both). Linux with glibc only. The last column is images/s with memory
kept over images/s without, paired by round, median and 95 % interval.

  --precision P ...   float32 bf16 (autocast) (default: float32)
  --mode M ...        eager compiled (default: eager)
  --batch N           128      --rounds N    8, two processes each      --steps N    6, timed in each, after two others
  --threads N         CPU threads
  --out FILE.json     write a result file
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from typing import Any

import checkout  # noqa: F401
import torch
from report import Options, describe, heading, run_script, save, table
from rotation import Ratio, order, paired_ratio, quartiles
from training_step import MODES, PRECISIONS, steps_of

from vit_gelu.cli.arguments import at_least, one_of
from vit_gelu.cli.errors import UsageError
from vit_gelu.models import build_vit
from vit_gelu.training.exclusivity import Exclusivity
from vit_gelu.training.memory import keep_freed_memory

WAYS = ("kept", "given back")
WARMUP = 2


def options() -> Options:
    parser = Options("kept_memory", common=("threads", "out"))
    parser.add_argument(
        "--precision", nargs="+", type=one_of("precision", list(PRECISIONS)), default=["float32"]
    )
    parser.add_argument("--mode", nargs="+", type=one_of("mode", list(MODES)), default=["eager"])
    for option, default in {"batch": 128, "rounds": 8, "steps": 6}.items():
        parser.add_argument(f"--{option}", type=at_least(1), default=default)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    return parser


def time_one(asked: argparse.Namespace) -> float:
    """Median seconds of a step in this process, whose memory is kept or not from the first one on."""
    if asked.child == "kept":
        keep_freed_memory()
    net = build_vit("vit_tiny", image_size=32, patch_size=4, num_classes=10, seed=0)
    images, labels = torch.randn(asked.batch, 3, 32, 32), torch.randint(10, (asked.batch,))
    asked.phase = ["train"]
    cases, _ = steps_of(net, images, labels, asked)
    (case,) = cases.values()
    case.prepare()
    seconds = []
    for _ in range(WARMUP + asked.steps):
        start = time.perf_counter()
        case.run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARMUP:])


def in_a_process(asked: argparse.Namespace, way: str, mode: str, precision: str) -> float:
    """``time_one`` in a process of its own."""
    given = {"child": way, "mode": mode, "precision": precision, "batch": asked.batch, "steps": asked.steps}
    given["threads"] = torch.get_num_threads()
    argv = [text for option, value in given.items() for text in (f"--{option}", str(value))]
    done = subprocess.run([sys.executable, __file__, *argv], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: exit status {done.returncode}\n{done.stderr}")
    return float(done.stdout.split()[-1])


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Time both ways: the content of the result file."""
    if sys.platform != "linux" or not keep_freed_memory():
        raise UsageError("this C library cannot be told to keep memory: Linux with glibc only")
    device = torch.device("cpu")
    exclusive = Exclusivity(device)
    rows = []
    for precision, mode in itertools.product(asked.precision, asked.mode):
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(asked.rounds):
            for way in order(WAYS, turn):
                seconds[way].append(in_a_process(asked, way, mode, precision))
        for way in WAYS:
            step_ms = [1e3 * q for q in quartiles(seconds[way])]
            row = {"precision": precision, "mode": mode, "memory": way, "n": asked.rounds, "step_ms": step_ms}
            ratio = paired_ratio(seconds["given back"], seconds["kept"])._asdict() if way == "kept" else None
            rows.append(row | {"kept_over_given_back": ratio})
    return {
        **describe("kept_memory", asked, device),
        "exclusive": exclusive.check(),
        "batch": asked.batch,
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
    if asked.child:
        print(time_one(asked))
        return 0
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("kept_memory", __doc__, options(), run))
