"""The average that is evaluated and saved is the exponential moving average of the weights after each step."""

import pytest
import torch

from tests.training.helpers import train, weights
from vit_gelu.training.monitor import Monitor


def watched(tmp_path, monkeypatch, **options):
    """A run, and the weights after each of its steps."""
    trajectory = []
    original = Monitor.on_train_batch_end

    def patched(self, trainer, module, *args):
        original(self, trainer, module, *args)
        trajectory.append({k: v.detach().clone() for k, v in module.state_dict().items()})

    monkeypatch.setattr(Monitor, "on_train_batch_end", patched)
    return train(tmp_path / "run", **options), trajectory


def loop(trajectory, decay):
    average = {k: v.double() for k, v in trajectory[0].items()}
    for state in trajectory[1:]:
        average = {k: decay * a + (1 - decay) * state[k].double() for k, a in average.items()}
    return average


def test_average_equals_a_loop(tmp_path, monkeypatch):
    record, trajectory = watched(tmp_path, monkeypatch, model__ema_decay=0.8)
    average = loop(trajectory, 0.8)
    saved = weights(tmp_path / "run")
    for key, value in saved.items():
        torch.testing.assert_close(value.double(), average[key], rtol=1e-4, atol=1e-6)
    raw = weights(tmp_path / "run", "current_model_state")
    assert all(torch.equal(raw[k], trajectory[-1][k]) for k in raw)
    assert max((raw[k] - saved[k]).abs().max() for k in raw) > 1e-3

    # What was tested is the average: the network from the checkpoint repeats the record's counts.
    from vit_gelu.data import EvalLoader, load_source
    from vit_gelu.training import load_network

    net, card = load_network(tmp_path / "run")
    source = load_source("digits")
    loader = EvalLoader(source.test, batch_size=64, mean=card["data"]["mean"], std=card["data"]["std"])
    with torch.no_grad():
        correct = sum(int((net(b.images).argmax(1) == b.targets).sum()) for b in loader)
    assert correct == record["test"]["correct"]


@pytest.mark.parametrize(
    ("precision", "network", "averaged", "error"),
    [
        ("64-true", torch.float64, torch.float64, 1e-13),
        ("bf16-true", torch.bfloat16, torch.float32, 1e-6),
    ],
)
def test_average_is_at_least_as_exact_as_the_weights(
    tmp_path, monkeypatch, precision, network, averaged, error
):
    """However often it is evaluated, for which it is rounded to what the network computes in."""
    options = {"trainer__precision": precision, "trainer__val_check_interval": 3}
    _, trajectory = watched(tmp_path, monkeypatch, model__ema_decay=0.99, **options)
    average, saved = loop(trajectory, 0.99), weights(tmp_path / "run")
    raw = weights(tmp_path / "run", "current_model_state")
    for key, value in saved.items():
        assert (raw[key].dtype, value.dtype) == (network, averaged)
        torch.testing.assert_close(value.double(), average[key], rtol=error, atol=error)
        assert torch.equal(raw[key], trajectory[-1][key])
    (tmp_path / "alone").mkdir()
    _, alone = watched(tmp_path / "alone", monkeypatch, **options)
    assert all(torch.equal(alone[-1][k], v) for k, v in trajectory[-1].items())


def test_best_checkpoint_is_what_best_means(tmp_path):
    """``--test_checkpoint best`` tests best.ckpt, not the last average."""
    options = {"model__ema_decay": 0.5, "trainer__max_epochs": 4, "model__lr": 0.01}
    best = train(tmp_path / "run", "--test_checkpoint=best", **options)
    assert best["tested"] == "best"
    assert best["val"]["top1"] == best["best"]["val_top1"]
    again = train(tmp_path / "again", **options)
    assert again["best"] == best["best"]
    assert again["val"]["top1"] <= best["val"]["top1"]
