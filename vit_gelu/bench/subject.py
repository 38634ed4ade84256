"""What competes in timing whole trainings: a ViT with one activation, its optimizer, a batch that never changes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.bench.compiling import COMPILED, Compilation, compile_alone, first_call
from vit_gelu.bench.memory import kept_for_backward
from vit_gelu.bench.options import PRECISIONS
from vit_gelu.cli.device import autocast
from vit_gelu.cli.errors import UsageError
from vit_gelu.models import VisionTransformer, build_vit
from vit_gelu.models.attention_choice import choose_attention
from vit_gelu.training.attention import shapes
from vit_gelu.training.compilation import compile_options
from vit_gelu.training.flops import count_flops
from vit_gelu.training.optim import build_optimizer
from vit_gelu.training.step_graph import can_be_recorded, record_on_gpu

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
        autotune: choose compiled matrix products by timing them.
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
    autotune: bool = False

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
            "autotuned": self.autotune,
            "dtype": dtype,
            "precision": PRECISIONS[dtype],
            "mode": mode,
        }


def fastest_attention(
    net: VisionTransformer, batch: int, precision: str, *, compiled: bool, device: torch.device
) -> dict[str, str]:
    """The kernels by which ``train`` and ``inference`` compute attention, measured as ``vit-gelu train`` does.

    Args:
        net: the network.
        batch: images per step.
        precision: Lightning's name of it.
        compiled: whether both are.
        device: where it runs.
    """
    training, evaluation = shapes(net, batch, precision, device.type, compiled)
    both = (training, replace(evaluation, compiled=compiled))
    return {what: choose_attention(shape, device).kernel for what, shape in zip(PASSES, both, strict=True)}


def check_residual(precision: str | None, dtypes: Sequence[str]) -> None:
    """Refuse tokens in half precision where all is in float32.

    Raises:
        UsageError: it was asked for beside float32.
    """
    if precision == "half" and "float32" in dtypes:
        raise UsageError(
            "--model.residual_precision half: means nothing in float32; choose --dtypes bfloat16"
        )


def check_graphs(device: torch.device, dtypes: Sequence[str], optimizer: str) -> None:
    """Refuse CUDA graphs where a step cannot be replayed.

    Raises:
        UsageError: no CUDA GPU, float16, or an optimizer whose step waits for the device.
    """
    if device.type != "cuda":
        raise UsageError(f"--cuda_graphs true: needs a CUDA GPU, and the device is {device}")
    if "float16" in dtypes:
        raise UsageError(
            "--cuda_graphs true: not in float16, whose scaler looks at every step; choose other --dtypes"
        )
    if not can_be_recorded(optimizer):
        raise UsageError(
            f"--cuda_graphs true: the step of {optimizer} cannot be recorded; take adamw or muon"
        )


def make_workspaces(device: torch.device, dtype: torch.dtype) -> None:
    """Have a GPU's matrix library take the memory that it keeps, which else the first competitor's peak would count."""
    for kind in (torch.float32, dtype):
        small = torch.zeros(16, 16, device=device, dtype=kind)
        F.linear(small, small, small[0])
    torch.cuda.synchronize(device)


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
        before = 0
        if self.device.type == "cuda":
            make_workspaces(self.device, getattr(torch, dtype))
            before = torch.cuda.memory_allocated(self.device)
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
        asked = work.overrides.get("attention", "auto")
        self.attention = dict.fromkeys(PASSES, asked)
        if asked == "auto":
            compiled = mode == COMPILED
            self.attention = fastest_attention(
                self.net, work.batch, PRECISIONS[dtype], compiled=compiled, device=self.device
            )
        self.net.use_attention(self.attention["train"], self.attention["inference"])
        self.optimizer = build_optimizer(
            self.net, work.optimizer, lr=LEARNING_RATE, weight_decay=0.05, fused=dtype != "float16"
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == "float16")
        options = compile_options(self.device.type, autotune=work.autotune)  # as a training compiles
        self.call = compile_alone(self.net, options=options) if mode == COMPILED else self.net
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
