"""The study of pre-training and swaps: what it reads from runs, and what its figure shows."""

import pytest
import transfer
import transfer_figure

from tests.training.helpers import train


def test_summary_is_mean_and_sample_deviation():
    assert transfer.summary([0.5, 0.6, 0.7]) == "60.00 ± 10.00 %"
    assert transfer.summary([0.5]) == "50.00 %"


def test_curve_has_every_validation_of_a_run(tmp_path):
    record = train(tmp_path / "run", trainer__max_epochs=2)
    curve = transfer.curve(tmp_path / "run")
    assert [step for step, _ in curve] == [record["steps"] // 2, record["steps"]]
    assert curve[-1][1] == pytest.approx(record["val"]["top1"])


def test_accuracy_before_the_first_step(tmp_path):
    record = train(tmp_path / "run", activation="relu", trainer__max_epochs=1)
    assert transfer.top1_of(tmp_path / "run", None) == pytest.approx(record["val"]["top1"])
    assert transfer.top1_of(tmp_path / "run", "relu") == pytest.approx(record["val"]["top1"])


def test_figure_shows_mean_and_range():
    swap = [
        {"arm": arm, "val_top1": [[0, 0.1 * seed + 0.2], [10, 0.5]]}
        for arm in transfer.ARMS
        for seed in (0, 1, 2)
    ]
    (axes,) = transfer_figure.recovery_figure(swap).axes
    assert [line.get_label() for line in axes.lines] == list(transfer.ARMS)
    for line in axes.lines:
        assert line.get_xydata().ravel().tolist() == pytest.approx([0, 30.0, 10, 50.0])
    low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((20.0, 50.0))
