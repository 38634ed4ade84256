"""Memory that was not enough, as whoever allocates says it. Loads no torch."""

import re

# As CUDA's and Apple's allocators say it, the CPU's on Linux and on Windows, and libraries that allocate by themselves.
SAID = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "STATUS_ALLOC_FAILED",
)


def missing_memory(error: BaseException) -> str | None:
    """What an error says about memory; None where it is about something else.

    >>> missing_memory(RuntimeError("CUDA out of memory. Tried to allocate 3.00 GiB."))
    'out of memory, asking for 3.00 GiB more'
    """
    text = str(error)
    ours = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in SAID)
    )
    if not ours:
        return None
    found = re.search(r"(?:[Tt]ried to|Unable to) allocate ([\d.]+) ([A-Za-z]+)", text)
    whole = re.search(r"(?:total capacity of|max allowed:) ([\d.]+ [KMGT]i?B)", text)
    asked = f", asking for {_readable(found[1], found[2])} more" if found is not None else ""
    return "out of memory" + asked + (f" of a device of {whole[1]}" if asked and whole is not None else "")


def _readable(number: str, unit: str) -> str:
    if unit != "bytes":
        return f"{number} {unit}"
    size, units = float(number), ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1024 and units:
        size, unit = size / 1024, units.pop(0)
    return f"{size:.2f} {unit}"
