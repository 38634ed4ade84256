"""The tables of a report as text, for every format alike."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vit_gelu.ablation.comparison import Analysis, Comparison, Verdict
from vit_gelu.ablation.costs import Cost, Costs
from vit_gelu.ablation.naming import chance, display, interval, number, probability
from vit_gelu.ablation.records import look_up
from vit_gelu.ablation.statistics import Interval
from vit_gelu.whole_file import whole_file


class Table(NamedTuple):
    """A table of finished text.

    Attributes:
        title: above it.
        header: one per column.
        rows: of cells.
        text_columns: columns that are words and not numbers.
        note: below it.
    """

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text_columns: tuple[int, ...] = (0,)
    note: str = ""


def results_table(analysis: Analysis) -> Table:
    """Every arm by itself and against the baseline."""
    metric, digits = analysis.metric, analysis.metric.digits
    against = {c.arm: c for c in analysis.against_baseline}
    rows = []
    for s in analysis.summaries:
        c = against.get(s.arm)
        mean = number(s.mean, digits) + ("" if s.sd is None else f" ± {number(s.sd, digits)}")
        rows.append(
            (
                display(s.arm),
                "baseline" if s.arm == analysis.baseline else number(c.mean, digits, True) if c else "–",
                interval(c.interval, digits, True) if c else "–",
                c.verdict.value if c and c.verdict is not Verdict.NONE else "–",
                mean,
                interval(s.interval, digits),
                str(s.n),
                str(c.n) if c else "–",
            )
        )
    header = ("activation", f"difference to {display(analysis.baseline)}", "95 % interval", "verdict")
    return Table(
        "Results",
        (*header, f"{metric.axis}, mean ± sd", "95 % interval", "runs", "pairs"),
        rows,
        (0, 3),
        f"Differences in {metric.unit}, over pairs of runs with one seed. Intervals are Student's, each for itself.",
    )


def comparison_table(analysis: Analysis, comparisons: Sequence[Comparison], title: str) -> Table:
    """The statistics behind the verdicts of one family."""
    digits = analysis.metric.digits
    named = all(c.other == analysis.baseline for c in comparisons)  # by the title
    rows = [
        (
            display(c.arm),
            *(() if named else (display(c.other),)),
            f"{number(c.mean, digits, True)} {interval(c.interval, digits, True)}",
            c.verdict.value,
            str(c.n),
            number(c.sd, digits),
            probability(c.sign_flip.p),
            probability(c.p_holm),
            probability(c.equivalence_holm),
            chance(c.superiority),
            number(c.detectable, digits),
            number(c.correlation, 2),
            "–" if c.more_seeds is None else f"{c.more_seeds:,}",
        )
        for c in comparisons
    ]
    monte_carlo = [c for c in comparisons if not c.sign_flip.exact]
    test = (
        f"p: two-sided sign-flip test, {monte_carlo[0].sign_flip.assignments:,} random sign assignments with a fixed "
        "seed where all would be too many"
        if monte_carlo
        else "p: two-sided sign-flip test over all sign assignments"
    )
    return Table(
        title,
        (
            "activation",
            *(() if named else ("against",)),
            "difference [95 %]",
            "verdict",
            "pairs",
            "sd",
            "p",
            "p, Holm",
            "p equivalent, Holm",
            "P(next pair better)",
            "detectable",
            "r of pairs",
            "more seeds",
        ),
        rows,
        (0, 2) if named else (0, 1, 3),
        f"{test}; Holm: adjusted over the {len(rows)} comparison(s) of this table. Equivalent: "
        f"two one-sided t tests that the difference is below {analysis.margin:g} either way. Detectable: the smallest "
        "true difference that a paired t test at 0.05 finds with 80 % power. More seeds: pairs that would decide "
        f"between a difference of {analysis.margin:g} {analysis.metric.unit} and none, with 80 % power.",
    )


def cost_table(analysis: Analysis, costs: Costs) -> Table:
    """Speed and memory, with paired ratios."""
    rows = []
    for s in analysis.summaries:
        speed, memory = costs.speed.get(s.arm), costs.memory.get(s.arm)
        if speed or memory:
            rows.append((display(s.arm), *_cost_cells(speed, 1.0), *_cost_cells(memory, 2.0**20)))
    name = display(analysis.baseline)
    return Table(
        "Speed and memory",
        ("activation", "images/s", f"to {name}", "runs", "peak memory, MiB", f"to {name}", "runs"),
        rows,
        (0,),
        "Runs that had their device to themselves; geometric mean of paired ratios, 95 % intervals. "
        f"{costs.conditions}.",
    )


def _cost_cells(cost: Cost | None, unit: float) -> tuple[str, str, str]:
    if cost is None:
        return "–", "–", "–"
    change = "–"
    if cost.change is not None:
        change = f"{number(100 * cost.change, 1, True)} %"
        if cost.change_interval is not None:
            change += f" {interval(Interval(*(100 * x for x in cost.change_interval)), 1, True)}"
    return f"{cost.mean / unit:,.0f}", change, str(len(cost.values))


def runs_table(analysis: Analysis) -> Table:
    """Every run behind the numbers."""
    metric = analysis.metric
    rows = [
        (
            display(run.arm),
            str(run.seed),
            number(metric.of(run), metric.digits),
            str(run.folder),
            run.order_hash[:12],
            str(run.record["config_hash"]),
            str(run.env.get("device")),
            str(run.env.get("precision")),
            "compiled" if run.env.get("compiled") else "eager",
            str(run.env.get("torch")),
            str(run.env.get("vit_gelu")),
            str(run.env.get("git") or "–"),
            {True: "yes", False: "no"}.get(look_up(run.record, "speed.exclusive"), "unknown"),
        )
        for run in analysis.experiment.runs
    ]
    header = ("activation", "seed", metric.axis, "folder", "order hash", "config hash", "device", "precision")
    return Table(
        f"The {len(rows)} runs",
        (*header, "code", "torch", "vit_gelu", "git", "device to itself"),
        rows,
        (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
        "Pairs have equal order hashes: the same images in the same order.",
    )


def left_out_table(analysis: Analysis) -> Table:
    """Every run that counts nowhere, and why."""
    rows = [(str(x.folder), x.reason) for x in analysis.experiment.left_out]
    return Table(f"Left out: {len(rows)}", ("folder", "reason"), rows, (0, 1))


CSV_COLUMNS = ("folder", "used", "reason", "arm", "activation", "activation_kwargs", "seed", "status")
CSV_FIELDS = (
    *(f"test.{x}" for x in ("top1", "top5", "loss", "n", "correct")),
    *(f"val.{x}" for x in ("top1", "loss", "n", "correct")),
    "tested", "epochs", "steps", "global_batch_size", "model.name", "model.parameters",
    *(f"dataset.{x}" for x in ("name", "train_n", "val_n", "test_n", "fingerprint")),
    *(f"speed.{x}" for x in ("train_images_per_second", "peak_memory_bytes", "exclusive")),
    "order_hash", "config_hash",
    *(f"env.{x}" for x in ("device", "device_type", "n_devices", "precision", "compiled", "torch", "vit_gelu", "git")),
    "started", "seconds",
)  # fmt: skip


def write_results(path: Path, analysis: Analysis) -> None:
    """``results.csv``: one row per run, those left out included; shares as fractions, as in the records."""
    rows: list[list[Any]] = []
    for run in analysis.experiment.runs:
        rows.append(_csv_row(run.folder, "yes", "", run.arm, run.record))
    for x in analysis.experiment.left_out:
        rows.append(_csv_row(x.folder, "no", x.reason, "", x.record))
    with whole_file(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*CSV_COLUMNS, *(name.replace(".", "_") for name in CSV_FIELDS)])
        writer.writerows(rows)


def _csv_row(folder: Path, used: str, reason: str, arm: str, record: dict[str, Any]) -> list[Any]:
    options = json.dumps(record.get("activation_kwargs") or {}, sort_keys=True)
    own = [record.get("activation"), options, record.get("seed"), record.get("status")]
    return [str(folder), used, reason, arm, *own, *(look_up(record, name) for name in CSV_FIELDS)]
