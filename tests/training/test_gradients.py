"""Gradients live from the backward pass to the optimizer's step, and no longer."""

import pytest
import torch

from tests.training import test_masked
from tests.training.helpers import train, weights
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


ONE = {"trainer__limit_train_batches": 1}
ACCUMULATED = {"trainer__accumulate_grad_batches": 3}


@pytest.mark.parametrize(
    ("run", "one", "other"),
    [
        (train, {"data__global_batch_size": 384}, ACCUMULATED),
        # The last step of an epoch has fewer batches than the others; here it is the only one, and has one.
        (train, ONE, ONE | ACCUMULATED),
        (test_masked.pretrain, ONE, ONE | ACCUMULATED),
    ],
)
def test_the_gradient_of_a_step_is_the_mean_over_its_batches(tmp_path, run, one, other):
    options = {
        "model__optimizer": "sgd",
        "model__lr": 0.5,
        "model__weight_decay": 0,
        "model__schedule": "constant",
        "data__augment": "none",
        "trainer__max_epochs": -1,
        "trainer__max_steps": 3,
    }
    run(tmp_path / "one", **options | one)
    run(tmp_path / "other", **options | other)
    wanted, found = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.allclose(wanted[k], found[k], atol=1e-5) for k in found)
