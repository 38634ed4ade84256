"""Checkpoints that cannot be used: exit code 2, a few lines, no run folder, and nothing in them is carried out."""

import os
import pickle

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.cli.test_bad_input import failure
from tests.training.helpers import arguments

OPEN = {
    "model__patch_size": "null",
    "model__embed_dim": "null",
    "model__depth": "null",
    "model__num_heads": "null",
}


def state():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=5
    ).state_dict()


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def truncated(folder):
    torch.save(state(), folder / "net.pth")
    content = (folder / "net.pth").read_bytes()
    (folder / "net.pth").write_bytes(content[: len(content) // 2])
    return folder / "net.pth", ["net.pth"]


def code(folder):
    with (folder / "net.pth").open("wb") as file:
        pickle.dump({"model": Payload(folder / "made")}, file)
    return folder / "net.pth", ["net.pth"]


def objects(folder):
    np.savez(folder / "net.npz", embedding=np.array([{"a": 1}], dtype=object))
    return folder / "net.npz", ["net.npz"]


def missing(folder):
    kept = {k: v for k, v in state().items() if not k.startswith("blocks.1.mlp")}
    save_file(kept, folder / "net.safetensors")
    return folder / "net.safetensors", ["blocks.1.mlp.fc1"]


def surplus(folder):
    save_file(state() | {"extra.weight": torch.zeros(2)}, folder / "net.safetensors")
    return folder / "net.safetensors", ["extra.weight"]


def another_architecture(folder):
    save_file(timm.create_model("test_resnet").state_dict(), folder / "net.safetensors")
    return folder / "net.safetensors", ["net.safetensors"]


def unknown_tag(folder):
    return "vit_base_patch16_224.augreg_in22k", ["augreg_in21k"]


def unknown_name(folder):
    return "vit_bas_patch16_224.augreg_in21k", ["vit_base_patch16_224"]


def no_file(folder):
    save_file(state(), folder / "net.safetensors")
    return folder / "nat.safetensors", ["no such file", "net.safetensors"]


@pytest.mark.parametrize(
    "broken",
    [truncated, code, objects, missing, surplus, another_architecture, unknown_tag, unknown_name, no_file],
    ids=lambda function: function.__name__,
)
def test_refused(capsys, tmp_path, broken):
    checkpoint, expected = broken(tmp_path)
    options = {"model__pretrained": checkpoint, **OPEN}
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    for part in ["--model.pretrained", *expected]:
        assert part in message, message
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "made").exists(), "code of a checkpoint was carried out"


def test_patches_that_do_not_divide_the_images(capsys, tmp_path):
    save_file(state(), tmp_path / "net.safetensors")
    options = {"model__pretrained": tmp_path / "net.safetensors", "data__image_size": 20, **OPEN}
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert "20" in message
    assert "8" in message


def test_offline_it_says_where_the_file_belongs(capsys, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = {"model__pretrained": "vit_tiny_patch16_224.augreg_in21k", **OPEN}
    message = failure(capsys, ["train", *arguments(tmp_path / "run", **options)])
    assert "vit_tiny_patch16_224.augreg_in21k" in message
    assert str(constants.HF_HUB_CACHE) in message
