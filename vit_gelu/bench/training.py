"""Activations in a whole ViT: the training step and the inference step, on synthetic images on the device."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.bench.comparison import (
    Comparison,
    OutOfTime,
    Referee,
    Say,
    check_compiled,
    figures,
    title,
)
from vit_gelu.bench.compiling import COMPILED, Compilation, compile_alone, first_call
from vit_gelu.bench.devices import device_clock
from vit_gelu.bench.memory import kept_for_backward
from vit_gelu.bench.options import DTYPES, PRECISIONS, Options
from vit_gelu.bench.timing import Competitor
from vit_gelu.cli.device import autocast
from vit_gelu.cli.errors import UsageError
from vit_gelu.models import VisionTransformer, build_vit
from vit_gelu.models.attention_choice import Shape, choose_attention
from vit_gelu.training.optim import build_optimizer
from vit_gelu.training.speed import count_flops, device_peak
from vit_gelu.training.step_graph import record_on_gpu

PASSES = ("train", "inference")
# Small enough that a thousand steps on noise leave the weights sane; the rate does not change the work.
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Workload:
    """A model and its batch.

    Attributes:
        label: such as S/16@224.
        model: key of ``VIT_SIZES``.
        batch: images per step.
        image_size, patch_size: pixels.
        num_classes: of the head.
        overrides: further options of ``VisionTransformer``.
        optimizer: any that ``build_optimizer`` knows.
        cuda_graphs: replay each step from a CUDA graph: no time of the processor's is in it.
    """

    label: str
    model: str
    batch: int
    image_size: int
    patch_size: int
    num_classes: int
    overrides: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    cuda_graphs: bool = False

    def labels(self, dtype: str, mode: str) -> dict[str, Any]:
        """What the rows of a comparison have in common."""
        return {
            "size": self.label,
            "batch": self.batch,
            "model": self.model,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "overrides": " ".join(f"{k}={v}" for k, v in self.overrides.items()),
            "optimizer": self.optimizer,
            "cuda_graphs": self.cuda_graphs,
            "dtype": dtype,
            "precision": PRECISIONS[dtype],
            "mode": mode,
        }


def kernel_for(
    net: VisionTransformer,
    *,
    batch: int,
    dtype: torch.dtype,
    autocast: bool,
    compiled: bool,
    training: bool,
    device: torch.device,
) -> str:
    """What a training, or an inference, of ours would compute attention with: measured, as ``vit-gelu train`` does."""
    config = net.config
    shape = Shape(
        batch=batch,
        tokens=net.num_tokens,
        heads=config["num_heads"],
        head_dim=config["embed_dim"] // config["num_heads"],
        dtype=str(dtype).removeprefix("torch."),
        autocast=autocast,
        compiled=compiled,
        training=training,
        device=device.type,
    )
    return choose_attention(shape, device).kernel


class Subject:
    """A ViT with one activation, its optimizer, and a batch that never changes.

    Args:
        name: of the activation.
        work: model and batch.
        dtype: of the forward pass under autocast; weights are float32.
        mode: eager or compiled.
        batch: images (b, 3, s, s) and labels (b,) on the device.

    Attributes:
        compilation: of the first training step; ``inference_compilation`` of the first inference step.
        launch_seconds: that the processor needs for a training step, as it is timed; None on a CPU.
        attention: the kernels of training and inference: asked for, or the fastest by a measurement.
        peak_bytes: most memory that a training step holds on a GPU, weights and optimizer state included, the
            batch not; None on a CPU.
    """

    def __init__(
        self, name: str, work: Workload, dtype: str, mode: str, batch: tuple[Tensor, Tensor]
    ) -> None:
        self.images, self.labels = batch
        self.device = self.images.device
        self.dtype, self.mode = dtype, mode
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.net = build_vit(
            work.model,
            **{
                "image_size": work.image_size,
                "patch_size": work.patch_size,
                "num_classes": work.num_classes,
                "activation": name,
                "seed": 0,
                **work.overrides,
            },
        ).to(self.device)
        self.shape = (3, work.image_size, work.image_size)
        self.attention: dict[str, str] = {p: work.overrides.get("attention", "auto") for p in PASSES}
        for what, asked in self.attention.items():
            if asked == "auto":
                self.attention[what] = kernel_for(
                    self.net,
                    batch=work.batch,
                    dtype=DTYPES[dtype],
                    autocast=PRECISIONS[dtype].endswith("mixed"),
                    compiled=mode == COMPILED,
                    training=what == "train",
                    device=self.device,
                )
        self.net.use_attention(*(self.attention[what] for what in PASSES))
        self.optimizer = build_optimizer(
            self.net, work.optimizer, lr=LEARNING_RATE, weight_decay=0.05, fused=dtype != "float16"
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "float16")
        self.call = compile_alone(self.net) if mode == COMPILED else self.net
        for group in self.optimizer.param_groups:
            if work.cuda_graphs and "capturable" in group:
                group["capturable"] = True
        self.cuda_graphs = work.cuda_graphs
        self.calls: dict[str, Callable[[], object]] = {"train": self.train, "inference": self.inference}
        self.compilation: Compilation | None = None
        self.inference_compilation: Compilation | None = None
        self.peak_bytes: int | None = None
        self.net.train()
        if mode == COMPILED:
            self.compilation = first_call(self.train, self._synchronise)
        self.train()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.train()
            self._synchronise()
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - before
        if work.cuda_graphs:
            self.calls["train"] = record_on_gpu(self.train)
        self.launch_seconds = self._launching()

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _launching(self) -> float | None:
        if self.device.type != "cuda":
            return None
        seconds = []
        for _ in range(5):
            self._synchronise()
            start = time.perf_counter()
            self.calls["train"]()
            seconds.append(time.perf_counter() - start)
        self._synchronise()
        return statistics.median(seconds)

    def loss(self) -> Tensor:
        with autocast(self.device, PRECISIONS[self.dtype]):
            logits = self.call(self.images)
        return F.cross_entropy(logits.float(), self.labels)

    def train(self) -> Tensor:
        """Forward, backward, optimizer; returns the loss, on the device."""
        loss = self.loss()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def inference(self) -> Tensor:
        with torch.no_grad(), autocast(self.device, PRECISIONS[self.dtype]):
            return self.call(self.images)

    def to_inference(self) -> None:
        """Evaluation mode from now on; compiles where that is asked for."""
        self.net.eval()
        if self.mode == COMPILED:
            self.inference_compilation = first_call(self.inference, self._synchronise)
        if self.cuda_graphs:
            self.inference()
            self.calls["inference"] = record_on_gpu(self.inference)

    def kept(self) -> int:
        """Bytes kept for backward by a training step, weights and batch not counted."""
        return kept_for_backward(
            self.loss, exclude=[*self.net.parameters(), *self.net.buffers(), self.images]
        )

    def flops(self) -> dict[str, int]:
        """Per image: of a training step, and of inference."""
        training = self.net.training
        self.net.train()
        counts = {
            "train": count_flops(self.net, self.shape),
            "inference": count_flops(self.net, self.shape, backward=False),
        }
        self.net.train(training)
        return counts


def synthetic_batch(work: Workload, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normal images (b, 3, s, s) and uniform labels (b,), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(work.batch, 3, work.image_size, work.image_size, generator=generator)
    labels = torch.randint(work.num_classes, (work.batch,), generator=generator)
    return images.to(device), labels.to(device)


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
                    except OutOfTime:
                        found = None
                yield work.labels(dtype, mode), found
