"""Hooks that are left out are those that nobody has; all others are called as Lightning calls them."""

from collections import Counter

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loops import _TrainingEpochLoop
from lightning.pytorch.loops.optimization.automatic import Closure

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


def build(tmp_path, *more, save=False, **options):
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
        **options,
    )


def fit(tmp_path, spare):
    watching = Watching()
    watching.on_before_zero_grad = lambda *args: watching.calls.update(["on_before_zero_grad"])
    trainer = build(tmp_path, watching)
    return run(trainer, Module, spare), watching, trainer


def run(trainer, kind, spare):
    module = kind(patch_size=4, embed_dim=32, depth=1, num_heads=2, dropout=0.1, attention="explicit")
    data = ImageData(name="digits", global_batch_size=64)
    data.seed = 0
    if spare:
        spare_the_step(trainer, module, data)
    trainer.fit(module, datamodule=data)
    return module


def test_a_hook_of_ones_own_is_called_and_the_training_is_the_same(tmp_path):
    plain, _, _ = fit(tmp_path, spare=False)
    module, watching, trainer = fit(tmp_path, spare=True)
    assert watching.calls == {"on_after_backward": 5, "on_before_zero_grad": 5}
    assert module.calls == plain.calls == 5
    assert_same_weights(plain.state_dict(), module.state_dict())
    left = [hook for callback in trainer.callbacks for hook in OF_A_STEP if getattr(callback, hook) is None]
    assert len(left) > 3 * len(trainer.callbacks)


class Clipping(ClassificationModule):
    """Clips whatever the Trainer was told."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")


class Twice(torch.optim.SGD):
    """Evaluates its closure where it begins and where it comes to."""

    def step(self, closure=None):
        super().step(closure)
        return super().step(closure)


class WithTwice(ClassificationModule):
    def configure_optimizers(self):
        return Twice(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("kind", "options", "closures"),
    [
        (ClassificationModule, {}, 0),
        (ClassificationModule, {"gradient_clip_val": 0.01}, 0),
        (ClassificationModule, {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}, 0),
        (ClassificationModule, {"precision": "bf16-mixed"}, 0),
        (ClassificationModule, {"precision": "bf16-true"}, 5),
        (ClassificationModule, {"accumulate_grad_batches": 2}, 10),
        (ClassificationModule, {"profiler": "simple"}, 5),
        (Clipping, {}, 5),
        (WithTwice, {}, 10),
    ],
    ids=str,
)
def test_closures_are_for_those_who_need_them(tmp_path, monkeypatch, kind, options, closures):
    calls = []
    closure = Closure.closure
    monkeypatch.setattr(
        Closure, "closure", lambda self, *a, **k: (calls.append(1), closure(self, *a, **k))[1]
    )
    plain = run(build(tmp_path, **options), kind, spare=False)
    calls.clear()
    spared = run(build(tmp_path, **options), kind, spare=True)
    assert len(calls) == closures
    assert spared.global_step == plain.global_step == 5
    assert_same_weights(plain.state_dict(), spared.state_dict())


def test_signals_are_asked_for_once(tmp_path, monkeypatch):
    """By Lightning, in every step, or by ``Checkpoints`` where rows are logged."""
    asked = []
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda self: asked.append(1))
    for save in (False, True):
        asked.clear()
        trainer = build(tmp_path, save=save)
        data = ImageData(name="digits", global_batch_size=64)
        data.seed = 0
        module = Module(patch_size=4, embed_dim=32, depth=1, num_heads=2, attention="explicit")
        spare_the_step(trainer, module, data)
        loop = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor()  # what Lightning's own way through a step would call
        assert len(asked) == (0 if save else 1)


def test_an_unknown_version_of_lightning_keeps_its_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.__version__", "2.7.0")
    trainer = build(tmp_path)
    module = run(trainer, Module, spare=True)
    assert type(trainer.fit_loop.epoch_loop) is _TrainingEpochLoop
    assert_same_weights(module.state_dict(), run(build(tmp_path), Module, spare=False).state_dict())


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


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_an_optimizer_is_not_asked_for_cuda_graphs_on_a_cpu(monkeypatch, name):
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(torch.nn.ParameterList([parameter]), name, lr=0.1, weight_decay=0.0)
    spare_the_question(optimizer)
    parameter.grad = torch.ones(2, 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    optimizer.step()
    assert (parameter < 1).all()
