"""Gradients live from the backward pass to the optimizer's step, and no longer."""

import pytest

from tests.training.helpers import train
from vit_gelu.training.module import ClassificationModule


@pytest.mark.parametrize(("accumulate", "expected"), [(1, [False] * 4), (2, [False, True, False, True])])
def test_no_gradients_in_the_forward_pass(tmp_path, monkeypatch, accumulate, expected):
    seen = []
    original = ClassificationModule.training_step

    def watched(self, batch, batch_idx):
        seen.append(any(p.grad is not None for p in self.network.parameters()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ClassificationModule, "training_step", watched)
    options = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 4, "trainer__log_every_n_steps": 1}
    record = train(tmp_path / "run", trainer__accumulate_grad_batches=accumulate, **options)
    assert record["steps"] == 4 // accumulate
    assert seen == expected


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_bfloat16_runs_with_clipped_gradients(tmp_path, optimizer):
    """The default on processors and GPUs with bfloat16: Lightning refuses to clip for fused optimizers there."""
    record = train(
        tmp_path / "run",
        model__optimizer=optimizer,
        trainer__precision="bf16-mixed",
        trainer__gradient_clip_val=1.0,
        trainer__max_epochs=1,
    )
    assert record["status"] == "finished"
