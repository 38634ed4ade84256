"""The loop over an epoch's steps against Lightning's own: same calls, same counters, same weights."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from tests.training.helpers import assert_same_weights
from vit_gelu.data import ImageData
from vit_gelu.training.hooks import spare_the_step
from vit_gelu.training.loop import StepLoop
from vit_gelu.training.module import ClassificationModule


def counters(fit_loop):
    """All of them but one that nobody reads: how often gradients were set to None."""
    state = copy.deepcopy(fit_loop.state_dict())
    del state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["zero_grad"]
    return state


class Watching(Callback):
    """Notes every call of a hook, with the state of all loops then."""

    def __init__(self):
        self.seen = []

    def note(self, hook, trainer, pl_module, *more):
        loop = trainer.fit_loop.epoch_loop
        self.seen.append(
            (
                hook,
                pl_module._current_fx_name,
                trainer.global_step,
                trainer.is_last_batch,
                trainer._logger_connector._first_loop_iter,
                trainer.optimizers[0].param_groups[0]["lr"],
                counters(trainer.fit_loop),
                loop._results.batch is not None,
                *more,
            )
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note("start", trainer, pl_module, batch_idx, batch.targets.tolist())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.note("end", trainer, pl_module, batch_idx, outputs["loss"].item(), outputs["loss"].requires_grad)

    def on_validation_start(self, trainer, pl_module):
        self.note("validation", trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.note("epoch", trainer, pl_module)


class Within(Watching):
    def on_after_backward(self, trainer, pl_module):
        self.note("backward", trainer, pl_module)


class Stopping(Watching):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        trainer.should_stop = trainer.global_step == 4


class Rows(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


class Epochs(ClassificationModule):
    """A schedule by epochs beside one by every other step."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        by_epochs = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        by_steps = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [
            {"scheduler": by_epochs, "interval": "epoch"},
            {"scheduler": by_steps, "interval": "step", "frequency": 2},
        ]


class Own(ClassificationModule):
    """Takes its schedule's steps by itself, and logs from two hooks."""

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()
        scheduler.step()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("mine", float(batch_idx))

    def training_step(self, batch, batch_idx):
        output = super().training_step(batch, batch_idx)
        self.log("loss", output["loss"].detach(), on_epoch=True)
        return output


class Enough(ClassificationModule):
    """Has enough of an epoch after two batches."""

    def on_train_batch_start(self, batch, batch_idx):
        super().on_train_batch_start(batch, batch_idx)
        return -1 if batch_idx == 2 else None


def train(tmp_path, ours, kind=ClassificationModule, watching=Watching, *, ckpt_path=None, **options):
    module = kind(
        patch_size=4, embed_dim=32, depth=1, num_heads=2, dropout=0.1, attention="explicit", lr=3e-3
    )
    module.recorded = kind is not Own
    data = ImageData(name="digits", global_batch_size=256)
    data.seed = 0
    watching = watching()
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "callbacks": [watching],
            "logger": Rows(),
            "log_every_n_steps": 2,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": tmp_path,
            **options,
        }
    )
    if ours:
        spare_the_step(trainer, module, data)
        assert isinstance(trainer.fit_loop.epoch_loop, StepLoop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module, watching.seen


CASES = {
    "plain": {},
    "bfloat16": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 0.01},
    "accumulated": {"accumulate_grad_batches": 2},
    "validated amid an epoch": {"val_check_interval": 2},
    "validated every second epoch": {"check_val_every_n_epoch": 2},
    "validated by steps": {"check_val_every_n_epoch": None, "val_check_interval": 3},
    "never validated": {"limit_val_batches": 0},
    "few batches": {"limit_train_batches": 3},
    "steps": {"max_steps": 7, "max_epochs": -1},
    "stopped": {"watching": Stopping},
    "hook within": {"watching": Within},
    "profiled": {"profiler": "simple"},
    "schedules by epochs": {"kind": Epochs},
    "logging": {"kind": Own},
    "enough": {"kind": Enough},
}


@pytest.mark.parametrize("case", CASES)
def test_everybody_sees_what_lightnings_loop_shows(tmp_path, case):
    theirs, plain, expected = train(tmp_path, ours=False, **CASES[case])
    trainer, module, seen = train(tmp_path, ours=True, **CASES[case])
    assert len(expected) > 4
    for one, other in zip(seen, expected, strict=True):
        assert one == other
    assert trainer.callback_metrics == theirs.callback_metrics
    assert trainer.logger.rows == theirs.logger.rows
    assert bool(trainer.logger.rows) == (case == "logging")
    assert trainer.global_step == theirs.global_step > 2
    assert_same_weights(plain.state_dict(), module.state_dict())


@pytest.mark.parametrize("options", [{"val_check_interval": 2}, {"accumulate_grad_batches": 2}], ids=str)
def test_a_run_goes_on_from_a_checkpoint_as_in_lightnings_loop(tmp_path, options):
    class Saving(Watching):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if trainer.global_step == 4 and not (tmp_path / "amid.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "amid.ckpt")

        def on_validation_end(self, trainer, pl_module):
            if trainer.global_step == 4 and not (tmp_path / "after.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "after.ckpt")

    train(tmp_path, ours=False, watching=Saving, **options)
    for path in sorted(tmp_path.glob("*.ckpt")):
        (_, plain, expected), (_, module, seen) = (
            train(tmp_path, ours, ckpt_path=path, **options) for ours in (False, True)
        )
        for one, other in zip(seen, expected, strict=True):
            assert one == other
        assert len(expected) > 2
        assert_same_weights(plain.state_dict(), module.state_dict())
