"""How fast a run was: end to end, warm-up and evaluation excluded, and whether the figure may be compared."""

import os
import statistics
import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_gelu.models.attention import Attention
from vit_gelu.training.compilation import compiled_graphs, graph_breaks
from vit_gelu.training.memory import peak_memory, restart_peak_memory

WARMUP_STEPS = 10
LONGEST_PRODUCT = 0.2  # seconds, of those that the peak of a CPU is measured by


def count_flops(
    net: Any, image_shape: tuple[int, int, int], patch_dropout: float = 0.0, *, backward: bool = True
) -> int:
    """Floating-point operations of one image's forward and backward pass (a multiply-add is two).

    Counted from the operations that run, by torch's counter, on a batch of one in training mode with eager
    code and written-out attention: what a fused or compiled kernel saves in memory it does not save in
    arithmetic that counts.

    Args:
        net: a network; its gradients and its mode are left as they were.
        image_shape: (channels, height, width).
        patch_dropout: share of the patches that the step leaves out.
        backward: False counts the forward pass alone.
    """
    parameter = next(net.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    if not hasattr(getattr(net, "patch_drop", None), "p"):
        # One image has no batch statistics; evaluation does the same arithmetic.
        training = net.training
        net.eval()
        try:
            return flops_of(net, lambda: net.forward(image), backward=backward)
        finally:
            net.train(training)
    net.patch_drop.p, rate = patch_dropout, net.patch_drop.p
    try:
        return flops_of(net, lambda: net.forward(image), backward=backward)
    finally:
        net.patch_drop.p = rate


def flops_of(net: torch.nn.Module, call: Callable[[], torch.Tensor], *, backward: bool = True) -> int:
    """Floating-point operations of ``call`` with written-out attention, and of its backward pass.

    Args:
        net: what ``call`` runs through; its kernels of attention, its gradients and the random state are left as
            they were.
        call: gives a tensor.
        backward: count the backward pass from its sum too.
    """
    layers = [m for m in net.modules() if isinstance(m, Attention)]
    kernels = [(m.kernel_training, m.kernel_evaluation) for m in layers]
    gradients = {p: p.grad for p in net.parameters()}
    random_state = torch.get_rng_state()
    for layer in layers:
        layer.set_kernels("explicit", "explicit")
    try:
        # Other people's attention is written out, too: the counter does not know every fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.enable_grad():
            total = call().sum()
            if backward:
                total.backward()
    finally:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.set_kernels(*kernel)
        torch.set_rng_state(random_state)
        for p, gradient in gradients.items():
            p.grad = gradient
    return counter.get_total_flops()


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """What this device can do for a training in ``dtype``, in FLOP/s: the faster of ``dtype`` and float32.

    A processor that emulates bfloat16 is no better than its float32 units, which autocast uses as well.
    """
    return max(matmul_peak(device, d) for d in {dtype, torch.float32})


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a large square matrix product seen on this device now, in FLOP/s.

    On a GPU the product of two 8192×8192 matrices. On a CPU the sides have 2048 elements, or half, a quarter or an
    eighth of that where one product would take longer than ``LONGEST_PRODUCT`` seconds: emulated bfloat16 may be 100
    times slower than float32.
    """
    n = 8192 if device.type == "cuda" else 256
    # A product of twice the side has 8 times the arithmetic.
    while n < 2048 and 8 * _fastest_product(n, device, dtype, tries=2) <= LONGEST_PRODUCT:
        n *= 2
    return 2 * n**3 / _fastest_product(n, device, dtype, tries=8)


def _fastest_product(n: int, device: torch.device, dtype: torch.dtype, tries: int) -> float:
    """Seconds of the fastest of some products of two n×n matrices; the first is slower than the rest."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


class Exclusivity:
    """Whether anything else used the device between construction and ``check``.

    CPU: the machine's busy time (``/proc/stat``) against this process's own. GPU: processes that the driver
    lists besides ours. ``None`` where the system does not tell.

    Args:
        device: the training device.
        shared: True when the caller knows that it shares the device (several runs at a time).
    """

    def __init__(self, device: torch.device, shared: bool = False) -> None:
        self.device, self.shared = device, shared
        self.busy, self.own, self.start = self._busy(), self._own(), time.monotonic()

    @staticmethod
    def _busy() -> float | None:
        try:
            with open("/proc/stat") as file:
                fields = [int(x) for x in file.readline().split()[1:]]
        except OSError:
            return None
        idle = fields[3] + fields[4]
        return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _own() -> float:
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system

    @staticmethod
    def _gpu_processes(device: torch.device) -> set[int] | None:
        command = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
        # Other runs on the machine's other GPUs share nothing that counts.
        command += [f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return {int(line) for line in done.stdout.split() if line.strip().isdigit()}

    def check(self) -> bool | None:
        """True: nobody else; False: shared; None: unknown."""
        if self.shared:
            return False
        if self.device.type == "cuda":
            pids = self._gpu_processes(self.device)
            return None if pids is None else len(pids - {os.getpid(), os.getppid()}) == 0
        busy = self._busy()
        if self.busy is None or busy is None:
            return None
        others = (busy - self.busy) - (self._own() - self.own)
        capacity = (time.monotonic() - self.start) * (os.cpu_count() or 1)
        return others < 0.05 * capacity


class SpeedMeter(Callback):
    """Times every training step from the end of one to the end of the next, data included.

    What passes on the device until the batch is there, made or waited for, is the wait for data.

    On a GPU the marks are events on its stream, read once it has passed them. The first
    ``WARMUP_STEPS`` steps of a process, every step that follows an evaluation or a save, and every step in which
    torch.compile was at work or a CUDA graph was recorded are left out; the last ones are summed up as compile time.

    A GPU that has finished a step before the next one is launched whole is faster than the processor that feeds it.
    """

    def __init__(self, shared: bool = False) -> None:
        self.shared = shared
        self.step_seconds: list[float] = []
        self.patch_dropouts: Counter[float] = Counter()  # timed steps by the share of patches left out
        self.wait_seconds = 0.0
        self.overtaken = 0  # timed steps before whose last launch the GPU was through with the step before
        self.compile_seconds = 0.0
        self.graphs = 0
        self.recordings = 0
        self.eval_images = 0
        self.eval_seconds = 0.0
        self.global_batch = 0
        self.images_seen = 0
        self.steps = 0
        self._mark: Any = None
        self._graphs_before = 0
        self._breaks_before: dict[str, int] = {}
        self._breaks_told: set[str] = set()
        self._pending: list[tuple[Any, Any, Any]] = []
        self._exclusivity: Exclusivity | None = None

    def _now(self, device: torch.device) -> Any:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._device, self._processes = pl_module.device, trainer.world_size
        self._exclusivity = Exclusivity(self._device, self.shared)
        self.graphs = self._graphs_before = compiled_graphs()
        self._breaks_before = graph_breaks()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        else:
            restart_peak_memory()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._host_start = time.perf_counter()
        self._ready = self._now(self._device) if self._mark is not None else None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, host = self._now(self._device), time.perf_counter()
        self.steps += 1
        self.global_batch = len(batch.targets) * self._processes
        self.images_seen += self.global_batch
        graphs, recordings = compiled_graphs(), pl_module.step_graph.recordings
        if graphs != self.graphs or recordings != self.recordings:
            self.graphs, self.recordings = graphs, recordings
            self.compile_seconds += host - self._host_start
            self._warn_of_breaks(trainer)
        elif self.steps > WARMUP_STEPS and self._mark is not None:
            self._pending.append((self._mark, self._ready, now))
            self.overtaken += self._device.type == "cuda" and self._mark.query()
            self.patch_dropouts[pl_module.patches_left_out] += 1
        self._mark = now
        if self._device.type != "cuda" or trainer.global_step % trainer.log_every_n_steps == 0:
            self._resolve(wait=False)

    def breaks(self) -> dict[str, int]:
        """Graph breaks of this training by their reason."""
        return {
            r: n - self._breaks_before.get(r, 0)
            for r, n in graph_breaks().items()
            if n > self._breaks_before.get(r, 0)
        }

    def _warn_of_breaks(self, trainer: Any) -> None:
        for reason in self.breaks().keys() - self._breaks_told:
            self._breaks_told.add(reason)
            if trainer.is_global_zero:
                warnings.warn(
                    f"torch.compile broke the graph, so the network is slower than it could be: {reason}",
                    stacklevel=2,
                )

    def _resolve(self, wait: bool) -> None:
        """Read the marks of the steps that the device has finished, or of all steps."""
        done = 0
        for start, ready, end in self._pending:
            if isinstance(start, float):
                wait_for_data, step = ready - start, end - start
            else:
                if wait:
                    end.synchronize()
                elif not end.query():
                    break
                wait_for_data, step = start.elapsed_time(ready) / 1e3, start.elapsed_time(end) / 1e3
            self.wait_seconds += wait_for_data
            self.step_seconds.append(step)
            done += 1
        del self._pending[:done]

    def _interrupt(self) -> None:
        self._mark = None

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._interrupt()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._interrupt()
        self._eval_start = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.last_score is not None:
            self.eval_images += pl_module.last_score.n
            self.eval_seconds += time.perf_counter() - self._eval_start

    def images_per_second(self, last: int | None = None) -> float | None:
        """Training images per second over all processes, over all timed steps, or the last of those that are over."""
        self._resolve(wait=last is None)
        steps = self.step_seconds[-last:] if last else self.step_seconds
        return self.global_batch * len(steps) / sum(steps) if steps else None

    def extend_row(self, trainer: Any, row: dict[str, float]) -> None:
        rate = self.images_per_second(last=trainer.log_every_n_steps)
        if "train_loss" in row and rate is not None:
            row["images_per_second"] = rate

    def _flops_per_image(self, pl_module: Any, image_shape: tuple[int, int, int]) -> float:
        """Mean over the timed steps, which need not all have seen equally many patches."""
        rates = self.patch_dropouts or Counter([pl_module.patches_left_out])
        total = sum(steps * pl_module.count_flops(image_shape, rate) for rate, steps in rates.items())
        return total / rates.total()

    def summary(
        self, pl_module: Any, image_shape: tuple[int, int, int], compute_dtype: torch.dtype
    ) -> dict[str, Any]:
        """The ``speed`` part of the record; what could not be measured is None."""
        rate = self.images_per_second()
        steps = sorted(self.step_seconds)
        quantiles = statistics.quantiles(steps, n=20, method="inclusive") if len(steps) >= 2 else None
        median = statistics.median(steps) if steps else None
        device = pl_module.trainer.strategy.root_device  # the module itself is on the CPU after training
        flops = self._flops_per_image(pl_module, image_shape)
        exclusive = self._exclusivity.check() if self._exclusivity else None
        peak = device_peak(device, compute_dtype)
        world = pl_module.trainer.world_size
        cuda = device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(device) if cuda else peak_memory()
        return {
            "train_images_per_second": rate,
            "eval_images_per_second": self.eval_images / self.eval_seconds if self.eval_seconds else None,
            "evaluation_seconds": self.eval_seconds,  # of the validations on the way
            "step_ms": {
                "p50": median * 1e3 if median is not None else None,
                "p95": quantiles[18] * 1e3 if quantiles else None,
            },
            "timed_steps": len(steps),
            "peak_memory_bytes": memory,
            "flops_per_image": flops,
            "peak_flops_measured": peak,
            "mfu": flops * rate / (peak * world) if rate else None,
            "launch_bound_fraction": self.overtaken / len(steps) if cuda and steps else None,
            "data_wait_fraction": self.wait_seconds / sum(steps) if steps else None,
            "compile_seconds": self.compile_seconds if pl_module.compile_network else None,
            "compiled_graphs": self.graphs - self._graphs_before if pl_module.compile_network else None,
            "compiled_graph_breaks": sum(self.breaks().values()) if pl_module.compile_network else None,
            "exclusive": exclusive,
        }
