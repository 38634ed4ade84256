"""Trained and untrained networks for the commands that use them."""

import json

import pytest
import torch

from tests.training.helpers import train


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run folder: a small network that has learned the digits halfway, so that it makes mistakes."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(folder, trainer__max_epochs=6, data__augment="none", model__embed_dim=48, model__num_heads=3)
    record = json.loads((folder / "record.json").read_text())
    assert 0.3 < record["test"]["top1"] < 0.97
    return folder


def write_checkpoint(path, net, **data):
    """A checkpoint of an untrained network, with a card as training writes it."""
    card = {
        "schema": 1,
        "network": net.config,
        "data": {
            "name": "somewhere.npz",
            "class_names": [f"class {i}" for i in range(net.config["num_classes"])],
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.25, 0.3],
            "image_size": [16, 24],
            "in_channels": 3,
            "fingerprint": "0" * 32,
            "global_batch_size": 8,
            **data,
        },
        "seed": 0,
        "epoch": 0,
        "step": 0,
    }
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "vit_gelu": card}, path)
    return path


@pytest.fixture(scope="session")
def rgb_checkpoint(tmp_path_factory):
    """A checkpoint by itself: three classes, RGB images of 16 x 24 pixels, weights at random."""
    from vit_gelu.models import VisionTransformer

    net = VisionTransformer(
        image_size=(16, 24), patch_size=8, in_channels=3, num_classes=3, embed_dim=16, depth=1, num_heads=2, seed=1
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():  # large weights: probabilities that differ from image to image
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "rgb.ckpt", net)
