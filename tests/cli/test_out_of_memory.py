"""Memory that was not enough: an option to lower, in two lines; nothing left of a run that never began."""

import numpy as np
import pytest
import torch

from tests.cli.test_bad_input import failure
from tests.training.helpers import arguments
from vit_gelu.cli import main
from vit_gelu.cli.missing_memory import missing_memory
from vit_gelu.training.module import ClassificationModule

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is "
    "free. Process 7 has 77.9 GiB memory in use."
)
SAID = "out of memory, asking for 2.50 GiB more of a device of 79.11 GiB"
MPS = (
    "MPS backend out of memory (MPS allocated: 8.10 GiB, other allocations: 384.00 KiB, max allowed: 9.07 GiB). "
    "Tried to allocate 1.53 GiB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit."
)


def test_what_is_missing():
    """Of allocators that are here as they say it; of GPUs as they are known to."""
    with pytest.raises(RuntimeError) as tensor:
        torch.empty(3 * 2**48, dtype=torch.uint8)
    assert missing_memory(tensor.value) == "out of memory, asking for 768.00 TiB more"
    with pytest.raises(MemoryError) as array:
        np.empty(2**52)
    assert missing_memory(array.value) == "out of memory, asking for 32.0 PiB more"
    assert missing_memory(MemoryError()) == "out of memory"
    assert (
        missing_memory(torch.OutOfMemoryError(CUDA))
        == "out of memory, asking for 2.50 GiB more of a device of 79.11 GiB"
    )
    assert (
        missing_memory(RuntimeError(MPS)) == "out of memory, asking for 1.53 GiB more of a device of 9.07 GiB"
    )
    assert (
        missing_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling X"))
        == "out of memory"
    )


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), KeyError(1)]
)
def test_of_nothing_else(error):
    assert missing_memory(error) is None


def too_much(*_, **__):
    raise torch.OutOfMemoryError(CUDA)


def test_of_a_training_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ClassificationModule, "training_step", lambda *_: too_much())
    first, second = failure(
        capsys, ["train", *arguments(tmp_path / "a", trainer__accumulate_grad_batches=2)]
    ).splitlines()
    assert (
        "--data.global_batch_size 128: out of memory, asking for 2.50 GiB more of a device of 79.11 GiB"
        in first
    )
    assert "try --data.global_batch_size 64 with --trainer.accumulate_grad_batches 4" in second
    assert "--model.mlp_memory lean" in second
    assert "bf16-mixed" in second
    assert not (tmp_path / "a").exists()
    options = {"model__mlp_memory": "lean", "trainer__precision": "bf16-mixed", "data__global_batch_size": 1}
    assert (
        failure(capsys, ["train", *arguments(tmp_path / "a", **options)]).splitlines()[1]
        == "try a smaller network"
    )


def test_of_an_evaluation(tmp_path, monkeypatch, capsys):
    """What was trained until then is kept, and goes on with less."""
    step, images = ClassificationModule.evaluation_step, []

    def evaluation_step(self, batch):
        images.append(len(batch.targets))
        if len(images) > 1 and len(batch.targets) > 100:
            too_much()
        step(self, batch)

    monkeypatch.setattr(ClassificationModule, "evaluation_step", evaluation_step)
    options = {"data__eval_batch_size": 200, "trainer__precision": "bf16-mixed", "trainer__max_epochs": 2}
    first, second, third = failure(capsys, ["train", *arguments(tmp_path / "a", **options)]).splitlines()
    assert f"--data.eval_batch_size 200: {SAID}" in first
    assert second == "try --data.eval_batch_size 100"
    assert third == f"go on with --resume {tmp_path / 'a'} --data.eval_batch_size 100"
    main(["train", *third.removeprefix("go on with ").split()])
    assert set(images[2:]) <= {100, 44, 59}
    assert "test top-1" in capsys.readouterr().out


def test_of_a_command_with_a_batch(digits_run, monkeypatch, capsys):
    from vit_gelu.models import VisionTransformer

    monkeypatch.setattr(VisionTransformer, "forward", too_much)
    message = failure(capsys, ["evaluate", str(digits_run)])
    assert message == f"vit-gelu evaluate: error: {SAID}; a smaller batch needs less\n"


def test_a_session_is_not_gone_on_with(tmp_path, monkeypatch):
    from vit_gelu.cli.session import Session

    monkeypatch.setattr(ClassificationModule, "training_step", lambda *_: too_much())
    monkeypatch.setattr("vit_gelu.cli.session.Session.__init__", lambda self: None)
    outcome = Session().train(arguments(tmp_path / "a"))
    assert (outcome.status, outcome.reusable) == (2, False)
    assert outcome.reason.startswith("--data.global_batch_size 128: out of memory")
