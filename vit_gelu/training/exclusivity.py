"""Whether a device was used by others while it was timed."""

import os
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from typing import Any

import psutil
import torch
import torch.distributed as dist


class Exclusivity:
    """Whether anything else used the device between construction and ``check``.

    CPU: the machine's busy time against that of our processes and of all that they started, such as workers that
    decode images. NVIDIA's GPUs: processes that the driver lists besides ours. ``None`` where nobody tells, as on other
    devices.

    Args:
        device: the training device.
        shared: True when the caller knows that it shares the device (several runs at a time).
        company: ids of this machine's processes that are ours, too: those of the same distributed run.
    """

    def __init__(self, device: torch.device, shared: bool = False, company: Collection[int] = ()) -> None:
        self.device, self.shared, self.ours = device, shared, {os.getpid(), *company}
        self.busy, self.start = self._busy(), time.monotonic()
        self.own = None if self.busy is None else seconds_of_trees(self.ours)

    @staticmethod
    def _busy() -> float | None:
        try:
            times = psutil.cpu_times()
        except (psutil.Error, OSError):  # a sandbox may hide it
            return None
        working = ("user", "nice", "system", "irq", "softirq", "steal")  # guests are counted as users already
        return sum(getattr(times, name, 0.0) for name in working)

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
            return None if pids is None else len(pids - self.ours - {os.getppid()}) == 0
        busy = self._busy()
        if self.device.type != "cpu" or self.busy is None or self.own is None or busy is None:
            return None
        others = (busy - self.busy) - (seconds_of_trees(self.ours) - self.own)
        capacity = (time.monotonic() - self.start) * (os.cpu_count() or 1)
        return others < 0.05 * capacity


def seconds_of_trees(roots: Collection[int]) -> float:
    """Processor seconds of processes and of all their descendants.

    On Linux those that have ended and were waited for are included; no other system keeps their time.

    Args:
        roots: process ids; one that is another's descendant is not counted twice, one that is gone not at all.
    """
    trees: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            root = psutil.Process(pid)
            trees |= {p.pid: p for p in (root, *root.children(recursive=True))}
        except (psutil.Error, OSError):  # ended meanwhile, or not ours to ask
            continue
    return sum(_seconds(process) for process in trees.values())


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    waited_for = getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)
    return times.user + times.system + waited_for


def summed_up(verdicts: Sequence[bool | None]) -> bool | None:
    """False if any is False, else None if any is unknown or there is none, else True."""
    if False in verdicts:
        return False
    return True if verdicts and None not in verdicts else None


def processes_here() -> set[int]:
    """Ids of the processes of a distributed run on this machine; all of its processes must ask. Alone: this one's."""
    here = socket.gethostname()
    return {pid for host, pid in _of_all((here, os.getpid())) if host == here}


def verdict_of_all(verdict: bool | None) -> bool | None:
    """One verdict over the processes of a distributed run, which must all ask: shared is what one of them shared."""
    return summed_up(_of_all(verdict))


def _of_all(mine: Any) -> list[Any]:
    """What every process of a distributed run has; alone: what this one has."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
