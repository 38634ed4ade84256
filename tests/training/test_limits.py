"""Accumulation, limits on evaluation, the best checkpoint of a run that was never validated on its way."""

import csv
import json
import subprocess
import sys

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from tests.training.helpers import ROOT, arguments, assert_same_weights, metrics, train, weights
from vit_gelu.data import ImageData
from vit_gelu.training import run
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.run import run_callbacks


def losses(out):
    return [float(row["train_loss"]) for row in metrics(out) if row["train_loss"]]


def test_logged_loss_is_the_batchs_own_under_accumulation(tmp_path):
    # With a learning rate of almost nothing, accumulation changes nothing but when weights move.
    options = {"model__lr": 1e-12, "trainer__max_epochs": 1, "model__dropout": 0.0}
    train(tmp_path / "one", **options)
    train(tmp_path / "two", trainer__accumulate_grad_batches=2, **options)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert sum(two) / len(two) == pytest.approx(sum(one) / len(one), rel=0.02)


def test_a_number_of_evaluation_batches_is_honoured_and_counted(tmp_path):
    limits = {"trainer__limit_val_batches": 1, "trainer__limit_test_batches": 2, "data__eval_batch_size": 32}
    record = train(tmp_path / "run", trainer__max_epochs=1, **limits)
    assert (record["val"]["n"], record["test"]["n"]) == (32, 64)


def test_a_share_of_the_test_that_is_less_than_a_batch_is_refused_before_the_training(tmp_path):
    with pytest.raises(ValueError, match=r"limit_test_batches 0\.5: less than one of 1 batches"):
        train(tmp_path / "run", trainer__limit_test_batches=0.5)
    assert not (tmp_path / "run").exists()
    options = {"trainer__limit_test_batches": 0.5, "data__eval_batch_size": 32, "trainer__max_epochs": 1}
    assert train(tmp_path / "half", **options)["test"]["n"] == 6 * 32  # of twelve batches


def test_evaluation_left_out_is_left_out(tmp_path, capsys):
    record = train(
        tmp_path / "run", trainer__max_epochs=1, trainer__limit_val_batches=0, trainer__limit_test_batches=0
    )
    assert record["val"] is None
    assert record["test"] is None
    assert record["best"] is None
    assert "not validated" in capsys.readouterr().out


def test_best_of_a_run_that_was_never_validated_is_its_last(tmp_path):
    record = train(
        tmp_path / "run", "--test_checkpoint=best", trainer__max_epochs=1, trainer__check_val_every_n_epoch=5
    )
    assert record["tested"] == "best"
    assert record["best"] == {"val_top1": record["val"]["top1"], "step": record["steps"]}
    assert_same_weights(weights(tmp_path / "run", name="best"), weights(tmp_path / "run"))


def test_a_trial_of_a_few_steps_needs_no_shorter_warm_up(tmp_path):
    record = train(tmp_path / "run", trainer__fast_dev_run=2, model__warmup_epochs=1)
    assert record["steps"] == 2


def test_a_training_cut_short_says_so(tmp_path, capsys):
    record = train(tmp_path / "run", trainer__max_epochs=1000, trainer__max_time="00:00:00:01")
    assert record["steps"] < record["planned_steps"] == 1000 * (record["dataset"]["train_n"] // 128)
    assert "stopped early" in capsys.readouterr().err
    assert train(tmp_path / "whole")["planned_steps"] == 2 * (record["dataset"]["train_n"] // 128)
    assert "stopped early" not in capsys.readouterr().err


def test_a_training_that_ends_between_two_rows_logs_its_last_steps(tmp_path):
    options = {"trainer__max_steps": 14, "trainer__max_epochs": -1, "trainer__log_every_n_steps": 50}
    record = train(tmp_path / "run", **options)
    *_, trained, validated, tested = metrics(tmp_path / "run")
    assert (trained["step"], validated["step"], tested["step"]) == ("14", "14", "14")
    assert float(trained["train_loss"]) > 0
    assert float(validated["val_top1"]) == pytest.approx(record["val"]["top1"])
    assert float(tested["test_top1"]) == pytest.approx(record["test"]["top1"])
    steps = [row["step"] for row in metrics(tmp_path / "run") if row["train_loss"]]
    assert len(steps) == len(set(steps)) == 2  # the epoch, and what came after it


def test_a_run_killed_after_its_last_step_comes_back_for_its_last_row_and_record(tmp_path):
    options = {"trainer__max_steps": 14, "trainer__max_epochs": -1, "trainer__log_every_n_steps": 50}
    record = train(tmp_path / "run", **options)
    rows = metrics(tmp_path / "run")
    (tmp_path / "run" / "record.json").unlink()
    again = train(tmp_path / "run", "--ckpt_path", "last", **options)
    assert metrics(tmp_path / "run") == rows
    assert all(again[key] == record[key] for key in ("val", "test", "steps", "epochs"))


def test_a_training_that_diverges_in_its_last_steps_is_not_finished(tmp_path):
    from vit_gelu.cli.train import main

    wild = {
        "activation": "relu_squared",
        "model__lr": 1e18,
        "model__optimizer": "sgd",
        "model__schedule": "constant",
    }
    limits = {"trainer__max_steps": 4, "trainer__max_epochs": -1, "trainer__log_every_n_steps": 50}
    assert main(arguments(tmp_path / "run", **wild, **limits)) == 1
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "diverged"


def test_best_needs_something_to_judge_by(tmp_path):
    with pytest.raises(ValueError, match="leaves nothing to judge by"):
        train(tmp_path / "run", "--test_checkpoint=best", trainer__limit_val_batches=0)
    assert not (tmp_path / "run").exists()


def test_one_batch_is_one_batch_whatever_the_process_did_before():
    # Imported first, scikit-learn leaves Union[float, int] in typing's cache, where Lightning's would look itself up.
    code = (
        "import sklearn.metrics\n"
        "from vit_gelu.cli.options import build_parser\n"
        "parsed = build_parser().parse_args(['--trainer.limit_val_batches', '1'])\n"
        "print(repr(parsed.trainer.limit_val_batches))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "1"


@pytest.mark.parametrize(
    "callback", [StochasticWeightAveraging(0.1), EMAWeightAveraging()], ids=lambda c: type(c).__name__
)
def test_averages_that_are_not_ours_are_refused(tmp_path, callback):
    """Ours is copied into the network after theirs, so that theirs would have been for nothing."""
    callbacks = [*run_callbacks(tmp_path, show=False), callback]
    trainer = Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, logger=False, enable_checkpointing=True
    )
    module = ClassificationModule(patch_size=4, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(ValueError, match=rf"{type(callback).__name__}.*--model\.ema_decay"):
        run.train(module, ImageData(name="digits"), trainer, tmp_path, config={})


def test_a_logger_of_ones_own_gets_every_row(tmp_path):
    theirs = {"trainer__logger": "CSVLogger", "trainer__logger__save_dir": str(tmp_path / "theirs")}
    train(tmp_path / "run", trainer__max_epochs=1, **theirs)
    with next((tmp_path / "theirs").rglob("metrics.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = metrics(tmp_path / "run")
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in ours]
    assert len(rows) > 3


def test_double_precision_needs_a_device_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr("vit_gelu.training.run.has_float64", lambda device: False)
    with pytest.raises(
        ValueError, match=r"--trainer\.precision 64-true: this device has no float64; take 32-true"
    ):
        train(tmp_path / "run", trainer__precision="64-true")
