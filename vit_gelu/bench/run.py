"""One benchmark from its comparisons to its files."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from vit_gelu.bench.comparison import Comparison
from vit_gelu.bench.options import Options
from vit_gelu.bench.results import RECORD, Results
from vit_gelu.bench.screen import TABLES, console, legend, warnings_of
from vit_gelu.cli.errors import UsageError


def say(line: str) -> None:
    """What is going on: on standard error, so that the tables stay clean."""
    print(line, file=sys.stderr, flush=True)


def run_benchmark(
    kind: str,
    comparisons: Iterable[tuple[Mapping[str, Any], Comparison | None]],
    options: Options,
    asked: Mapping[str, Any],
    folder: Path,
    notes: Iterable[str] = (),
) -> Path:
    """Measure, show and write.

    Args:
        kind: activations or training.
        comparisons: measured as they are asked for; None: left out for lack of time.
        options: what was asked for, checked.
        asked: the same in plain types, for the record.
        folder: for the files; claimed already.
        notes: on what was added to what was asked for.

    Returns:
        The record's path.

    Raises:
        UsageError: the time limit left nothing at all.
    """
    from vit_gelu.bench.plots import save_pictures

    results = Results(folder, kind, asked, options.device)
    results.record["notes"] += list(notes)
    screen = console()
    for labels, comparison in comparisons:
        if comparison is None:
            results.leave_out(labels)
            continue
        results.add(comparison)
        screen.print(TABLES[kind](comparison, options.baseline))
        screen.print()
    if not results.comparisons:
        raise UsageError("--time_limit: over before a single comparison was whole; nothing was written")
    results.finish()
    save_pictures(folder, results.comparisons, results.record, options.baseline)
    for line in legend(kind, results.record):
        screen.print(escape(line), style="dim", soft_wrap=True)
    screen.print(f"files: {folder}", soft_wrap=True)
    for line in warnings_of(results.record):
        say(f"warning: {line}")
    return folder / RECORD
