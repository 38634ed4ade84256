"""A process that carries out runs one after another: ``python -m vit_gelu.ablation.worker session|process``.

It is told what to do by JSON lines on standard input and answers with JSON lines on standard output; what a run
prints goes to the run's log. ``session`` trains in this process, ``process`` (several devices a run) starts
``vit-gelu train`` for each run. When standard input ends, the ablation is gone: the run saves, and the worker leaves.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from vit_gelu.ablation.one_run import STOPPED, Child, Ended, carry_out


def main(mode: str) -> None:
    """Serve until told to stop, or until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    # What a run or a library prints must reach neither the protocol nor the terminal.
    os.dup2(2, 1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)

    todo: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests, todo), daemon=True).start()
    train = _session() if mode == "session" else _process
    _say(answers, {"event": "ready"})
    while "run" in (message := todo.get()):
        request = message["run"]
        with _Output(Path(request["log"]), redirect=mode == "session"):
            ended = carry_out(request, lambda arguments, r=request: train(r, arguments))  # type: ignore[misc]
        _say(answers, {"event": "ended", "id": request["id"], **ended.as_plain()})
        if not ended.reusable or ended.status > STOPPED:
            break
    # Not through the interpreter's own end: what is on disk is complete, and a broken device can hang it.
    sys.stdout.flush()
    os._exit(0)


def _listen(requests: Any, todo: "queue.Queue[dict[str, Any]]") -> None:
    for line in requests:
        message = json.loads(line)
        todo.put(message)
        if "run" not in message:
            return
    todo.put({"stop": True})  # a run that is past its last step takes no notice of the signal
    os.kill(os.getpid(), signal.SIGTERM)


def _say(answers: Any, message: dict[str, Any]) -> None:
    try:
        answers.write(json.dumps(message) + "\n")
        answers.flush()
    except BrokenPipeError:
        os._exit(0)


def _session() -> Callable[[dict[str, Any], list[str]], Ended]:
    from vit_gelu.cli import share_the_processor

    share_the_processor()
    from vit_gelu.cli.session import Session

    session = Session()

    def train(request: dict[str, Any], arguments: list[str]) -> Ended:
        print(f"$ vit-gelu train {' '.join(arguments)}", flush=True)
        outcome = session.train(arguments)
        return Ended(outcome.status, outcome.reason, outcome.reusable)

    return train


def _process(request: dict[str, Any], arguments: list[str]) -> Ended:
    child = Child(Path(request["log"]), dict(os.environ))

    def forward(number: int, frame: FrameType | None) -> None:
        child.stop()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        return child.train(arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


class _Output:
    """Sends file descriptors 1 and 2, and with them everything that any library prints, to a run's log."""

    def __init__(self, log: Path, redirect: bool) -> None:
        self.log, self.redirect = log, redirect

    def __enter__(self) -> None:
        if self.redirect:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.kept = os.dup(1), os.dup(2)
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for descriptor in (1, 2):
                os.dup2(file, descriptor)
            os.close(file)

    def __exit__(self, *error: object) -> None:
        if self.redirect:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, kept in zip((1, 2), self.kept, strict=True):
                os.dup2(kept, descriptor)
                os.close(kept)


if __name__ == "__main__":
    main(sys.argv[1])
