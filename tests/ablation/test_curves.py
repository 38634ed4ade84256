"""Learning curves: rows of metrics.csv, averaged over seeds."""

import csv

import numpy as np
import pytest

from tests.ablation.helpers import experiment
from vit_gelu.ablation.curves import mean_curve, merge_short
from vit_gelu.ablation.pairing import read_experiment
from vit_gelu.ablation.statistics import t_interval

THREE = {"relu": [9000, 9010, 8990], "gelu": [9050, 9060, 9030]}


def test_learning_curve_is_the_mean_of_the_runs(tmp_path):
    runs = list(read_experiment([experiment(tmp_path, THREE)]).arms["gelu"].values())
    curve = mean_curve(runs, "val_top1", 100)
    assert curve.epochs == [1, 2]
    assert curve.mean == pytest.approx([50.1, 60.1])
    assert (curve.low[0], curve.high[0]) == pytest.approx(t_interval([50.0, 50.1, 50.2]))
    assert curve.n == 3
    with (runs[0].folder / "metrics.csv").open() as file:
        expected = [float(row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
    assert mean_curve(runs[:1], "train_loss").mean == expected
    assert mean_curve(runs, "nothing") is None


@pytest.mark.parametrize(
    "ends", [[50, 100, 150, 175], [50, 100, 101, 150, 200, 202], [1, 51, 52, 102], [3, 6], [7], []]
)
def test_a_row_over_few_steps_becomes_one_with_the_row_before(ends):
    losses = np.random.default_rng(0).normal(2, 1, size=max(ends, default=0))
    starts = [0, *ends[:-1]]
    curve = {end: losses[start:end].mean() for start, end in zip(starts, ends, strict=True)} if ends else {}
    merged = merge_short(curve)
    assert list(merged)[-1:] == ends[-1:]
    start = 0
    for end, value in merged.items():
        assert value == pytest.approx(losses[start:end].mean())
        start = end
    assert all(2 * n >= np.diff([0, *ends]).max(initial=0) for n in np.diff([*merged]))
