"""Kill an ablation and its workers at random moments, go on each time, and compare with one that was left alone.

    python benchmarks/ablation_kill.py --kills 10

It fails unless every run that had finished is untouched, every record is whole, and the weights, scores and orders
are those of the ablation that was left alone, to the bit.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
PLAN = {
    "config": str(ROOT / "configs" / "digits.yaml"),
    "overrides": {
        "model.embed_dim": 32,
        "model.depth": 2,
        "model.patch_size": 4,
        "model.warmup_epochs": 0,
        "model.dropout": 0.1,
        "trainer.max_epochs": 6,
        "trainer.accelerator": "cpu",
        # Saves after every step, so that runs go on in the middle of an epoch.
        "checkpoint_minutes": 0,
    },
    "arms": ["gelu_stochastic", "relu"],
    "seeds": 3,
}
DEADLINE = 600


def start(plan: str, out: Path) -> subprocess.Popen:
    """``vit-gelu ablate`` in a process of its own."""
    command = [sys.executable, "-m", "vit_gelu", "ablate", plan]
    command += [] if Path(plan).is_dir() else ["--out", str(out)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def workers(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Every record with its inode and time of writing; each must be whole."""
    found = {}
    for path in sorted(out.glob("runs/*/record.json")):
        json.loads(path.read_text())
        found[path.parent.name] = path.stat().st_ino, path.stat().st_mtime_ns
    return found


def under_way(out: Path) -> bool:
    """Whether a run is in the middle of its training."""
    begun = {path.parent for path in out.glob("runs/*/checkpoints/last.ckpt")}
    return any(not (folder / "record.json").exists() for folder in begun)


def kill_once(plan: str, out: Path, what: str, clock: random.Random, spread: float) -> str:
    """Start or go on, kill the ablation or its worker in the middle of a run; how it was left."""
    before = finished(out)
    process = start(plan, out)
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and not under_way(out):
        assert time.monotonic() < deadline, "nothing began"
        time.sleep(0.01)
    time.sleep(clock.uniform(0, spread))
    if what == "ablation":
        process.kill()
    else:
        for pid in workers(process.pid) if process.poll() is None else []:
            subprocess.run(["kill", "-9", str(pid)], check=False)
        process.wait(DEADLINE)
    message = process.communicate()[1]
    after = finished(out)
    assert before.items() <= after.items(), "a finished run was repeated"
    assert "Traceback" not in message, message
    return f"{what} killed, {len(after)} finished"


def go_on(plan: str, out: Path) -> None:
    """Let it end; what had finished must stay."""
    before = finished(out)
    process = start(plan, out)
    message = process.communicate(timeout=DEADLINE)[1]
    assert process.returncode == 0, message
    assert before.items() <= finished(out).items(), "a finished run was repeated"


def compare(reference: Path, out: Path) -> int:
    """How many runs are equal to the bit; fails on the first that is not."""
    names = list(finished(reference))
    assert names == list(finished(out)), "another set of runs"
    for name in names:
        one, other = (json.loads((d / "runs" / name / "record.json").read_text()) for d in (reference, out))
        for key in ("order_hash", "val", "test", "steps", "epochs", "config_hash", "arm"):
            assert one[key] == other[key], (name, key)
        states = [
            torch.load(d / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for d in (reference, out)
        ]
        assert all(torch.equal(states[0][k], states[1][k]) for k in states[0] | states[1]), name
    assert not list(out.rglob("*.partial")), "a half-written file"
    return len(names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spread", type=float, default=2.0, help="seconds over which a kill is spread")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    clock = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        plan = Path(place) / "plan.yaml"
        plan.write_text(yaml.safe_dump(PLAN))
        reference = Path(place) / "reference"
        go_on(str(plan), reference)
        out, done, folders = Path(place) / "killed-1", 0, 1
        while done < options.kills:
            what = "ablation" if clock.random() < 0.6 else "worker"
            print(f"{done + 1}: {kill_once(str(plan), out, what, clock, options.spread)}", flush=True)
            done += 1
            if len(finished(out)) == len(finished(reference)):
                print(f"{compare(reference, out)} runs equal to the bit", flush=True)
                folders += 1
                out = Path(place) / f"killed-{folders}"
        if out.exists():
            go_on(str(plan), out)
            print(f"{compare(reference, out)} runs equal to the bit", flush=True)
        print(f"{options.kills} kills survived")


if __name__ == "__main__":
    main()
