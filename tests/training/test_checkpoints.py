"""When a run saves, and that it does so whole or not at all."""

import errno
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from lightning.fabric.plugins import TorchCheckpointIO

from tests.training.helpers import assert_same_weights, train, weights
from vit_gelu.training import checkpoints
from vit_gelu.training.checkpoints import Checkpoints, Interrupted
from vit_gelu.training.monitor import Monitor


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Trainer(SimpleNamespace):
    def save_checkpoint(self, path):
        self.clock.now += self.saving
        self.saved.append(self.current_epoch)

    def run(self, callback, epochs, seconds):
        for self.current_epoch in range(epochs):
            self.clock.now += seconds
            self.global_step += 4
            callback.on_train_epoch_end(self, None)


@pytest.fixture
def trainer(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(checkpoints.time, "monotonic", clock.monotonic)
    return Trainer(
        clock=clock,
        saving=0.5,
        saved=[],
        world_size=1,
        max_epochs=30,
        max_steps=-1,
        should_stop=False,
        is_global_zero=True,
        loggers=[],
        global_step=0,
    )


@pytest.fixture
def callback(trainer, tmp_path):
    callback = Checkpoints(tmp_path, Monitor())
    callback.on_train_start(trainer, None)
    yield callback
    callback.teardown(trainer, None, "fit")


def test_long_epochs_are_all_saved(trainer, callback):
    trainer.run(callback, epochs=30, seconds=50.0)
    assert trainer.saved == list(range(30))


def test_short_epochs_are_saved_when_a_hundred_times_a_save_has_passed_and_at_the_end(trainer, callback):
    trainer.run(callback, epochs=30, seconds=5.0)  # a save takes half a second
    assert trainer.saved == [0, 10, 20, 29]


@pytest.mark.parametrize("end", [{"max_steps": 28}, {"max_epochs": 7}])
def test_whatever_ends_the_run_its_end_is_saved(trainer, callback, end):
    vars(trainer).update(end)
    trainer.run(callback, epochs=7, seconds=0.001)
    assert trainer.saved == [0, 6]


def test_an_early_stop_is_saved(trainer, callback):
    trainer.run(callback, epochs=2, seconds=0.001)
    trainer.should_stop = True
    trainer.run(callback, epochs=1, seconds=0.001)
    assert len(trainer.saved) == 2


def test_no_epoch_goes_unsaved_for_longer_than_was_asked_for(trainer, callback):
    callback.minutes = 3 / 60
    trainer.run(callback, epochs=9, seconds=1.0)
    assert trainer.saved == [0, 3, 6]


def test_a_signal_saves_at_once(trainer, callback):
    trainer.run(callback, epochs=2, seconds=0.001)
    callback._signal = 15
    with pytest.raises(Interrupted):
        trainer.run(callback, epochs=1, seconds=0.001)
    assert len(trainer.saved) == 2


def test_what_is_saved_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
    """A full disk at the third of several saves: the second is still there, and the run goes on from it."""
    whole = train(tmp_path / "whole", trainer__max_epochs=2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "another disk"))  # nothing of ours goes there
    synced, fsync = [], os.fsync

    def full(number):
        if os.fstat(number).st_size > 50_000:  # a checkpoint
            synced.append(number)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    saving = "--checkpoint_minutes=0"
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="not written: No space left") as refused:
            train(tmp_path / "run", saving, trainer__max_epochs=2)
    assert refused.value.filename == str(last)
    assert [p.name for p in last.parent.iterdir()] == ["last.ckpt"]
    assert weights(tmp_path / "run", "global_step") == 2
    (last.parent / "best.ckpt.partial").write_bytes(b"of a process that was killed")
    again = train(tmp_path / "run", saving, "--ckpt_path", "last", trainer__max_epochs=2)
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert again["test"] == whole["test"]
    assert sorted(p.name for p in last.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_another_way_to_save_stays(tmp_path):
    plugin = "--trainer.plugins=tests.training.test_checkpoints.Elsewhere"
    train(tmp_path / "run", plugin, trainer__max_epochs=1)
    assert {p.name for p in Elsewhere.saved} == {"best.ckpt", "last.ckpt"}


class Elsewhere(TorchCheckpointIO):
    saved: ClassVar[list[Path]] = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.saved.append(Path(path))
        super().save_checkpoint(checkpoint, path, storage_options)
