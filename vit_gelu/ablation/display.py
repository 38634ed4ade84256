"""What a person sees of a running ablation: a live table on a terminal, one line per event anywhere else."""

import statistics
import time
from collections import Counter
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vit_gelu.ablation.plan import Run
from vit_gelu.ablation.workspace import DIVERGED, FAILED, FINISHED, State
from vit_gelu.duration import clock


def result(run: Run, state: State) -> str:
    """How a run ended, in a few words; of a tuning run by validation, since nobody is to choose by the test set."""
    if state.record is None or state.status != FINISHED:
        return state.reason or state.status
    split = "val" if run.kind == "tuning" else "test"
    score = state.record[split]
    shown = f"{split} top-1 {100 * score['top1']:.2f} %" if score is not None else f"no {split} images"
    return f"{shown}, {clock(state.record['seconds'])} of training"


class Display:
    """Shows events of runs as they come, and how long the rest will take.

    Args:
        console: where to.
        title: what these runs are for.
        runs: all of them.
        done: the states of those that need no run any more.
        places: how many can run at a time.
    """

    def __init__(
        self, console: Console, title: str, runs: list[Run], done: dict[str, State], places: int
    ) -> None:
        self.console, self.title, self.total, self.places = console, title, len(runs), places
        self.counts = Counter(state.status for state in done.values())
        self.running: dict[str, tuple[float, str]] = {}
        self.seconds: list[float] = []
        self.last: list[str] = []
        self.live: Live | None = None

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live = Live(self._table(), console=self.console, refresh_per_second=4)
            self.live.start()
        else:
            self._line(f"{self.title}: {self.total} runs, {self.ended} of them done already")
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.update(self._table())
            self.live.stop()

    @property
    def ended(self) -> int:
        return sum(self.counts.values())

    @property
    def seconds_left(self) -> float | None:
        """From the median of the runs that finished under our eyes; None before the first."""
        if not self.seconds:
            return None
        # The first run of a worker pays for its start: a mean would remember that for long.
        each = statistics.median(self.seconds)
        now = time.monotonic()
        begun = sum(min(each, now - began) for began, _ in self.running.values())
        return max(0.0, each * (self.total - self.ended) - begun) / self.places

    def started(self, run: Run, where: str) -> None:
        self.running[run.id] = time.monotonic(), where
        if self.places > 1 or self.console.is_terminal:
            self._line(f"{run.id}: started on {where}")

    def retried(self, run: Run, reason: str) -> None:
        self._line(f"{run.id}: {reason}; once more", keep=True)

    def ended_with(self, run: Run, state: State) -> None:
        began, _ = self.running.pop(run.id, (time.monotonic(), ""))
        self.counts[state.status] += 1
        if state.status == FINISHED:
            self.seconds.append(time.monotonic() - began)
        left = self.seconds_left
        rest = f", {clock(left)} left" if left is not None and self.ended < self.total else ""
        text = f"{state.status}: {result(run, state)}" if state.status != DIVERGED else result(run, state)
        self._line(f"[{self.ended}/{self.total}] {run.id}: {text}{rest}", keep=True)

    def stopped(self, run: Run) -> None:
        self.running.pop(run.id, None)
        self._line(f"{run.id}: stopped; what was trained is saved")

    def stopping(self) -> None:
        self._line("stopping: runs are being saved (once more to end at once)", keep=True)

    def tick(self) -> None:
        """Redraw."""
        if self.live is not None:
            self.live.update(self._table())

    def _line(self, text: str, keep: bool = False) -> None:
        if self.live is None:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif keep:
            self.last = [*self.last, text][-6:]
            self.tick()

    def _table(self) -> Any:
        left = self.seconds_left
        counts = [("finished", FINISHED), ("failed", FAILED), ("diverged", DIVERGED)]
        parts = [
            f"{self.counts[status]} {name}"
            for name, status in counts
            if self.counts[status] or name == FINISHED
        ]
        head = f"{self.title}: {', '.join(parts)} of {self.total}"
        head += "" if left is None else f", {clock(left)} left"
        table = Table(box=None, pad_edge=False)
        for column in ("running", "on", "for"):
            table.add_column(column)
        now = time.monotonic()
        for name, (began, where) in self.running.items():
            table.add_row(Text(name), Text(where), clock(now - began))
        return Group(Text(head, style="bold"), table, *(Text(line) for line in self.last))


def print_summary(console: Console, rows: list[tuple[str, State]], folder: str) -> None:
    """What has come of all runs, with the reason of each that did not finish.

    Args:
        console: where to.
        rows: name and state of every run.
        folder: of the ablation.
    """
    counts = Counter(state.status for _, state in rows)
    words = [f"{counts[status]} {status}" for status in (FINISHED, FAILED, DIVERGED) if counts[status]]
    open_ = len(rows) - sum(counts[status] for status in (FINISHED, FAILED, DIVERGED))
    words += [f"{open_} not run"] if open_ else []
    console.print(f"\n{len(rows)} runs: {', '.join(words)}", highlight=False)
    bad = [(name, state) for name, state in rows if state.status != FINISHED and state.reason]
    for name, state in bad:
        reason = state.reason if state.status == DIVERGED else f"{state.status}: {state.reason}"
        console.print(f"  {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if bad:
        console.print(f"logs: {folder}/logs/ID.log", markup=False, highlight=False, soft_wrap=True)
