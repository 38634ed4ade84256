"""Hooks that are left out are those that nobody has; all others are called as Lightning calls them."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.training.helpers import assert_same_weights
from vit_gelu.data import ImageData
from vit_gelu.training.hooks import OF_A_STEP, spare_the_question, spare_the_step
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.optim import build_optimizer
from vit_gelu.training.run import run_callbacks


class Watching(Callback):
    def __init__(self):
        self.calls = Counter()

    def on_after_backward(self, trainer, pl_module):
        self.calls["on_after_backward"] += 1


class Module(ClassificationModule):
    calls = 0

    def on_before_optimizer_step(self, optimizer):
        self.calls += 1


def build(tmp_path, *more, save=False):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=5,
        max_epochs=1,
        callbacks=[*run_callbacks(tmp_path, save=save, show=False), *more],
        logger=False,
        enable_checkpointing=save,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )


def fit(tmp_path, spare):
    module = Module(patch_size=4, embed_dim=32, depth=1, num_heads=2, dropout=0.1, attention="explicit")
    watching = Watching()
    watching.on_before_zero_grad = lambda *args: watching.calls.update(["on_before_zero_grad"])
    trainer = build(tmp_path, watching)
    data = ImageData(name="digits", global_batch_size=64)
    data.seed = 0
    if spare:
        spare_the_step(trainer, module, data)
    trainer.fit(module, datamodule=data)
    return module, watching, trainer


def test_a_hook_of_ones_own_is_called_and_the_training_is_the_same(tmp_path):
    plain, _, _ = fit(tmp_path, spare=False)
    module, watching, trainer = fit(tmp_path, spare=True)
    assert watching.calls == {"on_after_backward": 5, "on_before_zero_grad": 5}
    assert module.calls == plain.calls == 5
    assert_same_weights(plain.state_dict(), module.state_dict())
    left = [hook for callback in trainer.callbacks for hook in OF_A_STEP if getattr(callback, hook) is None]
    assert len(left) > 3 * len(trainer.callbacks)


def test_signals_are_asked_for_once(tmp_path):
    """By Lightning, in every step, or by ``Checkpoints`` where rows are logged."""
    for save in (False, True):
        trainer = build(tmp_path, save=save)
        data = ImageData(name="digits", global_batch_size=64)
        spare_the_step(trainer, Module(patch_size=4, embed_dim=32, depth=1, num_heads=2), data)
        loop = trainer.fit_loop.epoch_loop
        assert hasattr(type(loop), "_broadcast_sigterm_tensor")  # Lightning still calls it so
        assert ("_broadcast_sigterm_tensor" in vars(loop)) == save


class Logging(ClassificationModule):
    """Has what most do not: logged values, and a schedule that looks at one of them."""

    reduced = 0

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        self.log("mine", out["loss"])
        return out

    def configure_optimizers(self):
        made = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            made["optimizer"], factor=0.5, patience=0, threshold=10.0
        )
        return {
            "optimizer": made["optimizer"],
            "lr_scheduler": {"scheduler": plateau, "interval": "step", "monitor": "mine"},
        }


class Doubling(ImageData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch._replace(images=2 * batch.images)


class Seeing(Callback):
    def __init__(self):
        self.means = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.means.append(batch.images.mean().item())


@pytest.mark.parametrize("spare", [False, True])
def test_what_somebody_has_is_done_all_the_same(tmp_path, spare):
    seen = []
    for kind in (ImageData, Doubling):
        module = Logging(patch_size=4, embed_dim=32, depth=1, num_heads=2, attention="explicit")
        data, seeing = kind(name="digits", global_batch_size=64), Seeing()
        data.seed = 0
        trainer = build(tmp_path, seeing)
        if spare:
            spare_the_step(trainer, module, data)
        trainer.fit(module, datamodule=data)
        assert trainer.callback_metrics["mine"] > 0
        assert trainer.optimizers[0].param_groups[0]["lr"] < module.lr / 4
        seen.append(seeing.means)
    assert seen[1] == pytest.approx([2 * mean for mean in seen[0]])


def test_lightning_still_calls_what_is_left_out(tmp_path):
    """Each name is read by the loop that we spare; another version may call it otherwise."""
    trainer = build(tmp_path)
    loop = trainer.fit_loop.epoch_loop
    for owner, name, caller in (
        (loop, "_build_kwargs", loop.advance),
        (loop, "update_lr_schedulers", loop.on_advance_end),
        (loop.automatic_optimization, "_make_zero_grad_fn", loop.automatic_optimization._make_closure),
        (trainer._logger_connector, "on_batch_end", loop.advance),
        (ClassificationModule, "_on_before_batch_transfer", loop.advance),
        (ClassificationModule, "_apply_batch_transfer_handler", trainer.strategy.batch_to_device),
    ):
        assert hasattr(owner, name)
        assert name in caller.__code__.co_names


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_an_optimizer_is_not_asked_for_cuda_graphs_on_a_cpu(monkeypatch, name):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(torch.nn.ParameterList([parameter]), name, lr=0.1, weight_decay=0.0)
    spare_the_question(optimizer)
    parameter.grad = torch.ones(2, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    optimizer.step()
    assert (parameter < 1).all()
