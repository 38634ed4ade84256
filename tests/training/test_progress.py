"""What a person sees while training: the figures of metrics.csv, a line per epoch, or a bar on a terminal."""

import io
import re

import pytest

from tests.training.helpers import metrics, train

SHOWN = {"trainer__enable_progress_bar": "true", "trainer__max_epochs": 2}


def last(rows, column):
    return [float(row[column]) for row in rows if row[column]][-1]


def check_figures(line, rows):
    loss, top1 = re.search(r"  loss ([\d.]+)  top-1 ([\d.]+) %", line).groups()
    assert float(loss) == pytest.approx(last(rows, "train_loss"), abs=5.1e-4)
    assert float(top1) == pytest.approx(100 * last(rows, "train_top1"), abs=0.051)


def test_a_line_per_epoch(tmp_path, capsys):
    train(tmp_path / "run", **SHOWN)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    rows = metrics(tmp_path / "run")
    steps = sorted({int(row["step"]) for row in rows if row["val_loss"]})
    assert [line.split("  ")[:2] for line in lines] == [
        [f"epoch {i}/2", f"step {step}/{steps[-1]}"] for i, step in enumerate(steps, 1)
    ]
    for line, step in zip(lines, steps, strict=True):
        until = [row for row in rows if int(row["step"]) <= step]
        check_figures(line, until)
        assert f"val top-1 {100 * last(until, 'val_top1'):.2f} %" in line


def test_a_training_that_ends_before_its_first_row_was_due(tmp_path, capsys):
    train(
        tmp_path / "run", trainer__max_steps=3, trainer__log_every_n_steps=50, model__warmup_epochs=0, **SHOWN
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert line.startswith("epoch 1/2  step 3/3  loss ")
    rows = [row for row in metrics(tmp_path / "run") if row["train_loss"]]
    assert [row["step"] for row in rows] == ["3"]
    check_figures(line, rows)


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("vit_gelu.training.progress.REFRESH_SECONDS", 0.0)
    train(tmp_path / "run", **SHOWN)
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    steps = max(int(row["step"]) for row in metrics(tmp_path / "run"))
    assert re.search(rf"epoch 1/2 .* 1/{steps} ", plain)
    assert re.search(rf"epoch 2/2 .* {steps}/{steps} .*loss ", plain)
    assert f"epoch 2/2  step {steps}/{steps}  loss " in plain
