"""An ablation from plan to report: tuning, runs, summary; stopped and gone on with at any moment."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol

from rich.console import Console

from vit_gelu.ablation.display import Display, print_summary
from vit_gelu.ablation.plan import Arm, Plan, Run
from vit_gelu.ablation.tuning import Choice, choose, chosen_arms
from vit_gelu.ablation.workspace import FAILED, FINISHED, State, Workspace, write_yaml
from vit_gelu.cli.errors import FAILED as FAILED_STATUS
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.occupied import leave, occupy


class Executor(Protocol):
    """Something that carries out runs, wherever."""

    broken: str

    @property
    def places(self) -> int: ...

    def run(self, runs: list[Run], display: Display) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...


class Stopped(Exception):
    """A signal came; the runs have saved."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One ablation per folder at a time.

    Raises:
        UsageError: another process is at work in it.
    """
    lock = occupy(folder, f"--out {folder}: another vit-gelu ablate is at work there")
    try:
        yield
    finally:
        leave(lock)


class Ablation:
    """Carries a plan out.

    Args:
        plan: what to run.
        workspace: where.
        executor: by what means.
        console: where progress is shown.
    """

    def __init__(self, plan: Plan, workspace: Workspace, executor: Executor, console: Console) -> None:
        self.plan, self.workspace, self.executor, self.console = plan, workspace, executor, console
        self.signum = 0
        self.display: Display | None = None

    def run(self) -> list[tuple[str, State]]:
        """Tuning, then all runs.

        Returns:
            Name and state of every run, tuning included.

        Raises:
            Stopped: a signal came.
        """
        with self._signals():
            try:
                rows, arms, missing = self._tune()
                rows += self._carry_out("runs", self.plan.runs(arms))
            finally:
                self.executor.close()
        for choice in missing:
            state = State(FAILED, f"{choice.option} was not chosen: {choice.reason}")
            rows += [(f"{choice.arm} seed {seed}", state) for seed in self.plan.seeds]
        return rows

    def _tune(self) -> tuple[list[tuple[str, State]], tuple[Arm, ...], list[Choice]]:
        tune, runs = self.plan.tune, list(self.plan.tuning_runs())
        if tune is None:
            return [], self.plan.arms, []
        rows = self._carry_out("tuning", runs)
        states = [(run, self.workspace.state(run)) for run in runs]
        choices = [choose(tune, arm, states) for arm in self.plan.arms]
        write_yaml(self.workspace.folder / "tuning.yaml", [choice.as_plain() for choice in choices])
        for choice in choices:
            text = f"{choice.arm}: {tune.option} " + (
                f"{choice.value:g}" if choice.value is not None else f"not chosen: {choice.reason}"
            )
            edge = "; at the edge of the grid: a better value may lie beyond it" if choice.at_edge else ""
            self.console.print(text + edge, markup=False, highlight=False, soft_wrap=True)
        # A value that diverged is an answer, not a failure: it was excluded.
        rows = [row for row in rows if row[1].status == FAILED]
        return rows, chosen_arms(self.plan, choices), [c for c in choices if c.value is None]

    def _carry_out(self, title: str, runs: list[Run]) -> list[tuple[str, State]]:
        states = {run.id: self.workspace.state(run) for run in runs}
        done = {name: state for name, state in states.items() if state.final}
        todo = [run for run in runs if run.id not in done]
        if todo:
            self.workspace.write_configs(todo)
            with Display(
                self.console, title, runs, done, min(self.executor.places, len(todo))
            ) as self.display:
                self.executor.run(todo, self.display)
        if self.signum:
            raise Stopped(self.signum)
        return [(run.id, self.workspace.state(run)) for run in runs]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if not self.signum and self.display is not None:
                self.display.stopping()
            self.signum = self.signum or number
            self.executor.interrupt()

        hang_up = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on Windows
        numbers = (signal.SIGINT, signal.SIGTERM, *hang_up)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def finish(
    plan: Plan, workspace: Workspace, rows: list[tuple[str, State]], console: Console, broken: str
) -> int:
    """Summary and report; the exit status: 0 when every run finished."""
    print_summary(console, rows, str(workspace.folder))
    if broken:
        print(f"vit-gelu ablate: {broken}", file=sys.stderr)
    if any(state.status == FINISHED for _, state in rows):
        _report(plan, workspace)
    return 0 if all(state.status == FINISHED for _, state in rows) else FAILED_STATUS


def _report(plan: Plan, workspace: Workspace) -> None:
    """Write and print the report of the finished runs, or say why there is none."""
    from vit_gelu.cli.report import main

    arguments = ["--baseline", plan.baseline, "--margin", f"{plan.margin:g}"]
    try:
        main([str(workspace.folder / "runs"), *arguments, "--out", str(workspace.folder / "report")])
    except UsageError as error:
        print(f"vit-gelu ablate: no report: {error}", file=sys.stderr)
