"""Everything that is worth knowing about a GPU machine, in one command of less than ten minutes.

usage: python benchmarks/gpu.py OUT_DIR [OPTIONS]

  correctness        activations and the ViT against float64 on the CPU
  bench_activations  vit-gelu bench activations
  bench_Ti, bench_S, bench_B    vit-gelu bench training: Ti/4@32, S/16@224, B/16@224, with MFU
  peers              the training step against timm, torchvision, vit-pytorch and transformers
  end_to_end         a short CIFAR-10 training, from files to test accuracy

Each part is a process with a time limit of its own. What it found is OUT_DIR/<part>.json, what it printed
OUT_DIR/<part>.txt and .log; OUT_DIR/summary.md has it all. A part that fails is reported, and the others go on.
Run again, the command makes only what is missing. Exit status 1 where a part failed or found something wrong.

  --parts NAME ...        only these
  --root DIR              where CIFAR-10 is (default: as for vit-gelu train); without it, the last part is skipped
  --device D              auto, cpu or cuda
  --quick                 a miniature of every part, to see whether they run; its numbers mean nothing
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from checkout import ROOT
from peers import PEERS, installed_peers
from report import Options, choose_device, run_script, table, versions

from vit_gelu.cli.arguments import one_of
from vit_gelu.cli.errors import FAILED, UsageError
from vit_gelu.data import default_root, find_cifar
from vit_gelu.training.record import code_commit, now, processor_name, write_json

TIME_LIMIT = 590.0
QUICK_TIME_LIMIT = 3600.0  # says whether the parts run, on however slow a machine
LINES_SHOWN = 200
PARTS = ("correctness", "bench_activations", "bench_Ti", "bench_S", "bench_B", "peers", "end_to_end")
BF16 = ["--dtypes", "bfloat16", "--compile"]
# Size, what to compile, what competes: the large ones are there for their MFU alone, compiling them takes long.
TRAINING = {
    "bench_Ti": ("Ti/4@32", ["both", "--activations", "relu", "gelu"]),
    "bench_S": ("S/16@224", ["true", "--activations", "gelu", "--baseline", "gelu"]),
    "bench_B": ("B/16@224", ["true", "--activations", "gelu", "--baseline", "gelu"]),
}


class Part(NamedTuple):
    """One process to run.

    Attributes:
        name: of its files.
        command: arguments for Python.
        seconds: after which it is stopped.
        result: the file that it writes, which becomes ``<name>.json``.
        scratch: a folder of its own, removed before it starts; None: it needs none.
    """

    name: str
    command: list[str]
    seconds: float
    result: Path
    scratch: Path | None = None


class Outcome(NamedTuple):
    """How a part ended: ``status`` is finished, wrong, failed, skipped or kept (from an earlier run)."""

    name: str
    status: str
    detail: str = ""
    seconds: float | None = None


def options() -> Options:
    parser = Options("gpu", common=("device",))
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument("--parts", nargs="+", type=one_of("part", PARTS), default=list(PARTS))
    parser.add_argument("--root", type=Path)
    parser.add_argument("--quick", action="store_true")
    return parser


def plan(asked: argparse.Namespace, device: str) -> dict[str, Part]:
    """Every part's command; those of ``--quick`` are as short as they can be."""
    folder, quick = asked.folder.absolute(), asked.quick
    scripts, gpu = ROOT / "benchmarks", ["--device", device]

    def partial(name: str) -> Path:
        return folder / f"{name}.json.partial"

    def script(name: str, file: str, seconds: float, *extra: str) -> Part:
        command = [str(scripts / file), *gpu, "--out", str(partial(name)), *extra]
        return Part(name, command, seconds, partial(name))

    def bench(name: str, kind: str, seconds: float, *extra: str) -> Part:
        out = folder / name
        # The command stops by itself, with a result, before it would be stopped without one.
        limit = [] if quick else ["--time_limit", str(0.7 * seconds)]
        command = ["-m", "vit_gelu", "bench", kind, *gpu, "--out", str(out), *limit, *extra]
        return Part(name, command, seconds, out / "bench.json", out)

    small = ["--rounds", "2", "--compile", "false", "--activations", "relu", "gelu", "--dtypes", "float32"]
    tiny = ["--model.embed_dim", "24", "--model.depth", "1", "--model.num_heads", "2"]
    few = [
        "--mode",
        "eager",
        "--dtypes",
        "float32",
        "bf16",
        "--activations",
        "gelu",
        "gelu_learnable",
        "geglu",
    ]
    real = ["--sizes", "Ti/4@32", "B/16@224", "--rounds", "10", *BF16, "both"]
    hidden = ["--sizes", "2x8x64", *small] if quick else real
    made = [
        script("correctness", "correctness.py", 100, *(few if quick else ["--time_limit", "60"])),
        bench("bench_activations", "activations", 120, *hidden),  # compiling twenty takes a minute a size
    ]
    for name, (size, what) in TRAINING.items():
        given = ["--sizes", size + ":4", *small, *tiny] if quick else ["--sizes", size, *BF16, *what]
        if device == "cuda":
            given += ["--cuda_graphs", "true"]  # a small model's launches take longer than its kernels
        made.append(bench(name, "training", 60 if name == "bench_Ti" else 45, *given))
    peers = ["--peers", *installed_peers()] if installed_peers() else []
    if quick:
        extra = ["--embed_dim", "24", "--depth", "1", "--num_heads", "2", "--image_size", "8", "--batch", "4"]
        extra += ["--rounds", "2", "--min_seconds", "0", "--mode", "eager", "--precision", "float32"]
    else:
        # Five models to compile: most of the time is warm-up.
        extra = ["--batch", "1024", "--precision", "bf16", "--phase", "train", "--time_limit", "130"]
    made.append(script("peers", "training_step.py", 155, *peers, *extra))
    made.append(_end_to_end(asked, device, folder))
    return {part.name: part for part in made}


def _end_to_end(asked: argparse.Namespace, device: str, folder: Path) -> Part:
    out = folder / "end_to_end"
    given: dict[str, Any] = {"config": "cifar10", "activation": "gelu", "out": out, "trainer.devices": 1}
    given |= {"trainer.accelerator": "gpu" if device == "cuda" else "cpu", "model.warmup_epochs": 2}
    given |= {"trainer.max_epochs": 15, "trainer.check_val_every_n_epoch": 5}
    given |= {"loggers": '["csv"]', "trainer.enable_checkpointing": "false"}
    if device == "cuda":
        given |= {"model.cuda_graphs": "true", "model.residual_precision": "half"}
    if asked.root is not None:
        given["data.root"] = asked.root.absolute()
    if asked.quick:
        given |= {"model.embed_dim": 24, "model.depth": 1, "model.num_heads": 2, "model.compile": "false"}
        given |= {"model.warmup_epochs": 0, "data.global_batch_size": 32, "trainer.precision": "32-true"}
        given |= {"model.residual_precision": "full"}
        given |= {"trainer.max_epochs": 1, "trainer.check_val_every_n_epoch": 1}
        given |= {f"trainer.limit_{part}_batches": 2 for part in ("train", "val", "test")}
    command = ["-m", "vit_gelu", "train", *(f"--{k}={v}" for k, v in given.items())]
    return Part("end_to_end", command, 65, out / "record.json", out)


def reason_to_skip(name: str, asked: argparse.Namespace) -> str:
    """Why a part cannot run here; empty where it can."""
    root = asked.root or default_root()
    if name == "end_to_end" and find_cifar("cifar10", root) is None:
        return f"CIFAR-10 is not in {root}: name its folder with --root"
    if name == "peers" and not installed_peers():
        return "no other library is installed"
    return ""


def run_part(part: Part, folder: Path, seconds: float) -> Outcome:
    """Run one part to its end or its time limit; its result file appears only if it is whole."""
    if part.scratch is not None and part.scratch.exists():
        shutil.rmtree(part.scratch)
    part.result.unlink(missing_ok=True)
    began = time.monotonic()
    log = folder / f"{part.name}.log"
    with (folder / f"{part.name}.txt").open("w") as out, log.open("w") as err:
        process = subprocess.Popen(
            [sys.executable, *part.command], stdout=out, stderr=err, cwd=ROOT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except BaseException as stopped:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that compile for it
            process.wait()
            if not isinstance(stopped, subprocess.TimeoutExpired):
                raise
            return Outcome(part.name, "failed", f"not done after {seconds:.0f} s", time.monotonic() - began)
    took = time.monotonic() - began
    if part.result.is_file():
        partial = folder / f"{part.name}.json.partial"
        if part.result != partial:
            shutil.copyfile(part.result, partial)
        os.replace(partial, folder / f"{part.name}.json")
        if status:
            return Outcome(part.name, "wrong", f"exit status {status}: see {part.name}.txt", took)
        return Outcome(part.name, "finished", seconds=took)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    why = lines[-1][:200] if lines else "without a word"
    return Outcome(part.name, "failed", f"exit status {status}: {why}", took)


def environment(asked: argparse.Namespace, device: str) -> dict[str, Any]:
    """What results in one folder must have in common."""
    name = processor_name()
    if device == "cuda":
        # In a process of its own: this one must not hold GPU memory while others are measured.
        code = "import torch; print(torch.cuda.get_device_name(0))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        name = done.stdout.strip()
    return {"device": name, "quick": asked.quick, "git": code_commit(), "versions": versions()}


def claim(folder: Path, found: dict[str, Any]) -> None:
    """Make the folder, or check that what it holds was measured on this machine with this code.

    Raises:
        UsageError: it was not, or the folder holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "environment.json"
    if file.exists():
        before = json.loads(file.read_text())
        different = [k for k in found if before.get(k) != found[k]]
        if different:
            k = different[0]
            raise UsageError(
                f"{folder} holds results of another {k}: {before.get(k)}, not {found[k]}; choose another folder"
            )
    elif any(folder.iterdir()):
        raise UsageError(f"{folder} holds something else; choose a new folder")
    else:
        write_json(file, found)


def summary(folder: Path, found: dict[str, Any], outcomes: list[Outcome]) -> str:
    """The whole story as Markdown."""
    lines = [f"# {found['device']}", "", f"{now()}; vit_gelu {found['git']}"]
    lines += [", ".join(f"{k} {v}" for k, v in found["versions"].items()), ""]
    if found["quick"]:
        lines += ["**A miniature (`--quick`): its numbers mean nothing.**", ""]
    missing = [name for name in PEERS if name not in installed_peers()]
    if missing:
        lines += [f"Not installed, so not compared: {', '.join(missing)}.", ""]
    rows = [
        [o.name, o.status, "" if o.seconds is None else f"{o.seconds:.0f}", o.detail or "-"] for o in outcomes
    ]
    lines.append(table(["part", "status", "seconds", "detail"], rows))
    for outcome in outcomes:
        text = folder / f"{outcome.name}.txt"
        if outcome.status in ("finished", "wrong", "kept") and text.is_file():
            printed = text.read_text(errors="replace").strip().splitlines()
            cut = [f"... {len(printed) - LINES_SHOWN} more lines in {text.name}"] * (
                len(printed) > LINES_SHOWN
            )
            lines += ["", f"## {outcome.name}", "", "```", *printed[:LINES_SHOWN], *cut, "```"]
    return "\n".join(lines) + "\n"


def run(asked: argparse.Namespace) -> int:
    began = time.monotonic()
    # Ends as an exception does, so that the part under way ends too: it is a session of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    device, folder = choose_device(asked.device).type, asked.folder
    found = environment(asked, device)
    claim(folder, found)
    parts, outcomes = plan(asked, device), []
    for name in [p for p in PARTS if p in asked.parts]:
        left = (QUICK_TIME_LIMIT if asked.quick else TIME_LIMIT) - (time.monotonic() - began)
        reason = reason_to_skip(name, asked)
        if (folder / f"{name}.json").is_file():
            outcome = Outcome(name, "kept", "from an earlier run")
        elif reason:
            outcome = Outcome(name, "skipped", reason)
        elif left < 20:
            outcome = Outcome(name, "failed", "no time left: run the command again")
        else:
            limit = left if asked.quick else min(parts[name].seconds, left)
            print(f"{name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
            outcome = run_part(parts[name], folder, limit)
        outcomes.append(outcome)
        print(f"{name}: {outcome.status} {outcome.detail}".rstrip(), flush=True)
        (folder / "summary.md").write_text(summary(folder, found, outcomes))
    print(f"summary: {folder / 'summary.md'}")
    return FAILED if any(o.status in ("failed", "wrong") for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(run_script("gpu", __doc__, options(), run))
