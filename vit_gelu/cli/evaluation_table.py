"""What ``vit-gelu evaluate`` shows: every class on one screen, worst first."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# More classes than this stand side by side.
MOST_ROWS = 25
PAIRS_SHOWN = 10


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _worst_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda r: (r["accuracy"] is None, r["accuracy"] or 0.0, r["label"]))


def print_classes(console: Console, rows: list[dict[str, Any]]) -> None:
    """Print the accuracy of every class, worst first, and what is most often mistaken for what.

    Args:
        console: where to.
        rows: see ``evaluation_files.class_rows``.
    """
    if len(rows) <= MOST_ROWS:
        console.print(_long_table(_worst_first(rows)))
        return
    console.print(_side_by_side(_worst_first(rows), console.width))
    pairs = sorted((r for r in rows if r["taken_for_n"]), key=lambda r: -r["taken_for_n"] / r["n"])
    if pairs:
        console.print("\nmost often mistaken:")
    for row in pairs[:PAIRS_SHOWN]:
        text = f"  {row['class']} for {row['taken_for']}: {row['taken_for_n']} of {row['n']}"
        console.print(escape(text), highlight=False)


def _long_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("class", box=None, pad_edge=False)
    for title in ("accuracy %", "correct", "n"):
        table.add_column(title, justify="right")
    table.add_column("most often taken for")
    for row in rows:
        taken = f"{row['taken_for']} ({row['taken_for_n']})" if row["taken_for_n"] else ""
        table.add_row(
            escape(row["class"]),
            _percent(row["accuracy"]),
            str(row["correct"]),
            str(row["n"]),
            escape(taken),
        )
    return table


def _side_by_side(rows: list[dict[str, Any]], width: int) -> Table:
    longest = min(max(len(row["class"]) for row in rows), 24)
    columns = max(1, width // (longest + 9))
    height = -(-len(rows) // columns)
    table = Table(box=None, pad_edge=False)
    for _ in range(columns):
        table.add_column("class", max_width=longest, no_wrap=True, overflow="ellipsis")
        table.add_column("%", justify="right", width=5)
    for i in range(height):
        cells: list[str] = []
        for row in rows[i::height]:
            cells += [escape(row["class"]), _percent(row["accuracy"])]
        table.add_row(*cells)
    return table
