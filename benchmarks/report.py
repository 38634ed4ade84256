"""What every benchmark has in common: options whose errors are short, a table, and a result file."""

import argparse
import importlib.metadata as metadata
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import checkout  # noqa: F401

from vit_gelu.cli.arguments import Arguments, at_least, one_of, wants_help
from vit_gelu.cli.errors import UsageError, guarded

PACKAGES = (
    "vit_gelu",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "vit-pytorch",
    "lightning",
    "numpy",
    "pillow",
)


class Options(Arguments):
    """The options of one script.

    Args:
        script: its name without ``.py``.
        common: which of the options that several scripts have it takes.
    """

    def __init__(self, script: str, common: Sequence[str] = ("device", "threads", "out")) -> None:
        super().__init__(script)
        self.prog = f"benchmarks/{script}.py"
        if "out" in common:
            self.add_argument("--out", type=Path)
        if "threads" in common:
            self.add_argument("--threads", type=at_least(1))
        if "device" in common:
            self.add_argument("--device", type=one_of("device", ("auto", "cpu", "cuda")), default="auto")


def run_script(
    script: str,
    help_text: str,
    options: Options,
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, set threads, run; returns the exit status, 2 for a mistake of the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if wants_help(arguments):
        print(help_text.strip())
        return 0

    def whole() -> int:
        parsed = options.parse_args(arguments)
        out = getattr(parsed, "out", None)
        if out is not None and not out.absolute().parent.is_dir():
            raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}")
        parsed.argv = arguments
        if getattr(parsed, "threads", None) is not None:
            import torch

            torch.set_num_threads(parsed.threads)
        from vit_gelu.training.record import code_commit

        code_commit()  # before minutes of measuring, in which a file may be edited
        return run(parsed)

    return guarded(f"benchmarks/{script}.py", whole)


def choose_device(asked: str) -> Any:
    """The ``torch.device`` that ``--device`` means; ``auto`` is the GPU where there is one.

    Raises:
        UsageError: a GPU was asked for and there is none.
    """
    import torch

    from vit_gelu.training.memory import keep_freed_memory

    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA GPU here; use cpu, or auto")
    if asked != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    keep_freed_memory()  # for all that are compared, as ``vit-gelu train`` does
    return torch.device("cpu")


def versions() -> dict[str, str]:
    """Installed versions of what is compared."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(script: str, options: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Machine, versions, command, date: what makes a number one that can be checked."""
    import torch

    from vit_gelu.training.record import code_commit, now, processor_name

    return {
        "benchmark": script,
        "command": shlex.join(["python", f"benchmarks/{script}.py", *options.argv]),
        "date": now(),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "cuda": torch.version.cuda if device.type == "cuda" else None,
        },
        "versions": {**versions(), "torch": torch.__version__},
        "git": code_commit(),
    }


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns line up; the first column is text, the others numbers.

    >>> print(table(["case", "ms"], [["ours", "1.5"], ["theirs", "22"]]))
    | case   |  ms |
    |--------|----:|
    | ours   | 1.5 |
    | theirs |  22 |
    """
    cells = [[str(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])])
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def heading(description: dict[str, Any], exclusive: bool | None) -> str:
    """Two lines above a table: where it was measured, and a warning where it was not measured alone."""
    machine = description["machine"]
    where = f"{machine['device']}, {machine['threads']} threads, torch {description['versions']['torch']}"
    alone = {True: "", False: "\nNOT ALONE: something else used the device; do not publish this", None: ""}
    return f"{where}, {description['date']}{alone[exclusive]}"


def save(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result file, whole or not at all, if one was asked for."""
    if path is not None:
        from vit_gelu.training.record import write_json

        write_json(path, result)
        print(f"written: {path}")
