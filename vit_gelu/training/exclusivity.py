"""Whether a device was used by others while it was timed."""

import os
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


class Exclusivity:
    """Whether anything else used the device between construction and ``check``.

    CPU: the machine's busy time (``/proc/stat``) against that of our processes and of all that they started, such as
    workers that decode images. GPU: processes that the driver lists besides ours. ``None`` where the system does not
    tell.

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
            with open("/proc/stat") as file:
                fields = [int(x) for x in file.readline().split()[1:]]
        except OSError:
            return None
        idle = fields[3] + fields[4]
        return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK")

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
        if self.busy is None or self.own is None or busy is None:
            return None
        others = (busy - self.busy) - (seconds_of_trees(self.ours) - self.own)
        capacity = (time.monotonic() - self.start) * (os.cpu_count() or 1)
        return others < 0.05 * capacity


def seconds_of_trees(roots: Collection[int]) -> float:
    """Processor seconds of processes and of all their descendants, those that have ended and were waited for included.

    Args:
        roots: process ids; one that is another's descendant is not counted twice, one that is gone not at all.
    """
    seconds, children = {}, defaultdict(list)
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # the name before it may hold anything
        except OSError:  # ended meanwhile
            continue
        pid, parent = int(file.parent.name), int(fields[1])
        seconds[pid] = sum(int(x) for x in fields[11:15]) / os.sysconf("SC_CLK_TCK")
        children[parent].append(pid)
    seen: set[int] = set()
    ahead = list(roots)
    while ahead:
        pid = ahead.pop()
        if pid not in seen:
            seen.add(pid)
            ahead += children[pid]
    return sum(seconds.get(pid, 0.0) for pid in seen)


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
