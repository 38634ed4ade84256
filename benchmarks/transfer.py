"""What pre-training is worth, and what a swapped activation costs: real images, no download.

Pre-train on CIFAR-100, fine-tune on CIFAR-10 with few and all labels, against training from scratch for as many
steps; then swap GELU for ReLU in the fine-tuned models, at once and blended in, and train on.
"""

import csv
import json
import statistics
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import checkout
from report import Options, choose_device, describe, run_script, save

HELP = """
usage: python benchmarks/transfer.py --runs DIR --out FILE [OPTIONS]

Pre-trains a small ViT on CIFAR-100, fine-tunes it on CIFAR-10 (5 % and 100 % of the labels), trains the same from
scratch for as many steps; swaps GELU for ReLU in the fine-tuned models. The same command goes on where it was stopped.

  --runs DIR           folder of all runs
  --out FILE           the result (JSON)
  --seeds N            runs of each kind (default: 3)
  --pretrain_epochs N  of CIFAR-100 (default: 4)
  --steps N            of each run on CIFAR-10 (default: 351, one epoch of all labels)
  --swap_steps N       of each run after the swap (default: 175)
  --anneal N           steps over which the annealed swap is blended in (default: 88)
"""

PRETRAINED_SEED = 100
FRACTIONS = (0.05, 1.0)
ARMS = ("gelu kept", "relu at once", "relu annealed")


class Transfer:
    """Runs, by name, in one folder; finished ones are not repeated."""

    def __init__(self, asked: Namespace) -> None:
        self.asked = asked
        self.folder: Path = asked.runs

    def run(self, name: str, *options: str) -> dict[str, Any]:
        """The record of a run; trained if it is not there yet."""
        folder = self.folder / name
        if not (folder / "record.json").is_file():
            go_on = (folder / "config.yaml").is_file()
            where = ["--resume", str(folder)] if go_on else [*options, "--out", str(folder)]
            print(f"{name} ...", flush=True)
            command = [
                sys.executable,
                "-m",
                "vit_gelu",
                "train",
                *where,
                "--trainer.enable_progress_bar",
                "false",
                "--model.compile",  # eager: runs of a minute or two would spend half of it on compiling
                "false",
            ]
            done = subprocess.run(command, cwd=checkout.ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: ended with status {done.returncode}\n{done.stderr[-2000:]}")
        record = json.loads((folder / "record.json").read_text())
        print(f"{name}: test top-1 {100 * record['test']['top1']:.2f} %", flush=True)
        return record

    def pretrain(self) -> Path:
        epochs = str(self.asked.pretrain_epochs)
        options = ["--config", "configs/cifar10_cpu.yaml", "--data.name", "cifar100", "--activation", "gelu"]
        options += ["--seed", str(PRETRAINED_SEED), "--trainer.max_epochs", epochs]
        self.run("pretrained", *options)
        return self.folder / "pretrained"

    def transfer(self, source: Path) -> list[dict[str, Any]]:
        rows = []
        for seed in range(self.asked.seeds):
            for fraction in FRACTIONS:
                common = ["--seed", str(seed), "--trainer.max_steps", str(self.asked.steps)]
                common += ["--trainer.max_epochs", "-1", "--data.train_fraction", str(fraction)]
                common += ["--model.warmup_epochs", "0", "--model.warmup_steps", str(self.asked.steps // 10)]
                common += ["--trainer.check_val_every_n_epoch", "1000000"]
                for start in ("scratch", "pretrained"):
                    config = ["--config", "configs/cifar10_cpu.yaml", "--activation", "gelu"]
                    if start == "pretrained":
                        config = [
                            "--config",
                            "configs/finetune/cifar10_cpu.yaml",
                            "--model.pretrained",
                            str(source),
                        ]
                    record = self.run(f"{start}-{fraction:g}-seed{seed}", *config, *common)
                    rows.append(
                        {
                            "start": start,
                            "train_fraction": fraction,
                            "seed": seed,
                            "train_n": record["dataset"]["train_n"],
                            "steps": record["steps"],
                            "val_top1": record["val"]["top1"],
                            "test_top1": record["test"]["top1"],
                        }
                    )
        return rows

    def swap(self) -> list[dict[str, Any]]:
        rows = []
        for seed in range(self.asked.seeds):
            source = self.folder / f"pretrained-1-seed{seed}"
            options = ["--config", "configs/finetune/cifar10_cpu.yaml", "--model.pretrained", str(source)]
            options += ["--seed", str(1000 + seed), "--trainer.max_steps", str(self.asked.swap_steps)]
            options += ["--trainer.max_epochs", "-1", "--trainer.check_val_every_n_epoch", "null"]
            options += ["--trainer.val_check_interval", str(max(1, self.asked.swap_steps // 7))]
            options += ["--model.warmup_epochs", "0", "--model.warmup_steps", "10", "--model.lr", "0.001"]
            options += ["--model.patch_dropout", "0"]
            for arm in ARMS:
                own = [] if arm == ARMS[0] else ["--activation", "relu"]
                own += ["--model.anneal_activation", str(self.asked.anneal)] if arm == ARMS[2] else []
                name = f"swap-{arm.replace(' ', '_')}-seed{seed}"
                record = self.run(name, *options, *own)
                before = top1_of(source, None if arm != ARMS[1] else "relu")
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "swap": (record.get("pretrained") or {}).get("swap"),
                        "val_top1": [[0, before], *curve(self.folder / name)],
                        "test_top1": record["test"]["top1"],
                    }
                )
        return rows


def top1_of(run: Path, activation: str | None) -> float:
    """Validation top-1 of a run's network, with another activation in the place of its own, before any training."""
    from vit_gelu.cli.counting import count
    from vit_gelu.cli.evaluation_data import load_split, run_config
    from vit_gelu.models.swap import swap_activations
    from vit_gelu.training.checkpoint import find_checkpoint, load_network

    network, card = load_network(run)
    if activation is not None:
        swap_activations(network, activation)
    trained_on = card["data"]
    config = run_config(find_checkpoint(run))["data"]
    split = load_split(trained_on, config, name=None, root=None, split="val", resize=False)
    counts = count(
        network,
        split.images,
        num_classes=len(trained_on["class_names"]),
        mean=tuple(trained_on["mean"]),
        std=tuple(trained_on["std"]),
        batch_size=500,
        device=choose_device("auto"),
    )
    return counts.score.top1


def curve(run: Path) -> list[list[float]]:
    """Validation top-1 by step, from the run's ``metrics.csv``."""
    with (run / "metrics.csv").open(newline="") as file:
        return [[int(row["step"]), float(row["val_top1"])] for row in csv.DictReader(file) if row["val_top1"]]


def summary(values: list[float]) -> str:
    """Mean and standard deviation in per cent.

    >>> summary([0.5, 0.6, 0.7])
    '60.00 ± 10.00 %'
    """
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread} %"


def show(transfer: list[dict[str, Any]], swap: list[dict[str, Any]]) -> None:
    """Print both tables."""
    print("\nCIFAR-10 test top-1, equal steps")
    for fraction in FRACTIONS:
        for start in ("scratch", "pretrained"):
            values = [
                r["test_top1"] for r in transfer if (r["start"], r["train_fraction"]) == (start, fraction)
            ]
            print(
                f"  {100 * fraction:5.0f} % of the labels, {start:<11}{summary(values)}  (n = {len(values)})"
            )
    print("\nGELU -> ReLU: validation top-1 before the first step and at the end, test top-1")
    for arm in ARMS:
        rows = [r for r in swap if r["arm"] == arm]
        first, last = ([r["val_top1"][i][1] for r in rows] for i in (0, -1))
        tests = [r["test_top1"] for r in rows]
        print(f"  {arm:<14}{summary(first)} -> {summary(last)}; test {summary(tests)}  (n = {len(rows)})")


def run(asked: Namespace) -> int:
    """Everything, in order; writes the result."""
    result = describe("transfer", asked, choose_device("auto"))
    study = Transfer(asked)
    transfer = study.transfer(study.pretrain())
    swap = study.swap()
    pretrained = json.loads((asked.runs / "pretrained" / "record.json").read_text())
    result |= {
        "pretrained": {"test_top1": pretrained["test"]["top1"], "steps": pretrained["steps"]},
        "transfer": transfer,
        "swap": swap,
    }
    show(transfer, swap)
    save(asked.out, result)
    return 0


def main(argv: list[str] | None = None) -> int:
    options = Options("transfer", ("out",))
    options.add_argument("--runs", type=Path, required=True)
    for name, default in (
        ("seeds", 3),
        ("pretrain_epochs", 4),
        ("steps", 351),
        ("swap_steps", 175),
        ("anneal", 88),
    ):
        options.add_argument(f"--{name}", type=int, default=default)
    return run_script("transfer", HELP, options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
