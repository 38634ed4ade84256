"""Learning curves of an arm: rows of ``metrics.csv``, averaged over its seeds."""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from vit_gelu.ablation.records import CURVES, Run
from vit_gelu.ablation.statistics import t_interval


class Curve(NamedTuple):
    """A mean over runs at each point where all of them logged.

    Attributes:
        epochs: passes over the training images.
        mean, low, high: the mean over the runs and its 95 % interval; ``low`` and ``high`` are empty for one run.
        n: runs.
    """

    epochs: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int


def read_curve(run: Run, column: str) -> dict[int, float]:
    """Step -> value of a column of the run's ``metrics.csv``; empty where there is none."""
    try:
        with (run.folder / CURVES).open(newline="", encoding="utf-8") as file:
            rows = [(row.get("step"), row.get(column)) for row in csv.DictReader(file)]
        points = {int(step): float(value) for step, value in rows if step and value}
    except (OSError, ValueError, csv.Error):
        return {}
    return {step: value for step, value in points.items() if math.isfinite(value)}


def mean_curve(runs: Sequence[Run], column: str, scale: float = 1.0) -> Curve | None:
    """The mean of the runs that have the column, at the steps that all of those share; None without any.

    Args:
        runs: of one arm, with equally many steps and epochs.
        column: of ``metrics.csv``.
        scale: factor on the values.
    """
    curves = [c for run in runs if (c := read_curve(run, column))]
    if not curves:
        return None
    values: dict[int, list[float]] = defaultdict(list)
    for curve in curves:
        for step, value in curve.items():
            values[step].append(scale * value)
    steps = sorted(step for step, found in values.items() if len(found) == len(curves))
    if not steps:
        return None
    per_step = runs[0].record["epochs"] / max(runs[0].record["steps"], 1)
    intervals = [t_interval(values[s]) for s in steps] if len(curves) > 1 else []
    return Curve(
        [s * per_step for s in steps],
        [sum(values[s]) / len(values[s]) for s in steps],
        [i.low for i in intervals],
        [i.high for i in intervals],
        len(curves),
    )
