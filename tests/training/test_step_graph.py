"""The step as one CUDA graph: rehearsed on the CPU, where recording leaves no trace; the real thing on a GPU."""

import copy
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, LightningModule

from tests.training.helpers import TINY, metrics, train, weights
from vit_gelu.training import base, module
from vit_gelu.training.monitor import Monitor
from vit_gelu.training.speed import SpeedMeter
from vit_gelu.training.step_graph import WARMUP_STEPS, StepGraph, reason_against

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
EVERYTHING = {
    "model__dropout": 0.1,
    "model__drop_path": 0.1,
    "model__patch_dropout": 0.5,
    "model__patch_dropout_until": 0.5,
    "model__pooling": "mean",
    "data__mixup": 0.8,
    "data__cutmix": 1.0,
    "trainer__gradient_clip_val": 0.5,
    "model__warmup_epochs": 0.5,
}


class Rehearsed(StepGraph):
    """Records by running the step and taking it back; replays by running it again, into the same places."""

    made: ClassVar[list["Rehearsed"]] = []

    def __init__(self):
        super().__init__(self.rehearse)
        self.replays = 0
        self.made.append(self)

    def _start(self, batch, optimizer, closure, run, rates):
        self.optimizer, self.closure = optimizer, closure
        super()._start(batch, optimizer, closure, run, rates)

    def rehearse(self, run):
        states = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        tensors = [p for g in self.optimizer.param_groups for p in g["params"]] + states
        kept, noise = [t.detach().clone() for t in tensors], torch.get_rng_state()
        run()
        with torch.no_grad():
            torch._foreach_copy_(tensors, kept)
        torch.set_rng_state(noise)

        def replay():
            self.replays += 1
            run()
            fresh, places = self.closure.consume_result(), self._result
            places.closure_loss.copy_(fresh.closure_loss.detach())
            for name, value in fresh.extra.items():
                places.extra[name].copy_(value)

        return replay


@pytest.fixture
def rehearsal(monkeypatch):
    Rehearsed.made = []
    monkeypatch.setattr(base, "StepGraph", Rehearsed)
    monkeypatch.setattr(base, "check_cuda_graphs", lambda trainer: None)
    return Rehearsed.made


@pytest.mark.parametrize(
    "options",
    [
        EVERYTHING,
        EVERYTHING | {"model__optimizer": "muon", "model__optimizer_kwargs": "{momentum: 0.9}"},
        EVERYTHING | {"model__ema_decay": 0.9, "activation": "gelu_stochastic"},
        {"model__layer_decay": 0.7, "model__optimizer": "adam", "data__augment": "digits"},
    ],
)
def test_a_replayed_step_is_the_step(tmp_path, rehearsal, options, capsys):
    one_by_one = train(tmp_path / "a", **options)
    recorded = train(tmp_path / "b", model__cuda_graphs="true", **options)
    assert "CUDA graphs: the whole step" in capsys.readouterr().out
    assert recorded["env"]["cuda_graphs"] == "step"
    assert one_by_one["env"]["cuda_graphs"] is None
    phases = 2 if "model__patch_dropout" in options else 1
    assert sum(g.recordings for g in rehearsal) == phases
    assert sum(g.replays for g in rehearsal) == recorded["steps"] - phases * WARMUP_STEPS
    # Learning rates are rounded to float32 on their way; Adam divides gradients near zero by their size.
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(weights(tmp_path / "b")[name], value, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(metrics(tmp_path / "b"), metrics(tmp_path / "a"), strict=True):
        assert ours["lr"] == theirs["lr"]
        if theirs["train_loss"]:
            assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-4)
            assert float(ours["train_top1"]) == pytest.approx(float(theirs["train_top1"]), abs=0.01)


def test_each_step_has_a_result_of_its_own(tmp_path, rehearsal, monkeypatch):
    """Not the place that the next replay writes to: losses are read many steps later."""
    seen = []
    original = Monitor.on_train_batch_end

    def keep(self, trainer, pl_module, outputs, batch, batch_idx):
        seen.append(outputs)
        original(self, trainer, pl_module, outputs, batch, batch_idx)

    monkeypatch.setattr(Monitor, "on_train_batch_end", keep)
    train(tmp_path / "a", model__cuda_graphs="true")
    losses = [float(outputs["batch_loss"]) for outputs in seen]
    assert len(set(losses)) == len(losses) > WARMUP_STEPS + 5
    assert [float(outputs["loss"]) for outputs in seen] == losses
    assert len({outputs["correct"].data_ptr() for outputs in seen}) == len(seen)


def test_a_recording_is_no_step_that_counts_for_speed(tmp_path, rehearsal, monkeypatch):
    meters = []
    original = SpeedMeter.on_train_start

    def keep(self, trainer, pl_module):
        meters.append(self)
        original(self, trainer, pl_module)

    monkeypatch.setattr(SpeedMeter, "on_train_start", keep)
    train(tmp_path / "a", model__cuda_graphs="true")
    assert meters[0].recordings == 1
    assert meters[0].compile_seconds > 0


class Schedule(Callback):
    """Changes what is no learning rate, once."""

    def __init__(self, change):
        self.change = change

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 10:
            self.change(trainer)


def decay_less(trainer):
    trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.0


def forget_faster(trainer):
    trainer.optimizers[0].param_groups[0]["betas"] = (0.5, 0.9)


def freeze_the_head(trainer):
    for parameter in trainer.lightning_module.network.head.parameters():
        parameter.requires_grad_(False)


@pytest.mark.parametrize("change", [decay_less, forget_faster, freeze_the_head])
def test_what_others_change_is_recorded_anew(tmp_path, rehearsal, monkeypatch, change):
    from vit_gelu.cli import options as command

    original = command.run_callbacks
    monkeypatch.setattr(command, "run_callbacks", lambda *a, **k: [*original(*a, **k), Schedule(change)])
    options = {"model__weight_decay": 0.5, "model__optimizer": "adamw"}
    train(tmp_path / "a", **options)
    train(tmp_path / "b", model__cuda_graphs="true", **options)
    assert sum(g.recordings for g in rehearsal) == 2
    for name, value in weights(tmp_path / "a").items():
        torch.testing.assert_close(weights(tmp_path / "b")[name], value, rtol=1e-3, atol=1e-4)


def test_nothing_is_recorded_while_activations_are_blended(tmp_path, rehearsal):
    first = train(tmp_path / "first", activation="gelu")
    options = {"model__pretrained": tmp_path / "first", "activation": "relu", "model__cuda_graphs": "true"}
    steps = first["steps"]
    train(tmp_path / "b", model__anneal_activation=steps - 5, **options)
    assert sum(g.replays for g in rehearsal) == 5 - WARMUP_STEPS


def test_what_cannot_be_recorded_is_an_error_of_the_option(tmp_path, rehearsal, monkeypatch):
    def fails(self, run):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Rehearsed, "rehearse", fails)
    with pytest.raises(
        ValueError, match=r"--model.cuda_graphs true: .*recorded: .*not permitted.*set it to false"
    ):
        train(tmp_path / "a", model__cuda_graphs="true")


def run_with(**changes):
    trainer = SimpleNamespace(world_size=1, precision="bf16-mixed", callbacks=[Monitor()])
    vars(trainer).update(changes)
    return trainer


class Listener(Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


class Watched(LightningModule):
    def on_before_optimizer_step(self, optimizer):
        pass


@pytest.mark.parametrize(
    ("trainer", "owner", "optimizer", "reason"),
    [
        (run_with(), LightningModule, "adamw", ""),
        (run_with(), LightningModule, "muon", ""),
        (run_with(world_size=2), LightningModule, "adamw", "several processes"),
        (run_with(precision="16-mixed"), LightningModule, "adamw", "scaled gradients"),
        (run_with(), LightningModule, "sgd", "the step of sgd cannot be recorded"),
        (run_with(), LightningModule, "lion", "the step of lion cannot be recorded"),
        (run_with(callbacks=[Listener()]), LightningModule, "adamw", r"Listener.on_after_backward"),
        (run_with(), Watched, "adamw", r"Watched.on_before_optimizer_step"),
    ],
)
def test_where_a_step_is_not_recorded_as_a_whole(trainer, owner, optimizer, reason):
    assert reason in reason_against(trainer, owner(), optimizer)
    assert bool(reason) == bool(reason_against(trainer, owner(), optimizer))


def test_the_network_alone_needs_the_compiler(tmp_path, rehearsal):
    with pytest.raises(
        ValueError, match=r"needs --model.compile true here.*the step of sgd cannot be recorded"
    ):
        train(tmp_path / "a", model__cuda_graphs="true", model__optimizer="sgd")


def test_auto_records_where_it_can_and_is_silent_elsewhere(tmp_path, monkeypatch, capsys):
    assert train(tmp_path / "cpu", model__cuda_graphs="auto")["env"]["cuda_graphs"] is None
    monkeypatch.setattr(base, "StepGraph", Rehearsed)
    monkeypatch.setattr(base, "check_cuda_graphs", lambda trainer: None)
    assert (
        train(tmp_path / "sgd", model__cuda_graphs="auto", model__optimizer="sgd")["env"]["cuda_graphs"]
        is None
    )
    assert "CUDA graphs" not in capsys.readouterr().out
    assert train(tmp_path / "adamw", model__cuda_graphs="auto")["env"]["cuda_graphs"] == "step"
    assert "CUDA graphs: the whole step" in capsys.readouterr().out


def test_the_network_alone_says_why(tmp_path, rehearsal, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(module, "compile_network", lambda net, device, **options: seen.update(options))
    monkeypatch.setattr("vit_gelu.training.speed.compiled_graphs", lambda: 1)
    record = train(
        tmp_path / "a",
        model__cuda_graphs="true",
        model__compile="true",
        model__optimizer="sgd",
        trainer__precision="32-true",
    )
    assert record["env"]["cuda_graphs"] == "network"
    assert seen == {"cuda_graphs": True, "autotune": False}
    assert "CUDA graphs: the network alone: the step of sgd" in capsys.readouterr().out
    assert sum(g.recordings for g in rehearsal) == 0


@needs_gpu
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler, on what it leaves undone
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_on_a_gpu(tmp_path, compiled, optimizer):
    options = copy.deepcopy(EVERYTHING) | {
        "model__optimizer": optimizer,
        "model__compile": compiled,
        "trainer__accelerator": "gpu",
        "model__activation": "gelu_stochastic",
    }
    one_by_one = train(tmp_path / "a", **options)
    recorded = train(tmp_path / "b", model__cuda_graphs="true", **options)
    assert recorded["env"]["cuda_graphs"] == "step"
    assert recorded["order_hash"] == one_by_one["order_hash"]
    assert TINY["trainer.log_every_n_steps"] == 3
    for ours, theirs in zip(metrics(tmp_path / "b"), metrics(tmp_path / "a"), strict=True):
        assert ours["lr"] == theirs["lr"]
        if theirs["train_loss"]:
            assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=5e-3)
