"""Whether a device was used by others while it was timed."""

import os
import subprocess
import time

import torch


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
