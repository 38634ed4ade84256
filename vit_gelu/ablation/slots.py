"""Where runs can take place on this machine: a slot is the environment of one worker."""

import os
from dataclasses import dataclass

import torch

from vit_gelu.cli.errors import UsageError


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time.

    Attributes:
        name: for people.
        environment: variables of the worker there.
    """

    name: str
    environment: dict[str, str]


def visible_gpus() -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` may be set to, one by one; empty where torch finds no GPU."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(i) for i in range(count)]


def cores() -> int:
    """Cores that this process may use: ``OMP_NUM_THREADS`` where it is set, else those that the system allows."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_slots(accelerator: str, devices_per_run: int, jobs_per_device: int) -> list[Slot]:
    """The slots of this machine: every visible GPU, else the processor, with Apple's GPU where it has one.

    Args:
        accelerator: ``trainer.accelerator`` of the runs.
        devices_per_run: how many devices a run takes.
        jobs_per_device: how many runs share a device.

    Raises:
        UsageError: more devices are asked for than there are, or several jobs on several devices.
    """
    if jobs_per_device > 1 and devices_per_run > 1:
        raise UsageError(
            f"--jobs-per-device {jobs_per_device}: not with --devices-per-run {devices_per_run}; "
            "runs that are small enough to share a device need no second one"
        )
    gpus = [] if accelerator == "cpu" else visible_gpus()
    shared = {"VIT_GELU_SHARED_DEVICE": "1"} if jobs_per_device > 1 else {}
    slots = []
    if gpus:
        if devices_per_run > len(gpus):
            raise UsageError(f"--devices-per-run {devices_per_run}: there are {len(gpus)} GPUs")
        for first in range(0, len(gpus) - devices_per_run + 1, devices_per_run):
            names = ",".join(gpus[first : first + devices_per_run])
            slots.append(Slot(f"GPU {names}", {"CUDA_VISIBLE_DEVICES": names} | shared))
    else:
        threads = max(1, cores() // jobs_per_device)
        divided = {"OMP_NUM_THREADS": str(threads)} if jobs_per_device > 1 else {}
        apple = accelerator != "cpu" and torch.backends.mps.is_available()
        slots.append(Slot("MPS" if apple else "CPU", divided | shared))
    return [slot for _ in range(jobs_per_device) for slot in slots]
