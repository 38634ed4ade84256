"""metrics.csv: rows survive, columns grow, a resumed run writes no step twice."""

import csv

import pytest

from vit_gelu.training.logs import COLUMNS, MetricsFile


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_on_disk_at_once(tmp_path):
    log = MetricsFile(tmp_path / "run" / "metrics.csv")
    log.log_metrics({"epoch": 0, "train_loss": 1.5}, step=10)
    assert rows_of(log.path)[0]["train_loss"] == "1.5"
    assert tuple(rows_of(log.path)[0]) == COLUMNS


def test_new_columns_keep_old_rows(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train_loss": 1.0}, step=1)
    log.log_metrics({"mine": 2.0}, step=2)
    rows = rows_of(log.path)
    assert [r["train_loss"] for r in rows] == ["1.0", ""]
    assert [r["mine"] for r in rows] == ["", "2.0"]


def test_resume_drops_the_rows_after_the_checkpoint(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        log.log_metrics({"train_loss": float(step), "mine": 1.0}, step=step)
    again = MetricsFile(log.path)
    again.truncate(2)
    again.log_metrics({"train_loss": 9.0, "mine": 1.0}, step=2)
    assert [(r["step"], r["train_loss"]) for r in rows_of(log.path)] == [
        ("0", "0.0"),
        ("1", "1.0"),
        ("2", "9.0"),
    ]
    assert again.rows == 3


def test_a_lost_file_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="holds 0 rows, the checkpoint counted 3"):
        MetricsFile(tmp_path / "metrics.csv").truncate(3)
