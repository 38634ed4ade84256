"""Train, export, load in plain timm: equal logits, for every activation that timm can build."""

import json

import pytest
import timm
import torch

from tests.training.helpers import train
from vit_gelu.cli.export import main
from vit_gelu.data import load_source
from vit_gelu.export.timm_form import TIMM_ACTIVATIONS, TIMM_GATES
from vit_gelu.training import load_network

ACTIVATIONS = [*TIMM_ACTIVATIONS, *TIMM_GATES]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_trained_exported_and_loaded_by_timm(tmp_path, activation, capsys):
    train(tmp_path / "run", model__activation=activation, model__depth=1, trainer__max_epochs=1)
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--format", "timm", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["verified"]["images"] == "digits, validation"
    assert record["verified"]["n"] == 64

    net, card = load_network(tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run' / 'export-timm'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    pixels = load_source("digits").test.images.float() / 255
    mean, std = (torch.tensor(config[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
    ready = (pixels - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(model(ready), net(ready), rtol=1e-5, atol=1e-5)
    assert tuple(config["input_size"]) == (1, 8, 8)
    assert list(model.pretrained_cfg["label_names"]) == card["data"]["class_names"]
