"""Hooks that are left out are those that nobody has; all others are called as Lightning calls them."""

from collections import Counter

from lightning.pytorch import Callback, Trainer

from tests.training.helpers import assert_same_weights
from vit_gelu.data import ImageData
from vit_gelu.training.hooks import OF_A_STEP, spare_the_step
from vit_gelu.training.module import ClassificationModule
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
    if spare:
        spare_the_step(trainer, module)
    data = ImageData(name="digits", global_batch_size=64)
    data.seed = 0
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
        spare_the_step(trainer, Module(patch_size=4, embed_dim=32, depth=1, num_heads=2))
        loop = trainer.fit_loop.epoch_loop
        assert hasattr(type(loop), "_broadcast_sigterm_tensor")  # Lightning still calls it so
        assert ("_broadcast_sigterm_tensor" in vars(loop)) == save
