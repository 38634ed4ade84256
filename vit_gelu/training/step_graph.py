"""A whole training step as one CUDA graph: forward, backward, clipping and the optimizer's update in a single launch.

A small network's step is several hundred kernels, each over in microseconds; launching them one by one takes the
processor longer than the GPU needs to compute them. Recorded once, they are launched together; only the batch and the
learning rates are copied to where the recording reads them.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from torch.optim import Optimizer

from vit_gelu.data.transfer import send
from vit_gelu.training.muon import Muon
from vit_gelu.training.optim import resolve_optimizer

WARMUP_STEPS = 3  # launched one by one before a recording: they compile, and make the optimizer's state
INSIDE = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


def can_be_recorded(optimizer: str) -> bool:
    """Whether the step of an optimizer of this name waits for nothing on the device."""
    constructor: Any = resolve_optimizer(optimizer)
    return constructor is Muon or "capturable" in inspect.signature(constructor).parameters


def reason_against(trainer: Any, module: LightningModule, optimizer: str) -> str:
    """Why a step cannot be recorded as a whole; empty where it can.

    Args:
        trainer, module: of the run.
        optimizer: its name.
    """
    if trainer.world_size > 1:
        return "several processes meet in every step"
    if str(trainer.precision) == "16-mixed":
        return "scaled gradients are looked at in every step"
    if not can_be_recorded(optimizer):
        return f"the step of {optimizer} cannot be recorded"
    for owner, base in (*((callback, Callback) for callback in trainer.callbacks), (module, LightningModule)):
        for hook in INSIDE:
            if getattr(owner, hook) is not None and getattr(type(owner), hook) is not getattr(base, hook):
                return f"{type(owner).__name__}.{hook} is to be called in every step"
    return ""


def record_on_gpu(run: Callable[[], object]) -> Callable[[], None]:
    """Record what ``run`` launches, which computes nothing yet; returns what does."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay


def _fixed(group: dict[str, Any]) -> tuple[Any, ...]:
    """What a recording holds fast of a group of the optimizer: what is trained, and every option but the rate."""
    options = ((k, v) for k, v in group.items() if k not in ("params", "lr", "initial_lr"))
    return (*options, *(p.requires_grad for p in group["params"]))


class StepGraph:
    """Runs training steps, from a recording once there is one.

    Args:
        record: see ``record_on_gpu``.

    Attributes:
        recordings: how many were made.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] = record_on_gpu) -> None:
        self.recordings = 0
        self._record = record
        self._recording = False
        self._key: Any = None
        self._steps = 0  # since the key changed
        self._inputs: Any = None
        self._rates = torch.empty(0)  # one per group of the optimizer, on the device
        self._result: ClosureResult | None = None
        self._replay: Callable[[], None] | None = None

    def inputs(self, batch: Any) -> Any:
        """What a step must read: the given batch, or where the recording will find each one."""
        return self._inputs if self._recording else batch

    def step(self, key: Any, batch: Any, optimizer: Optimizer, closure: Any, run: Callable[[], None]) -> None:
        """One training step.

        Args:
            key: of what a recording holds fast, such as the share of patches left out; another key, another recording.
                None: not to be recorded.
            batch: named tuple of tensors.
            optimizer: whose learning rates are read anew in every step.
            closure: Lightning's, which keeps the result.
            run: the step, launched one by one; reads ``inputs(batch)``, and leaves its result in the closure.

        Raises:
            ValueError: the step does something that cannot be recorded.
        """
        if key is not None:
            shapes = tuple((tensor.shape, tensor.dtype) for tensor in batch)
            key = (key, shapes, *map(_fixed, optimizer.param_groups))
        if key is None or key != self._key:
            self._key, self._steps, self._replay = key, 0, None
        self._steps += 1
        if key is None or self._steps <= WARMUP_STEPS:
            run()
            return
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if self._replay is None:
            self._start(batch, optimizer, closure, run, rates)
        for place, values in zip(self._inputs, batch, strict=True):
            place.copy_(values)
        self._rates.copy_(send(torch.tensor(rates), self._rates.device))
        assert self._replay is not None
        self._replay()
        result = self._result
        assert result is not None
        # Copies: the next replay writes to the same places.
        closure._result = ClosureResult(
            result.closure_loss, extra={name: value.clone() for name, value in result.extra.items()}
        )

    def _start(
        self, batch: Any, optimizer: Optimizer, closure: Any, run: Callable[[], None], rates: list[float]
    ) -> None:
        self._inputs = type(batch)(*(tensor.clone() for tensor in batch))
        self._rates = torch.tensor(rates, device=batch[0].device)

        def recorded() -> None:
            with self._reading_places(optimizer):
                run()

        try:
            self._replay = self._record(recorded)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"--model.cuda_graphs true: this step cannot be recorded: {reason}; set it to false"
            ) from error
        self.recordings += 1
        result = closure.consume_result()
        self._result = ClosureResult(result.closure_loss.detach(), extra=result.extra)

    @contextmanager
    def _reading_places(self, optimizer: Optimizer) -> Iterator[None]:
        """The step reads the batch and the learning rates from where they will be copied to."""
        kept = [(group["lr"], group.get("capturable")) for group in optimizer.param_groups]
        self._recording = True
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            self._recording = False
            for group, (rate, capturable) in zip(optimizer.param_groups, kept, strict=True):
                group["lr"] = rate
                if "capturable" in group:
                    group["capturable"] = capturable
