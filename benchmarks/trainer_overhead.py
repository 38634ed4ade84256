"""What the Trainer costs: our ``train`` against a raw PyTorch loop around the same step.

usage: python benchmarks/trainer_overhead.py [OPTIONS]

Ours is all of `vit-gelu train`: Lightning's loop, our callbacks, metrics.csv and TensorBoard, and the progress
bar drawn to a terminal in memory. The raw loop has the same network, loader, optimizer and schedule, calls the
same training_step, and does nothing else. Inside one training, chunks of Trainer steps alternate with chunks of
raw steps; PYTORCH_NVML_BASED_CUDA_CHECK is unset, by which Lightning makes the raw loop's optimizer slower than a
script's without Lightning. The batch size is chosen so that a step takes about 20 ms. Goal: at most 3 % more per step.

  --step_ms X             20
  --chunk N               50 steps       --rounds N   20 pairs of chunks
  --activation NAME       gelu           --compile    compile both networks
  --log_every_n_steps N   50
  --profile FILE          also write a cProfile of the Trainer's chunks (for pstats or snakeviz)
  --device D              auto, cpu or cuda           --threads N    CPU threads
  --out FILE.json         write a result file
"""

import argparse
import cProfile
import io
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from report import Options, choose_device, describe, heading, run_script, save, table
from rich.console import Console
from rotation import Ratio, paired_ratio, quartiles, synchronize

from vit_gelu.cli.arguments import at_least
from vit_gelu.cli.options import TrainCLI
from vit_gelu.cli.train import quieten
from vit_gelu.compile_cache import key_cache
from vit_gelu.data import TrainLoader, load_source
from vit_gelu.data.policies import build_policy
from vit_gelu.models import build_vit
from vit_gelu.training.compilation import compile_options
from vit_gelu.training.exclusivity import Exclusivity
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.optim import build_optimizer, build_schedule
from vit_gelu.training.progress import Display
from vit_gelu.training.run import find, train

GOAL = 1.03
MODEL: dict[str, Any] = {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "pooling": "mean"}
WARMUP_STEPS = 20
MOST_IMAGES = 500_000


def options() -> Options:
    parser = Options("trainer_overhead")
    parser.add_argument("--step_ms", type=float, default=20.0)
    parser.add_argument("--chunk", type=at_least(1), default=50)
    parser.add_argument("--rounds", type=at_least(1), default=20)
    parser.add_argument("--activation", default="gelu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--log_every_n_steps", type=at_least(1), default=50)
    parser.add_argument("--profile", type=Path)
    return parser


def write_images(path: Path, n: int) -> None:
    """An array file of random grey 8 × 8 images."""
    rng = np.random.default_rng(0)
    parts = {"train": n, "val": 64, "test": 64}
    arrays = {f"{part}_images": rng.integers(0, 256, (k, 8, 8), dtype=np.uint8) for part, k in parts.items()}
    labels = {f"{part}_labels": np.arange(k, dtype=np.int64) % 10 for part, k in parts.items()}
    np.savez(path, **arrays, **labels)


class RawLoop:
    """A training in a plain loop.

    Args:
        images: an array file.
        batch: images per step.
        steps: length of the schedule.
        device: where it runs.
        activation, compiled: as for the Trainer.
    """

    def __init__(
        self, images: Path, batch: int, steps: int, device: torch.device, activation: str, compiled: bool
    ) -> None:
        source = load_source(images)
        self.module = ClassificationModule(activation=activation, **MODEL)
        net = build_vit(
            image_size=source.image_size,
            in_channels=source.channels,
            num_classes=source.num_classes,
            **self.module.network_options,
        ).to(device)
        if compiled:
            key_cache(net)
            net.compile(options=compile_options(device.type))
        self.module.net = net
        fixed = {"lr": self.module.lr, "weight_decay": self.module.weight_decay}
        self.optimizer = build_optimizer(net, self.module.optimizer, **fixed)
        self.schedule = build_schedule(self.optimizer, total_steps=steps, warmup_steps=0)
        loader = TrainLoader(
            source.train,
            global_batch_size=batch,
            seed=0,
            augment=build_policy("crop_flip"),
            mean=source.mean,
            std=source.std,
            num_classes=source.num_classes,
            device=device,
        )
        self.batches = itertools.chain.from_iterable(itertools.repeat(loader))
        self.device = device

    def compute_attention_as(self, module: Any) -> None:
        """By the kernels that the Trainer measured to be fastest: else two ways of attention would be compared."""
        self.module.network.use_attention(*module.network.attention_in_use)

    def step(self) -> None:
        self.module.training_step(next(self.batches), 0)["loss"].backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, steps: int) -> float:
        """Seconds per step over some steps."""
        synchronize(self.device)
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(self.device)
        return (time.perf_counter() - start) / steps


def choose_batch(folder: Path, step_seconds: float, device: torch.device, activation: str) -> int:
    """The batch size at which an eager raw step takes about that long."""
    batch = 32
    for _ in range(5):
        images = folder / f"{batch}.npz"
        write_images(images, max(64, 2 * batch))
        loop = RawLoop(images, batch, 100, device, activation, False)
        loop.seconds(3)
        growth = step_seconds / loop.seconds(5)
        if 0.9 < growth < 1.1:
            break
        batch = min(65_536, max(1, round(batch * min(growth, 8.0))))
    return batch


def build(asked: argparse.Namespace, folder: Path, images: Path, batch: int, steps: int) -> TrainCLI:
    """The same training as the command line would set it up."""
    given = {
        "out": folder,
        "activation": asked.activation,
        "data.name": images,
        "data.global_batch_size": batch,
        "data.augment": "crop_flip",
        "model.compile": str(asked.compile).lower(),
        "trainer.max_steps": steps,
        "trainer.max_epochs": -1,
        "trainer.accelerator": "gpu" if choose_device(asked.device).type == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.log_every_n_steps": asked.log_every_n_steps,
        **{f"model.{k}": v for k, v in MODEL.items()},
    }
    return TrainCLI.parse([f"--{k}={v}" for k, v in given.items()])


class Alternate(Callback):
    """Between chunks of the Trainer's steps, times a chunk of raw ones; must be the last callback."""

    def __init__(self, raw: RawLoop, chunk: int, profile: cProfile.Profile | None) -> None:
        self.raw, self.chunk, self.profile = raw, chunk, profile
        self.trainer_seconds: list[float] = []
        self.raw_seconds: list[float] = []
        self.start = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.raw.compute_attention_as(pl_module)
        self.raw.seconds(WARMUP_STEPS)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = trainer.global_step - WARMUP_STEPS
        if done < 0 or done % self.chunk:
            return
        synchronize(pl_module.device)
        seconds = time.perf_counter() - self.start
        if self.profile:
            self.profile.disable()
        if done:
            self.trainer_seconds.append(seconds / self.chunk)
            self.raw_seconds.append(self.raw.seconds(self.chunk))
        if self.profile:
            self.profile.enable()
        self.start = time.perf_counter()


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    device = choose_device(asked.device)
    exclusive = Exclusivity(device)
    steps = WARMUP_STEPS + asked.chunk * asked.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        batch = choose_batch(folder, asked.step_ms / 1e3, device, asked.activation)
        images = folder / "images.npz"
        write_images(images, max(64, min(MOST_IMAGES, steps * batch)))
        raw = RawLoop(images, batch, steps, device, asked.activation, asked.compile)
        quieten()
        cli = build(asked, folder / "run", images, batch, steps)
        cli.run_folder.prepare()
        display = find(cli.trainer, Display)
        terminal = io.StringIO()
        display.console, display.live = Console(file=terminal, force_terminal=True, width=120), True
        profile = cProfile.Profile() if asked.profile else None
        alternate = Alternate(raw, asked.chunk, profile)
        cli.trainer.callbacks.append(alternate)
        train(cli.model, cli.datamodule, cli.trainer, cli.folder, config=cli.resolved)
        if profile:
            profile.disable()
            profile.dump_stats(asked.profile)
        assert "images/s" in terminal.getvalue(), "the progress bar was not drawn"
    ours, theirs = alternate.trainer_seconds, alternate.raw_seconds
    ratio = paired_ratio(ours, theirs)
    extra = [a - b for a, b in zip(ours, theirs, strict=True)]
    return {
        **describe("trainer_overhead", asked, device),
        "exclusive": exclusive.check(),
        "batch": batch,
        "profiled": profile is not None,
        "chunk": asked.chunk,
        "trainer_step_ms": [1e3 * q for q in quartiles(ours)],
        "raw_step_ms": [1e3 * q for q in quartiles(theirs)],
        "extra_us_per_step": [1e6 * q for q in quartiles(extra)],
        "trainer_over_raw": ratio._asdict(),
        "goal": GOAL,
        "met": ratio.ratio <= GOAL,
    }


def show(result: dict[str, Any]) -> None:
    print(heading(result, result["exclusive"]))
    print(f"batch {result['batch']}, {result['trainer_over_raw']['n']} pairs of {result['chunk']} steps\n")
    lines = []
    for name, key in (("raw loop", "raw_step_ms"), ("our train", "trainer_step_ms")):
        low, median, high = result[key]
        lines.append([name, f"{median:.3f}", f"{low:.3f} - {high:.3f}"])
    print(table(["loop", "ms a step", "quartiles"], lines))
    low, median, high = result["extra_us_per_step"]
    print(f"\nmore per step: {median:.0f} µs ({low:.0f} - {high:.0f})")
    print(f"ours / raw: {Ratio(**result['trainer_over_raw'])}; goal <= {result['goal']}: ", end="")
    print("met" if result["met"] else "NOT MET")
    if result["profiled"]:
        print("profiled: the Trainer's chunks are slower than they are; not a measurement")


def run(asked: argparse.Namespace) -> int:
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # a script without Lightning would not have it
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("trainer_overhead", __doc__, options(), run))
