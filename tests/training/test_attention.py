"""The kernels of a run: decided once, written down, repeated, and refused where they cannot run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.training.helpers import assert_same_weights, train, weights
from vit_gelu.models import VisionTransformer
from vit_gelu.models.attention_choice import Choice, Shape
from vit_gelu.training import attention
from vit_gelu.training.attention import agree, decide, shapes, without_choice
from vit_gelu.training.config_hash import config_hash
from vit_gelu.training.module import ClassificationModule

CPU = torch.device("cpu")
BOTH = [Shape(4, 5, 2, 4), Shape(4, 5, 2, 4, training=False)]
FAST = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 3, "model__attention": "auto"}
SMALL = {"embed_dim": 8, "depth": 2, "num_heads": 2}


@pytest.fixture
def measurements(monkeypatch):
    """Measurements that come to what the test says, in turn: training, evaluation, training, …"""
    answers = []

    def choose(shape, device):
        kernel = answers.pop(0)
        return Choice(kernel, {"explicit": 2.0, kernel: 1.0})

    monkeypatch.setattr(attention, "choose_attention", choose)
    return answers


def test_a_run_and_its_repetition(tmp_path, measurements, capsys):
    measurements += ["strided", "flash"]
    first = train(tmp_path / "first", **FAST)
    assert "attention: strided in training, flash in evaluation (measured" in capsys.readouterr().out
    assert first["attention"] == {
        "chosen": {"training": "strided", "evaluation": "flash"},
        "measured_ms": {
            "training": {"explicit": 2.0, "strided": 1.0},
            "evaluation": {"explicit": 2.0, "flash": 1.0},
        },
        "why": "measured on this machine",
    }
    config = yaml.safe_load((tmp_path / "first/config.yaml").read_text())
    assert config["model"]["attention"] == "auto"
    assert config["model"]["attention_choice"] == ["strided", "flash"]

    from vit_gelu.cli.train import main

    # Nothing is left to be measured: a second measurement would fail here.
    again = tmp_path / "again"
    assert main(["--config", str(tmp_path / "first/config.yaml"), "--out", str(again)]) == 0
    second = json.loads((again / "record.json").read_text())
    assert second["attention"]["chosen"] == first["attention"]["chosen"]
    assert second["attention"]["why"] == "as in the configuration"
    assert second["test"] == first["test"]
    assert second["config_hash"] == first["config_hash"]
    assert_same_weights(weights(tmp_path / "first"), weights(again))
    assert torch.load(again / "checkpoints/last.ckpt")["vit_gelu"]["network"]["attention"] == "auto"


def test_the_kernels_are_those_that_compute(tmp_path, measurements, monkeypatch):
    from vit_gelu.models.attention_kernels import KERNELS

    measurements += ["matmul", "math"]
    calls = []
    for name, kernel in dict(KERNELS).items():
        monkeypatch.setitem(
            KERNELS, name, lambda qkv, p, name=name, kernel=kernel: (calls.append(name), kernel(qkv, p))[1]
        )
    train(tmp_path / "run", **FAST, model__pooling="mean")
    assert calls.count("matmul") == 3 * 2  # steps, blocks
    assert set(calls) == {"matmul", "math", "explicit"}  # explicit: the count of operations, once
    assert calls.count("explicit") == 2


@pytest.mark.parametrize("kernel", ["explicit", "strided", "flash", "math"])
def test_asked_for(kernel):
    used = decide(BOTH, CPU, asked=kernel, chosen=None)
    assert (used.training, used.evaluation, used.why) == (kernel, kernel, "asked for")


def test_what_cannot_run_here_is_refused_with_what_can():
    with pytest.raises(
        ValueError, match=r"--model.attention cudnn: .*float32 on cpu; can: auto, explicit, mat"
    ):
        decide(BOTH, CPU, asked="cudnn", chosen=None)


def test_a_choice_made_on_another_device_is_made_anew(measurements):
    measurements += ["strided", "explicit"]
    used = decide(BOTH, CPU, asked="auto", chosen=["cudnn", "efficient"])
    assert (used.training, used.evaluation) == ("strided", "explicit")
    assert "cudnn and efficient of the configuration cannot run on this device" in used.why


def test_by_rule_where_nothing_was_measured(monkeypatch):
    monkeypatch.setattr(attention, "choose_attention", lambda shape, device: Choice("explicit"))
    assert decide(BOTH, CPU, asked="auto", chosen=None).why == "by rule, nothing measured"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_choice": ["strided"]}, "must be two kernels"),
        ({"attention_choice": ["auto", "flash"]}, "must be two kernels"),
        ({"attention_choice": ["flush", "flash"]}, "Did you mean 'flash'"),
        ({"attention": "sdpa", "attention_choice": ["sdpa", "sdpa"]}, "goes with --model.attention auto"),
    ],
)
def test_bad_choices_are_refused(options, message):
    with pytest.raises(ValueError, match=r"--model\.attention_choice") as error:
        ClassificationModule(**options)
    assert message in str(error.value)


def test_the_record_proves_its_config_and_last_finds_it(tmp_path, measurements, monkeypatch):
    from vit_gelu.cli.run_folder import newest_like

    monkeypatch.chdir(tmp_path)
    measurements += ["strided", "flash"]
    record = train(tmp_path / "runs/one", **FAST)
    config = yaml.safe_load((tmp_path / "runs/one/config.yaml").read_text())
    assert config_hash(config) == record["config_hash"]
    asked = without_choice(config)
    assert config_hash(asked) != config_hash(config)
    assert newest_like(Path("runs"), asked) == newest_like(Path("runs"), config) == Path("runs/one")
    with pytest.raises(ValueError, match="no run of these options"):
        newest_like(Path("runs"), {**asked, "model": {**asked["model"], "attention": "flash"}})


@pytest.mark.parametrize(
    ("precision", "dtype", "autocast"),
    [
        ("32-true", "float32", False),
        ("bf16-mixed", "bfloat16", True),
        ("16-mixed", "float16", True),
        ("bf16-true", "bfloat16", False),
        ("64-true", "float64", False),
    ],
)
def test_shapes(precision, dtype, autocast):
    net = VisionTransformer(8, 2, **SMALL, patch_dropout=0.5, attention_dropout=0.1)
    training, evaluation = shapes(net, 32, precision, "cpu", compiled=True)
    common = {"batch": 32, "heads": 2, "head_dim": 4, "dtype": dtype, "autocast": autocast}
    assert training == Shape(
        tokens=9, longest=17, dropout=True, compiled=True, **common
    )  # half of 16 patches, and the class
    assert evaluation == Shape(tokens=17, training=False, **common)


class Process:
    """A trainer's view of one process of two; what process 0 broadcast is given."""

    world_size, precision = 2, "32-true"

    def __init__(self, zero, said=None):
        self.is_global_zero = zero
        self.said = said
        self.strategy = SimpleNamespace(root_device=CPU, broadcast=self.broadcast)

    def broadcast(self, value):
        self.said = value if self.is_global_zero else self.said
        return self.said


def test_process_0_decides_and_all_follow(measurements):
    measurements += ["strided", "flash"]  # the second process has none to ask
    data = SimpleNamespace(global_batch_size=8)
    nets = [VisionTransformer(8, 4, **SMALL) for _ in range(2)]
    zero = Process(True)
    agree(zero, nets[0], data, None, compiled=False)
    agree(Process(False, zero.said), nets[1], data, None, compiled=False)
    assert [net.attention_in_use for net in nets] == [("strided", "flash")] * 2


def test_a_refusal_reaches_every_process():
    data = SimpleNamespace(global_batch_size=8)
    net = VisionTransformer(8, 4, **SMALL, attention="cudnn")
    zero = Process(True)
    for process in (zero, Process(False)):
        process.said = zero.said
        with pytest.raises(ValueError, match=r"--model\.attention cudnn: cannot"):
            agree(process, net, data, None, compiled=False)
