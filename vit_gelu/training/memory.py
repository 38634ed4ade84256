"""Memory of a training: kept between steps on the CPU, and its peak where one process trains several times."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

# Whether no training of this process has begun yet, and whether the mark is that of the present one alone.
_first = True
_known = True


# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the process keep the memory that it frees, for the next step; True if the C library can do so (glibc).

    By default glibc returns every large block to the system at once, which hands it out again, page by page and zeroed,
    in the next step (what that costs: ``benchmarks/kept_memory.py``). The process then stays as large as it was at its
    largest, until ``restart_peak_memory``.
    """
    mallopt = _of_c_library("mallopt")
    return mallopt is not None and mallopt(_M_MMAP_MAX, 0) == 1 == mallopt(_M_TRIM_THRESHOLD, -1)


def _give_back() -> None:
    malloc_trim = _of_c_library("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_c_library(name: str) -> Any:
    """A function of the C library, or None: only glibc has these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def restart_peak_memory(device: torch.device) -> None:
    """Let the peak count from now: on a GPU of CUDA what torch allocates there, on the CPU the process's memory.

    Linux lowers the mark on request. Where it cannot be lowered, the first training of a process has a peak and
    later ones have none: theirs would be the largest of all trainings so far.
    """
    global _first, _known
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if device.type != "cpu":
        return
    _give_back()  # what earlier trainings left is not this one's
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _known = True
    except OSError:
        _known = _first
    _first = False


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use since ``restart_peak_memory``, as it counts them; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not _known:
        return None
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, kibibytes elsewhere
