"""``vit-gelu report``: run folders in, a verdict with its evidence out."""

import argparse
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from vit_gelu.cli.arguments import Arguments, wants_help
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

HELP = """usage: vit-gelu report FOLDER... [OPTIONS]

Compare the activations of finished runs, in pairs of one seed: differences with 95 % intervals,
verdicts from 9 seeds on, speed, memory, figures. FOLDER holds runs at any depth; runs that do not
belong together are left out by name.

options:
  --baseline ARM   what the others are compared with (default: relu)
  --margin X       differences below X do not matter (default: 0.2 points; no default for a loss)
  --metric NAME    test_top1, test_top5, test_loss, val_top1 or val_loss (default: test_top1)
  --out DIR        where the report goes (default: report in the first FOLDER)

result: report.html (one file, opens offline), report.md, table.tex, results.csv, report.json
and figures/ (PNG and SVG). An earlier report is replaced, anything else never.

examples:
  vit-gelu report runs
  vit-gelu report runs/gpu1 runs/gpu2 --baseline gelu --margin 0.1 --out report
  vit-gelu report runs --metric test_loss --margin 0.01
"""
SHOWN = 5


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if wants_help(argv):
        print(HELP, end="")
        return 0
    options = _parser().parse_args(argv)

    from vit_gelu.ablation.comparison import analyse
    from vit_gelu.ablation.costs import measure_costs
    from vit_gelu.ablation.metric import METRICS
    from vit_gelu.ablation.pairing import read_experiment
    from vit_gelu.ablation.report import PAGE, refuse_foreign, write_report

    if options.metric not in METRICS:
        raise UsageError(f"--metric {options.metric}: {unknown('metric', options.metric, METRICS)}")
    metric = METRICS[options.metric]
    margin = options.margin if options.margin is not None else metric.margin
    if margin is None:
        raise UsageError(
            f"--metric {metric.name}: --margin is missing; give it in {metric.unit}, such as --margin 0.01"
        )
    folders = [Path(folder).expanduser() for folder in options.folders]
    out = Path(options.out).expanduser() if options.out else folders[0] / "report"
    experiment = read_experiment(folders)
    analysis = analyse(experiment, metric, options.baseline, margin)
    costs = measure_costs(experiment, options.baseline)
    refuse_foreign(out)
    document = write_report(analysis, costs, out, shlex.join(["vit-gelu", "report", *argv]))
    _print(document, experiment.left_out)
    print(f"\nreport: {out / PAGE}")
    return 0


def _parser() -> Arguments:
    parser = Arguments("report")
    parser.add_argument("folders", metavar="FOLDER", nargs="+")
    parser.add_argument("--baseline", default="relu")
    parser.add_argument("--margin", type=_positive)
    parser.add_argument("--metric", default="test_top1")
    parser.add_argument("--out")
    return parser


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0, such as 0.2")
    return value


def fitting(widths: list[int], columns: int) -> int:
    """How many columns of a table stand in a line of a terminal, two blanks apart; the report has them all.

    >>> fitting([8, 6, 6], 80), fitting([8, 6, 6], 23), fitting([8, 6, 6], 3)
    (3, 2, 1)
    """
    return max(1, sum(sum(widths[: i + 1]) + 2 * i <= columns for i in range(len(widths))))


def _print(document: Any, left_out: list[Any]) -> None:
    print(*document.answer, sep="\n")
    table = document.results
    widths = [max(len(row[i]) for row in (table.header, *table.rows)) for i in range(len(table.header))]
    if sys.stdout.isatty():
        widths = widths[: fitting(widths, shutil.get_terminal_size().columns)]
    print()
    for row in (table.header, *table.rows):
        cells = (
            cell.ljust(width) if i in table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        )
        print("  ".join(cells).rstrip())
    for note in document.notes:
        print(f"note: {note}", file=sys.stderr)
    if left_out:
        print(f"left out: {len(left_out)} run{'s' if len(left_out) > 1 else ''}", file=sys.stderr)
    for x in left_out[:SHOWN]:
        print(f"  {x.folder}: {x.reason}", file=sys.stderr)
    if len(left_out) > SHOWN:
        print(f"  and {len(left_out) - SHOWN} more: results.csv lists them", file=sys.stderr)
