"""How fast a run was: end to end, warm-up and evaluation excluded, and whether the figure may be compared."""

import statistics
import time
import warnings
from collections import Counter
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from vit_gelu.training.clock import mark
from vit_gelu.training.compilation import compiled_graphs, graph_breaks
from vit_gelu.training.exclusivity import Exclusivity, processes_here, verdict_of_all
from vit_gelu.training.memory import peak_memory, restart_peak_memory
from vit_gelu.training.peak import device_peak

WARMUP_STEPS = 10


class SpeedMeter(Callback):
    """Times every training step from the end of one to the end of the next, data included.

    What passes on the device until the batch is there, made or waited for, is the wait for data.

    On a GPU of CUDA the marks are events on its stream, read once it has passed them. The first
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

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._device, self._processes = pl_module.device, trainer.world_size
        self._exclusivity = Exclusivity(self._device, self.shared, processes_here())
        self.graphs = self._graphs_before = compiled_graphs()
        self._breaks_before = graph_breaks()
        restart_peak_memory(self._device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._host_start = time.perf_counter()
        self._ready = mark(self._device) if self._mark is not None else None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, host = mark(self._device), time.perf_counter()
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

    def exclusive(self) -> bool | None:
        """Whether nobody else used the devices of the training; all of its processes must ask."""
        return verdict_of_all(self._exclusivity.check() if self._exclusivity else None)

    def summary(
        self,
        pl_module: Any,
        image_shape: tuple[int, int, int],
        compute_dtype: torch.dtype,
        exclusive: bool | None,
    ) -> dict[str, Any]:
        """The ``speed`` part of the record; what could not be measured is None."""
        rate = self.images_per_second()
        steps = sorted(self.step_seconds)
        quantiles = statistics.quantiles(steps, n=20, method="inclusive") if len(steps) >= 2 else None
        median = statistics.median(steps) if steps else None
        device = pl_module.trainer.strategy.root_device  # the module itself is on the CPU after training
        memory = peak_memory(device)  # before the products below, which need more than a small training does
        flops = self._flops_per_image(pl_module, image_shape)
        peak = device_peak(device, compute_dtype)
        world = pl_module.trainer.world_size
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
            "launch_bound_fraction": self.overtaken / len(steps) if device.type == "cuda" and steps else None,
            "data_wait_fraction": self.wait_seconds / sum(steps) if steps else None,
            "compile_seconds": self.compile_seconds if pl_module.compile_network else None,
            "compiled_graphs": self.graphs - self._graphs_before if pl_module.compile_network else None,
            "compiled_graph_breaks": sum(self.breaks().values()) if pl_module.compile_network else None,
            "exclusive": exclusive,
        }
