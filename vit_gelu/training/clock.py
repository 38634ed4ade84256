"""The time at which a device is through with what it was given."""

import time
from typing import Any

import torch


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()


def mark(device: torch.device) -> Any:
    """A mark on the device's clock: seconds, or on an NVIDIA or AMD GPU an event on its stream, which nobody waits for.

    Another accelerator (Apple's MPS) is waited for, which costs the time that the processor could run ahead: a clock
    that is read before the device is through would tell how fast it is fed.
    """
    if device.type == "cuda":
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    wait_for(device)
    return time.perf_counter()
