"""Rows whose numbers come late, as on a GPU: written all the same, in order, and before whatever counts on them."""

import json

import pytest
import torch

from tests.training.helpers import arguments, assert_same_weights, metrics, train, weights
from tests.training.test_resume import NOISY, train_until
from vit_gelu.data.transfer import Fetch
from vit_gelu.training import monitor

NEVER = 10**9
WILD = {
    "activation": "relu_squared",
    "model__lr": 1e18,
    "model__optimizer": "sgd",
    "model__schedule": "constant",
}


class Late(Fetch):
    """Numbers that are there when asked for the n-th time, or waited for."""

    questions = 0
    waits = 0

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(values)
        self._left = self.questions

    def is_there(self) -> bool:
        self._left -= 1
        return self._left < 0

    def values(self) -> torch.Tensor:
        values = super().values()
        Late.waits += self._left >= 0 and values.numel() > 0
        return values


@pytest.fixture(params=[1, 2, NEVER])
def questions(request, monkeypatch):
    monkeypatch.setattr(monitor, "Fetch", Late)
    monkeypatch.setattr(Late, "questions", request.param)
    monkeypatch.setattr(Late, "waits", 0)
    return request.param


@pytest.fixture(scope="module")
def prompt(tmp_path_factory):
    out = tmp_path_factory.mktemp("prompt") / "run"
    return out, train(out, **NOISY)


def test_the_rows_are_the_same(prompt, questions, tmp_path):
    whole, record = prompt
    late = train(tmp_path / "run", **NOISY)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert (late["val"], late["best"], late["steps"]) == (record["val"], record["best"], record["steps"])
    assert_same_weights(weights(tmp_path / "run"), weights(whole))
    # The last row of an epoch is waited for, and one before it that did not come by itself.
    rows = [row for row in metrics(whole) if row["train_loss"]]
    least, most = {1: (record["epochs"],) * 2, NEVER: (len(rows),) * 2}.get(
        questions, (record["epochs"], len(rows))
    )
    assert least <= Late.waits <= most


@pytest.fixture(scope="module")
def judged_amid_epochs(tmp_path_factory):
    options = NOISY | {"trainer__val_check_interval": 5}
    out = tmp_path_factory.mktemp("judged") / "run"
    train(out, **options)
    return metrics(out), options


def test_a_validation_waits_for_the_row_before_it(judged_amid_epochs, questions, tmp_path):
    rows, options = judged_amid_epochs
    train(tmp_path / "run", **options)
    assert metrics(tmp_path / "run") == rows
    assert [row["step"] for row in rows[:3]] == ["3", "5", "6"]


@pytest.mark.parametrize("batches", [3, 4, 5, 13])
def test_a_checkpoint_holds_the_row_that_was_on_its_way(prompt, questions, tmp_path, monkeypatch, batches):
    whole, _ = prompt
    train_until(monkeypatch, batches, tmp_path / "run", **NOISY)
    train(tmp_path / "run", "--ckpt_path", "last", **NOISY)
    assert metrics(tmp_path / "run") == metrics(whole)
    assert_same_weights(weights(tmp_path / "run"), weights(whole))


def test_a_loss_that_is_no_number_is_found(questions, tmp_path):
    from vit_gelu.cli.train import main

    assert main(arguments(tmp_path / "run", **WILD)) == 1
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record["diverged_step"]) == ("diverged", 1)
    assert record["diverged_lr"] == pytest.approx(1e18)
    assert not [row for row in metrics(tmp_path / "run") if row["train_loss"] in ("nan", "inf")]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_fetched_while_the_gpu_works():
    x = torch.randn(4096, 4096, device="cuda")
    for _ in range(100):
        x = (x @ x).clamp(-1, 1)
    on_its_way = Fetch(x[0, :3])
    assert not on_its_way.is_there()
    assert torch.equal(on_its_way.values(), x[0, :3].cpu())
    assert on_its_way.is_there()


def test_the_state_of_an_earlier_version():
    state = monitor.Monitor().state_dict() | {"latest": {"epoch": 4, "lr": 0.25, "train_loss": 1.0}}
    del state["epoch"], state["lr"]
    restored = monitor.Monitor()
    restored.load_state_dict(state)
    assert (restored.epoch, restored.lr) == (4, 0.25)
