"""A run whose attention kernel knows one precision alone, as some do: what comes after training works in any."""

import json

import pytest
import torch
import yaml

from tests.training.helpers import train
from tests.training.test_fine_tuning import FREE
from vit_gelu.cli import evaluate, export, predict
from vit_gelu.models.attention_kernels import KERNELS, matmul
from vit_gelu.training import load_network
from vit_gelu.training.module import ClassificationModule

RECIPE = {"model__attention": "matmul", "trainer__precision": "bf16-mixed", "trainer__max_epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("particular") / "run"
    train(out, **RECIPE)
    return out


@pytest.fixture
def only_bfloat16(monkeypatch):
    def particular(qkv, dropout):
        if qkv.dtype != torch.bfloat16:
            raise RuntimeError(f"not for {qkv.dtype}")
        return matmul(qkv, dropout)

    monkeypatch.setitem(KERNELS, "matmul", particular)


def evaluated(capsys, *argv):
    capsys.readouterr()
    assert evaluate.main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_evaluation_computes_as_the_run_did(run, tmp_path, capsys, only_bfloat16):
    found = evaluated(capsys, run, "--out", tmp_path / "a")
    assert (found["precision"], found["attention"]) == ("bf16-mixed", "matmul")
    recorded = json.loads((run / "record.json").read_text())["test"]
    assert (found["correct"], found["loss"]) == (recorded["correct"], recorded["loss"])


def test_an_evaluation_in_another_precision_computes_by_rule(run, tmp_path, capsys, only_bfloat16):
    found = evaluated(capsys, run, "--out", tmp_path / "a", "--precision", "32-true")
    assert (found["precision"], found["attention"]) == ("32-true", "explicit")
    probe = evaluated(
        capsys, run, "--out", tmp_path / "b", "--precision", "32-true", "--probe", "knn", "--neighbours", "5"
    )
    assert probe["attention"] == "explicit"


def test_what_auto_came_to_is_used_again(run, tmp_path, capsys):
    out = tmp_path / "run"
    train(out, **RECIPE | {"model__attention": "auto", "model__attention_choice": "[explicit, matmul]"})
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["attention_choice"][1] == "matmul"
    found = evaluated(capsys, out)
    recorded = json.loads((out / "record.json").read_text())["test"]
    assert found["attention"] == "matmul"
    assert (found["correct"], found["loss"]) == (recorded["correct"], recorded["loss"])


def test_predictions_and_exports_work_in_float32(run, tmp_path, capsys, only_bfloat16):
    from PIL import Image

    Image.new("L", (8, 8), 100).save(tmp_path / "grey.png")
    assert predict.main([str(run), str(tmp_path / "grey.png"), "--json"]) == 0
    assert export.main([str(run), "--format", "state_dict", "--out", str(tmp_path / "weights")]) == 0
    net, _ = load_network(run)
    assert net.config["attention"] == "matmul"
    assert net(torch.zeros(1, 1, 8, 8)).dtype == torch.float32


def test_a_swap_is_compared_in_float32(run, tmp_path, only_bfloat16):
    record = train(tmp_path / "tuned", activation="relu", model__pretrained=run, **FREE, **RECIPE)
    assert record["pretrained"]["swap"]["n"] > 0
    assert record["attention"]["chosen"] == {"training": "matmul", "evaluation": "matmul"}


def test_lightnings_way_to_load_a_module_says_what_to_call(run):
    with pytest.raises(NotImplementedError, match=r"load_network\(PATH\)"):
        ClassificationModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
