"""Runs on this machine: a worker per slot, which takes one run after another."""

import contextlib
import queue
import threading
from collections import deque
from typing import Any

from vit_gelu.ablation.display import Display
from vit_gelu.ablation.one_run import STOPPED, Ended
from vit_gelu.ablation.plan import Run
from vit_gelu.ablation.slots import Slot
from vit_gelu.ablation.worker_process import WorkerDied, WorkerProcess
from vit_gelu.ablation.workspace import FAILED, OPEN, State, Workspace

# A worker that dies takes nothing with it but its run, which gets a second chance in a new one.
ATTEMPTS = 2


def settle(workspace: Workspace, run: Run, ended: Ended) -> State:
    """The state of a run that has ended, by what lies on disk; a failure is noted."""
    state = workspace.state(run)
    if state.final:
        workspace.forget_failure(run)
        return state
    if ended.status > STOPPED:
        return State(OPEN, ended.reason)
    workspace.note_failure(run, ended.reason or "ended without a record")
    return workspace.state(run)


class LocalExecutor:
    """Carries out runs on the devices of this machine.

    Args:
        workspace: the ablation's folder.
        slots: where runs can take place.
        devices_per_run: with more than one, each run is a process of its own.
    """

    def __init__(self, workspace: Workspace, slots: list[Slot], devices_per_run: int = 1) -> None:
        self.workspace, self.slots = workspace, slots
        self.mode = "session" if devices_per_run == 1 else "process"
        self.workers: dict[int, WorkerProcess] = {}
        self.stop_asked = False
        self.broken = ""
        self._lock = threading.Lock()

    @property
    def places(self) -> int:
        """How many runs take place at a time."""
        return len(self.slots)

    def run(self, runs: list[Run], display: Display) -> None:
        """Carry out runs; returns when all have ended, or have been stopped.

        What each came to lies in the workspace; a failure never ends the others.
        """
        todo = deque(runs)
        events: queue.Queue[tuple[str, Any]] = queue.Queue()
        threads = [
            threading.Thread(target=self._serve, args=(place, todo, events), daemon=True)
            for place in range(min(len(self.slots), len(runs)))
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or not events.empty():
            try:
                name, arguments = events.get(timeout=0.2)
            except queue.Empty:
                display.tick()
                continue
            if name == "error":
                raise arguments
            getattr(display, name)(*arguments)

    def _serve(self, place: int, todo: "deque[Run]", events: "queue.Queue[tuple[str, Any]]") -> None:
        try:
            while not self.stop_asked and not self.broken:
                try:
                    run = todo.popleft()
                except IndexError:
                    return
                self._one(place, run, events)
        except Exception as error:
            events.put(("error", error))

    def _one(self, place: int, run: Run, events: "queue.Queue[tuple[str, Any]]") -> None:
        events.put(("started", (run, self.slots[place].name)))
        self.workspace.forget_failure(run)
        for attempt in range(ATTEMPTS):
            worker = self._worker(place)
            if worker is None:
                events.put(("stopped", (run,)))
                return
            try:
                ended = worker.run(self.workspace.request(run))
                if not ended.reusable or ended.status > STOPPED:
                    self._forget(place)
                break
            except WorkerDied as error:
                self._forget(place)
                ended = Ended(1, str(error))
                if self.stop_asked or self.workspace.state(run).final:
                    break
                if attempt + 1 < ATTEMPTS:
                    events.put(("retried", (run, str(error))))
                elif not error.ready:
                    self.broken = f"a worker does not start: {error}; see {self.workspace.folder}/logs"
        if self.stop_asked and not self.workspace.state(run).final:
            events.put(("stopped", (run,)))
            return
        state = settle(self.workspace, run, ended)
        if (
            state.status == OPEN
        ):  # stopped by somebody else's signal: no result, and nothing wrong with the run
            self.workspace.note_failure(run, ended.reason or "stopped by a signal")
            state = State(FAILED, ended.reason or "stopped by a signal")
        events.put(("ended_with", (run, state)))

    def _worker(self, place: int) -> WorkerProcess | None:
        with self._lock:
            if self.stop_asked:
                return None
            if place not in self.workers:
                log = self.workspace.folder / "logs" / f"worker-{place}.log"
                self.workers[place] = WorkerProcess(self.mode, self.slots[place].environment, log)
                if self.stop_asked:  # in between, by a signal that did not see it
                    self.workers[place].interrupt()
            return self.workers[place]

    def _forget(self, place: int) -> None:
        with self._lock:
            worker = self.workers.pop(place)
        worker.stop()

    def interrupt(self) -> None:
        """Let every run save and end; a second call ends them at once."""
        # Called by a signal handler: takes no lock that the interrupted code may hold.
        again, self.stop_asked = self.stop_asked, True
        for worker in list(self.workers.values()):
            worker.kill() if again else worker.interrupt()

    def close(self) -> None:
        """End the workers."""
        for worker in list(self.workers.values()):
            with contextlib.suppress(OSError):
                worker.stop()
        self.workers.clear()
