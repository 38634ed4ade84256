"""Several networks side by side: what their activations do, per activation over the runs."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

# Columns: key of a row of ``activations``, heading, factor and digits; as many as 80 characters have room for.
COLUMNS = (
    ("mean", "mean", 1, 2),
    ("sd", "sd", 1, 2),
    ("negative", "below 0", 100, 1),
    ("flat", "flat", 100, 1),
    ("curved", "curved", 100, 1),
    ("flat_units", "dead units", 100, 1),
)


class Summary(NamedTuple):
    """One activation over its runs.

    Attributes:
        activation: its name.
        runs: how many.
        values: per column, one number a run: the mean over its blocks. A run in which a number is not known is left
            out of that column.
    """

    activation: str
    runs: int
    values: dict[str, tuple[float, ...]]


def summaries(records: Sequence[dict[str, Any]]) -> list[Summary]:
    """One per activation, in the order in which they come.

    Args:
        records: contents of ``analysis.json``.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(str(record["activation"]), []).append(record)
    return [
        Summary(
            activation,
            len(group),
            {
                key: tuple(
                    statistics.fmean(row[key] for row in record["activations"])
                    for record in group
                    if all(row[key] is not None for row in record["activations"])
                )
                for key, *_ in COLUMNS
            },
        )
        for activation, group in groups.items()
    ]


def print_together(console: Console, records: Sequence[dict[str, Any]]) -> None:
    """Print a row for each activation: mean over blocks, and mean ± sd over runs.

    Args:
        console: where to.
        records: contents of ``analysis.json``.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("activation", no_wrap=True)
    table.add_column("runs", justify="right", no_wrap=True)
    for _, heading, _, _ in COLUMNS:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for summary in summaries(records):
        cells = (_cell(summary.values[key], factor, digits) for key, _, factor, digits in COLUMNS)
        table.add_row(summary.activation, str(summary.runs), *cells)
    console.print(f"all {len(records)} runs, means over the blocks; ± sd over the runs", highlight=False)
    console.print(table)


def _cell(values: Sequence[float], factor: int, digits: int) -> str:
    if not values:
        return "–"
    mean = f"{factor * statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean}±{factor * statistics.stdev(values):.{digits}f}"
