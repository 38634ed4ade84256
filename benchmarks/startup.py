"""How long one waits before anything happens: the command's help, the import, the first batch of CIFAR-10.

usage: python benchmarks/startup.py [OPTIONS]

Each is a fresh process, timed from outside, in turn, in an order that rotates; file caches are warm. The first
batch is timed inside its process, from the call that looks for CIFAR-10's array file to the first augmented
batch, imports excluded. Goals: help at most 1.5 times `import lightning, torchvision`, `import vit_gelu` and
a built model each at most 1.3 times `import torch`, first batch under 2 s.

  --name NAME             cifar10 (default), or an array file        --root DIR   where data sets are
  --runs N                7
  --out FILE.json         write a result file
"""

import argparse
import subprocess
import sys
import time
from typing import Any

import torch
from checkout import ROOT
from report import Options, describe, heading, run_script, save, table
from rotation import order, paired_ratio, quartiles

from vit_gelu.cli.arguments import at_least
from vit_gelu.data import load_source
from vit_gelu.training.exclusivity import Exclusivity

FIRST_BATCH = """
import sys, time
import torch, torchvision, numpy
from vit_gelu.data import TrainLoader, load_source
from vit_gelu.data.policies import build_policy
start = time.perf_counter()
name, root = sys.argv[1], sys.argv[2] or None
source = load_source(name, root, download=False)
loader = TrainLoader(
    source.train, global_batch_size=128, seed=0,
    augment=build_policy("crop_flip", source.image_size, source.channels),
    mean=source.mean, std=source.std, num_classes=source.num_classes,
)
next(iter(loader))
print(time.perf_counter() - start)
"""
MODEL = "import vit_gelu; vit_gelu.build_vit('vit_tiny', image_size=32, patch_size=4, num_classes=10)"

COMMANDS = {
    "vit-gelu --help": ["-m", "vit_gelu", "--help"],
    "vit-gelu train --help": ["-m", "vit_gelu", "train", "--help"],
    "vit-gelu train --help all": ["-m", "vit_gelu", "train", "--help", "all"],
    "import vit_gelu": ["-c", "import vit_gelu"],
    "import vit_gelu, build ViT-Ti": ["-c", MODEL],
    "import torch": ["-c", "import torch"],
    "import lightning, torchvision": ["-c", "import lightning, torchvision"],
    "first batch": ["-c", FIRST_BATCH],
}
# Ours, what it is compared with, and how many times that it may take.
GOALS = (
    ("vit-gelu train --help", "import lightning, torchvision", 1.5),
    ("vit-gelu train --help all", "import lightning, torchvision", 1.5),
    ("import vit_gelu", "import torch", 1.3),
    ("import vit_gelu, build ViT-Ti", "import torch", 1.3),
)
FIRST_BATCH_GOAL = 2.0


def options() -> Options:
    parser = Options("startup", common=("out",))
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--root", default="")
    parser.add_argument("--runs", type=at_least(1), default=7)
    return parser


def run_once(name: str, extra: list[str]) -> float:
    """Seconds of one fresh process; of the first batch, those that it counted itself.

    Raises:
        RuntimeError: the process failed; says how.
    """
    start = time.perf_counter()
    command = [sys.executable, *COMMANDS[name], *(extra if name == "first batch" else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{name}: exit status {done.returncode}\n{done.stderr.strip()[-500:]}")
    return float(done.stdout) if name == "first batch" else seconds


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    source = load_source(asked.name, asked.root or None)  # what leaves the array file, if need be
    device = torch.device("cpu")
    exclusive = Exclusivity(device)
    extra = [asked.name, asked.root]
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for name in COMMANDS:
        run_once(name, extra)  # fills the file caches and writes byte code
    for turn in range(asked.runs):
        for name in order(list(COMMANDS), turn):
            seconds[name].append(run_once(name, extra))
    rows = []
    for name, values in seconds.items():
        low, median, high = quartiles(values)
        rows.append({"what": name, "seconds": median, "quartiles": [low, high], "n": len(values)})
    goals: list[dict[str, Any]] = []
    for ours, theirs, limit in GOALS:
        ratio = paired_ratio(seconds[ours], seconds[theirs])
        goals.append({"what": f"{ours} / {theirs}", **ratio._asdict(), "limit": limit})
    first = quartiles(seconds["first batch"])[1]
    goals.append({"what": "first batch, seconds", "ratio": first, "limit": FIRST_BATCH_GOAL, "n": asked.runs})
    return {
        **describe("startup", asked, device),
        "exclusive": exclusive.check(),
        "dataset": {"name": source.name, "train_n": len(source.train), "fingerprint": source.fingerprint},
        "rows": rows,
        "goals": [{**goal, "met": goal["ratio"] <= goal["limit"]} for goal in goals],
    }


def show(result: dict[str, Any]) -> None:
    print(heading(result, result["exclusive"]) + "\n")
    lines = []
    for r in result["rows"]:
        low, high = r["quartiles"]
        lines.append([r["what"], f"{r['seconds']:.3f}", f"{low:.3f} - {high:.3f}", r["n"]])
    print(table(["what", "seconds", "quartiles", "n"], lines) + "\n")
    lines = [
        [g["what"], f"{g['ratio']:.3f}", f"<= {g['limit']}", "yes" if g["met"] else "NO"]
        for g in result["goals"]
    ]
    print(table(["goal", "measured", "limit", "met"], lines))


def run(asked: argparse.Namespace) -> int:
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("startup", __doc__, options(), run))
