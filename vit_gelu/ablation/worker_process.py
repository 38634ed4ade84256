"""A worker as the ablation sees it: started, given runs, stopped, and found dead."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from vit_gelu.ablation.one_run import Ended


class WorkerDied(Exception):
    """The worker's process ended in the middle of something; its text says how.

    Attributes:
        ready: whether it had ever been ready for work.
    """

    def __init__(self, reason: str, ready: bool) -> None:
        super().__init__(reason)
        self.ready = ready


class WorkerProcess:
    """Starts a worker.

    Args:
        mode: ``session`` or ``process``; see ``vit_gelu.ablation.worker``.
        environment: what is added to this process's environment.
        log: file for what the worker says outside of runs.
    """

    def __init__(self, mode: str, environment: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.ready = False
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vit_gelu.ablation.worker", mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                text=True,
                encoding="utf-8",
                # A Ctrl-C of the terminal is for the ablation, which then tells its workers.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, request: dict[str, Any]) -> Ended:
        """Carry out a run; returns when it has ended.

        Raises:
            WorkerDied: the process ended before the run did.
        """
        if not self.ready:
            self._answer()
            self.ready = True
        self._send({"run": request})
        answer = self._answer()
        assert answer["id"] == request["id"]
        return Ended(answer["status"], answer["reason"], answer["reusable"])

    def _send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            raise self._died()
        return dict(json.loads(line))

    def _died(self) -> WorkerDied:
        status = self.process.wait()
        if status < 0:
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return WorkerDied(f"the worker was killed by {signal.Signals(-status).name}{hint}", self.ready)
        return WorkerDied(f"the worker ended with status {status}", self.ready)

    def interrupt(self) -> None:
        """Let the worker save and leave."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def stop(self) -> None:
        """End an idle worker, which may have been interrupted."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps({"stop": True}) + "\n")
            self.process.stdin.flush()
        self.interrupt()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
