"""One run of an ablation, under its lock; and a run as a process of its own. Light: loads no torch."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from filelock import FileLock, Timeout

# A worker that lost its ablation saves and leaves; a save takes seconds.
LOCK_SECONDS = 600.0
STOPPED = 128


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: exit status of ``vit-gelu train``; above 128 it was stopped by a signal.
        reason: what went wrong, in a line.
        reusable: whether the process is good for another run.
    """

    status: int
    reason: str = ""
    reusable: bool = True

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def carry_out(request: dict[str, Any], train: Callable[[list[str]], Ended]) -> Ended:
    """Train unless it is done, alone: another process at work on this run is waited for.

    Args:
        request: from ``Workspace.request``.
        train: trains with arguments of ``vit-gelu train``.
    """
    lock = Path(request["lock"])
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=LOCK_SECONDS):
            if (Path(request["folder"]) / "record.json").is_file():
                return Ended(0)
            return train(training_arguments(request))
    except Timeout:
        return Ended(1, f"another process holds {lock} for {LOCK_SECONDS:.0f} s")


def training_arguments(request: dict[str, Any]) -> list[str]:
    """Arguments of ``vit-gelu train``: from the start, or on from where the run was stopped.

    What a process left behind that was killed before its first file is removed; call it under the run's lock.
    """
    folder = Path(request["folder"])
    if (folder / "config.yaml").is_file():
        return ["--resume", str(folder)]
    if folder.exists():
        rmtree(folder)
    return [*request["arguments"], "--out", str(folder)]


class Child:
    """``vit-gelu train`` as a process of its own, which does not outlive this one.

    Args:
        log: file that its output is appended to.
        environment: of the process.
        folder: that it runs in; this process's own by default.
    """

    def __init__(self, log: Path, environment: dict[str, str], folder: str | None = None) -> None:
        self.log, self.environment, self.folder = log, environment, folder
        self.process: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def train(self, arguments: list[str]) -> Ended:
        """Run it to its end."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ vit-gelu train {' '.join(arguments)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vit_gelu", "train", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        if self.stopped:  # asked while the process was being made
            self.process.terminate()
        status = self.process.wait()
        if status < 0:
            return Ended(STOPPED - status, f"killed by {signal.Signals(-status).name}")
        return Ended(status, last_line(self.log) if status else "")

    def wait(self) -> None:
        """Wait for its end, without taking its exit status from ``train``; for signal handlers, too."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """Ask the training to save and end; ``train`` returns when it has."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


def _die_with_parent() -> None:
    # Killed together with a parent that gets no chance to say so: nobody writes into the run's folder unlocked.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def last_line(log: Path) -> str:
    """What went wrong, from the end of a log: its last error message, else its last line."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
        if line.strip()
    ]
    marked = [line.split("error: ", 1)[1] for line in lines if line.startswith("vit-gelu train: error: ")]
    return (marked or lines or [""])[-1][:300]
