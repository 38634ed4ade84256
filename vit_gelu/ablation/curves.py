"""Learning curves of an arm: rows of ``metrics.csv``, averaged over its seeds."""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
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


def merge_short(curve: dict[int, float]) -> dict[int, float]:
    """A curve of means over the steps since the point before, without those over few.

    The row that ends an epoch is often over a step or two, as noisy as these: it becomes one with the row before,
    weighted by their steps, where it covers less than half of what the longest does.

    >>> merge_short({50: 2.0, 100: 1.5, 102: 1.24, 150: 1.0})
    {50: 2.0, 102: 1.49, 150: 1.0}
    """
    merged: list[tuple[int, int, float]] = []  # first step, last step, mean
    longest = max(after - before for before, after in pairwise([0, *sorted(curve)])) if curve else 0
    for step, value in sorted(curve.items()):
        start = merged[-1][1] if merged else 0
        if merged and 2 * (step - start) < longest:
            start, last, before = merged.pop()
            value = (before * (last - start) + value * (step - last)) / (step - start)
        merged.append((start, step, value))
    return {step: value for _, step, value in merged}


def mean_curve(runs: Sequence[Run], column: str, scale: float = 1.0) -> Curve | None:
    """The mean of the runs that have the column, at the steps that all of those share; None without any.

    Args:
        runs: of one arm, with equally many steps and epochs.
        column: of ``metrics.csv``; one of the training is over the steps since the row before.
        scale: factor on the values.
    """
    curves = [c for run in runs if (c := read_curve(run, column))]
    if column.startswith("train_"):
        curves = [merge_short(curve) for curve in curves]
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
