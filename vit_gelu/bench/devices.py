"""The device's own clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vit_gelu.bench.timing import nothing

# The longest queue of calls on a GPU: it takes about a thousand kernels, then the host waits.
MOST_QUEUED = 32


class EventMark:
    """A point on the timeline of the current CUDA stream; the difference of two is in seconds."""

    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def __sub__(self, earlier: "EventMark") -> float:
        return earlier.event.elapsed_time(self.event) / 1e3


@dataclass(frozen=True)
class DeviceClock:
    """How time is taken on a device: see ``timing.interleave`` for the fields."""

    clock: Callable[[], Any]
    synchronise: Callable[[], object]
    head_start: Callable[[float], object] | None
    most_calls: int


def device_clock(device: torch.device, *, ahead: bool) -> DeviceClock:
    """The clock of a device: ``perf_counter`` on a CPU, events on a GPU, which becomes the current one.

    Args:
        device: cpu or cuda.
        ahead: on a GPU, time the device alone: a short kernel that is launched on its own would show the time
            that the host takes to launch it. Without, the host's time counts where the device waits for it, as
            it does in a training.
    """
    if device.type != "cuda":
        return DeviceClock(time.perf_counter, nothing, None, 10_000)
    torch.cuda.set_device(device)

    def spin(seconds: float) -> None:
        torch.cuda._sleep(int(2e9 * min(seconds, 0.5)))  # cycles; no GPU runs faster than 2 GHz by much

    return DeviceClock(
        EventMark,
        lambda: torch.cuda.synchronize(device),
        spin if ahead else None,
        MOST_QUEUED if ahead else 10_000,
    )
