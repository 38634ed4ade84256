"""What other people's loggers are told: a run each, its options and its outcome."""

import pytest
from lightning.pytorch.loggers import Logger

from tests.training.helpers import train
from tests.training.test_resume import train_until
from vit_gelu.training.trackers import Trackers

OPTIONS = {"trainer__max_epochs": 1, "model__warmup_epochs": 0}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Weights & Biases without a network: what each run held when it ended, by its name."""
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    seen, end = {}, Trackers.end

    def looked_at(self, failed):
        run = wandb.run
        seen.setdefault(run.name, []).append((run.id, run.project, dict(run.config), dict(run.summary)))
        end(self, failed)
        assert wandb.run is None

    monkeypatch.setattr(Trackers, "end", looked_at)
    return seen


@pytest.mark.filterwarnings("ignore")
def test_every_run_is_one_of_weights_and_biases(tmp_path, monkeypatch, offline):
    """In one process, as an ablation's worker trains them; a run that was stopped goes on with its own."""
    logged = '--loggers=["csv","wandb"]'
    records = {name: train(tmp_path / name, logged, activation=name, **OPTIONS) for name in ("gelu", "relu")}
    options = OPTIONS | {"loggers": '["csv","wandb"]'}
    train_until(monkeypatch, 3, tmp_path / "silu", activation="silu", **options)
    records["silu"] = train(tmp_path / "silu", "--ckpt_path", "last", activation="silu", **options)
    assert [len(offline[name]) for name in records] == [1, 1, 2]
    assert len({runs[0][0] for runs in offline.values()}) == 3
    assert offline["silu"][0][0] == offline["silu"][1][0]
    for name, record in records.items():
        _, project, config, summary = offline[name][-1]
        assert project == "ours"
        assert config["model"]["activation"] == name
        assert config["model"]["lr"] == 0.003
        assert summary["test/correct"] == record["test"]["correct"]
        assert summary["speed/peak_memory_bytes"] == record["speed"]["peak_memory_bytes"]
        assert (summary["status"], summary["order_hash"]) == ("finished", record["order_hash"])


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_somebody_else_began_stays_theirs(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=str(tmp_path), project="sweep") as theirs:
        train(tmp_path / "run", '--loggers=["csv","wandb"]', **OPTIONS)
        assert wandb.run is theirs
        assert theirs.summary["status"] == "finished"


def test_tensorboard_has_options_and_outcome(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(tmp_path / "run", '--loggers=["csv","tensorboard"]', **OPTIONS)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (top1,) = found.Scalars("outcome/test/top1")
    assert top1.value == pytest.approx(record["test"]["top1"])
    assert found.PluginTagToContent("hparams")


class Told(Logger):
    """Somebody's logger: keeps what it is told."""

    name, version = "told", "0"

    def __init__(self):
        super().__init__()
        self.options, self.status = [], None

    def log_hyperparams(self, params, *args, **kwargs):
        self.options.append(params)

    def log_metrics(self, metrics, step=None):
        pass

    def finalize(self, status):
        self.status = status


def test_others_are_told_the_options_once():
    logger, config = Told(), {"model": {"activation": "gelu"}}
    trackers = Trackers([logger], config)
    trackers.begin()
    trackers.conclude({"status": "finished"})
    trackers.end(failed=False)
    assert logger.options == [config]
    assert logger.status == "success"
