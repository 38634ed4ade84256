"""How far along: a bar on a terminal, elsewhere a line per tenth of what takes long."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

QUIET_SECONDS = 2.0
UNKNOWN_STEP = {"bytes": 10_000_000, "images": 1000}


@contextmanager
def progress(what: str, total: int | None, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Show progress on standard error while the block runs.

    Args:
        what: e.g. ``downloading x.tar.gz``.
        total: how many there are to do; None when nobody knows.
        unit: ``bytes`` or ``images``.

    Yields:
        A function to call with how many are done so far.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what, total, unit)
        return
    amount: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    )
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn(), console=console
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int | None, unit: str) -> Callable[[int], None]:
    step = max(1, total // 10) if total else UNKNOWN_STEP[unit]
    shown, start = 0, time.monotonic()

    def amount(n: int) -> str:
        return f"{n / 1e6:.1f} MB" if unit == "bytes" else str(n)

    def update(done: int) -> None:
        nonlocal shown
        if done // step > shown and time.monotonic() - start > QUIET_SECONDS:
            shown = done // step
            counted = "" if unit == "bytes" else f" {unit}"
            of = f" of {amount(total)}{counted}, {100 * done // total} %" if total else counted
            print(f"{what}: {amount(done)}{of}", file=sys.stderr, flush=True)

    return update
