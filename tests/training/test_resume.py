"""A run that was stopped and went on is, to the bit, the run that never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.helpers import ROOT, arguments, assert_same_weights, metrics, train, weights
from vit_gelu.cli.errors import UsageError
from vit_gelu.training.card import stages_before
from vit_gelu.training.checkpoint import CARD

# Everything that draws, averages or accumulates.
NOISY = {
    "activation": "gelu_stochastic",
    "model__dropout": 0.1,
    "model__drop_path": 0.2,
    "model__ema_decay": 0.9,
    "data__mixup": 0.8,
    "data__cutmix": 1.0,
    "model__warmup_epochs": 0.5,
    "trainer__max_epochs": 3,
    "seed": 3,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, train(out, **NOISY)


class StopAfter:
    """Sends the process SIGTERM once a given number of batches has been trained."""

    def __init__(self, batches):
        self.batches = batches

    def __call__(self, callback, trainer, *args):
        self.batches -= 1
        if self.batches == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def train_until(monkeypatch, batches, out, **options):
    """Train until a signal comes after so many batches; the exit status says that it did."""
    from vit_gelu.cli.train import main
    from vit_gelu.training.speed import SpeedMeter

    original = SpeedMeter.on_train_batch_end
    stop = StopAfter(batches)

    def patched(self, *args):
        original(self, *args)
        stop(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SpeedMeter, "on_train_batch_end", patched)
        assert main(arguments(out, **options)) == 128 + signal.SIGTERM
    assert not (out / "record.json").exists()


def assert_same_run(whole, record, out, again):
    assert_same_weights(weights(whole), weights(out))
    assert_same_weights(weights(whole, "current_model_state"), weights(out, "current_model_state"))
    assert metrics(whole) == metrics(out)
    for key in ("order_hash", "val", "test", "steps", "epochs", "config_hash", "best"):
        assert again[key] == record[key], key


@pytest.mark.parametrize("batches", [1, 4, 15, 29])
def test_resume_is_bit_identical(uninterrupted, tmp_path, monkeypatch, batches):
    whole, record = uninterrupted
    per_epoch = record["steps"] // record["epochs"]
    assert batches % per_epoch, "this test stops inside an epoch"
    train_until(monkeypatch, batches, tmp_path / "run", **NOISY)
    again = train(tmp_path / "run", "--ckpt_path", "last", **NOISY)
    assert_same_run(whole, record, tmp_path / "run", again)


def test_resume_at_the_end_of_an_epoch(uninterrupted, tmp_path, monkeypatch):
    whole, record = uninterrupted
    per_epoch = record["steps"] // record["epochs"]
    train_until(monkeypatch, per_epoch, tmp_path / "run", **NOISY)
    again = train(tmp_path / "run", "--ckpt_path", "last", **NOISY)
    assert_same_run(whole, record, tmp_path / "run", again)


@pytest.fixture(scope="module")
def counted_in_steps(tmp_path_factory):
    """Two batches a step; the second of every two epochs is validated, after batches 3, 6 and 9 of 10."""
    options = NOISY | {
        "trainer__max_epochs": -1,
        "trainer__max_steps": 17,
        "trainer__accumulate_grad_batches": 2,
        "trainer__check_val_every_n_epoch": 2,
        "trainer__val_check_interval": 3,
        "model__warmup_epochs": 0,
    }
    out = tmp_path_factory.mktemp("steps") / "whole"
    return out, train(out, **options), options


AT = {
    10: "after an epoch without validation",
    11: "amid a step",
    16: "before a validation",
    26: "between two steps",
}


@pytest.mark.parametrize("batches", AT, ids=AT.get)
def test_resume_under_max_steps(counted_in_steps, tmp_path, monkeypatch, batches):
    whole, record, options = counted_in_steps
    train_until(monkeypatch, batches, tmp_path / "run", **options)
    again = train(tmp_path / "run", "--ckpt_path", "last", **options)
    assert_same_run(whole, record, tmp_path / "run", again)


def test_amid_a_step_no_run_goes_on(tmp_path, monkeypatch):
    """A validation that comes there saves what is best: without the gradients of the step's first half."""
    options = {"trainer__accumulate_grad_batches": 2, "trainer__val_check_interval": 5}
    options |= {"trainer__limit_train_batches": 7, "trainer__max_epochs": 1}
    train(tmp_path / "run", **options)
    (tmp_path / "run" / "record.json").unlink()
    with pytest.raises(ValueError, match="go on from last"):
        train(tmp_path / "run", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "best.ckpt"), **options)


def test_resume_twice_with_accumulation(tmp_path, monkeypatch):
    options = NOISY | {"trainer__accumulate_grad_batches": 2, "trainer__log_every_n_steps": 1}
    record = train(tmp_path / "whole", **options)
    assert record["env"]["earlier"] is None
    commits = {"git": "one"}
    monkeypatch.setattr("vit_gelu.training.card._stage", lambda *_: dict(commits))
    # Batch 3 is the first half of an accumulation: the save waits for its second half.
    train_until(monkeypatch, 3, tmp_path / "run", **options)
    from vit_gelu.cli.train import main
    from vit_gelu.training.speed import SpeedMeter

    original, stop = SpeedMeter.on_train_batch_end, StopAfter(8)

    def patched(self, *args):
        original(self, *args)
        stop(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SpeedMeter, "on_train_batch_end", patched)
        status = main([*arguments(tmp_path / "run", **options), "--ckpt_path", "last"])
    assert status == 128 + signal.SIGTERM
    commits["git"] = "two"
    again = train(tmp_path / "run", "--ckpt_path", "last", **options)
    assert_same_run(tmp_path / "whole", record, tmp_path / "run", again)
    assert again["env"]["earlier"] == [{"git": "one"}]  # by the first two processes, once


def test_stages_before():
    one, two = {"git": "one"}, {"git": "two"}

    def before(*stages, mine):
        return stages_before({CARD: {"stages": list(stages)}}, mine)

    assert before(one, one, mine=one) == []
    assert before(one, two, two, mine=one) == [one, two]
    assert before(one, two, one, mine=one) == [one, two]
    assert stages_before({CARD: {}}, one) == []  # of a checkpoint that is older


def test_a_killed_process_goes_on(uninterrupted, tmp_path):
    """SIGKILL at a random moment after the first save; whatever is on disk then is enough."""
    whole, record = uninterrupted
    out = tmp_path / "run"
    saving = "--checkpoint_minutes=0"
    command = [sys.executable, "-m", "vit_gelu", "train", *arguments(out, **NOISY), saving]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    process.wait()
    again = train(out, saving, "--ckpt_path", "last", **NOISY)
    assert_same_run(whole, record, out, again)


def test_a_folder_takes_one_process_at_a_time(tmp_path, monkeypatch):
    from vit_gelu.cli.occupied import leave, occupy

    out, options = tmp_path / "run", {"trainer__max_epochs": 1}
    train_until(monkeypatch, 2, out, **options)
    lock = occupy(out, "")
    with pytest.raises(UsageError, match="another process is training there"):
        train(out, "--ckpt_path", "last", **options)
    leave(lock)
    train(out, "--ckpt_path", "last", **options)
    assert not (out / ".lock").exists()
    with monkeypatch.context() as windows:
        windows.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
        leave(occupy(out, ""))
    leave(occupy(out, ""))


@pytest.mark.parametrize("split", ["val", "test"])
def test_killed_after_its_last_step(uninterrupted, tmp_path, monkeypatch, split):
    """Before its record is there: it comes back with no step left, and writes no row twice."""
    from vit_gelu.training import run

    whole, record = uninterrupted
    out, evaluate = tmp_path / "run", run._evaluate

    def killed(trainer, module, data, asked):
        if asked == split:
            raise SystemExit
        return evaluate(trainer, module, data, asked)

    with monkeypatch.context() as patched:
        patched.setattr(run, "_evaluate", killed)
        with pytest.raises(SystemExit):
            train(out, **NOISY)
    assert not (out / "record.json").exists()
    assert_same_run(whole, record, out, train(out, "--ckpt_path", "last", **NOISY))


def test_a_training_leaves_the_handlers_of_signals_as_they_were(tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    train(tmp_path / "run", trainer__max_epochs=1)
    assert [signal.getsignal(number) for number in numbers] == before


def test_resume_of_a_finished_run_changes_nothing(uninterrupted, capsys):
    from vit_gelu.cli.train import main

    whole, record = uninterrupted
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    assert main(["--resume", str(whole)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before
    assert json.loads((whole / "record.json").read_text()) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed 3, this run 4"),
        ({"model__depth": 3}, "network option depth = 2, this run 3"),
        ({"data__global_batch_size": 64}, "global_batch_size = 128, this run 64"),
        ({"activation": "relu"}, "activation = 'gelu_stochastic', this run 'relu'"),
    ],
)
def test_another_runs_checkpoint_is_refused(uninterrupted, tmp_path, change, message):
    from vit_gelu.cli.train import main

    whole, _ = uninterrupted
    checkpoint = str(whole / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="--ckpt_path") as error:
        main([*arguments(tmp_path / "run", **(NOISY | change)), "--ckpt_path", checkpoint])
    assert message in str(error.value)
