"""Peak memory of a training on the CPU, also where one process trains several times."""

import resource
from pathlib import Path

# Whether no training of this process has begun yet, and whether the mark is that of the present one alone.
_first = True
_known = True


def restart_peak_memory() -> None:
    """Let the process's peak count from now, as ``torch.cuda.reset_peak_memory_stats`` does on a GPU.

    Linux lowers the mark on request. Where it cannot be lowered, the first training of a process has a peak and
    later ones have none: theirs would be the largest of all trainings so far.
    """
    global _first, _known
    try:
        Path("/proc/self/clear_refs").write_text("5")
        _known = True
    except OSError:
        _known = _first
    _first = False


def peak_memory() -> int | None:
    """Largest resident memory of the process in bytes since ``restart_peak_memory``; None where unknown."""
    if not _known:
        return None
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
