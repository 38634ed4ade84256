"""Checkpoints to export: of networks that were never trained, with weights large enough to show in the logits."""

import pytest
import torch

from tests.cli.conftest import digits_run, write_checkpoint  # noqa: F401
from vit_gelu.models import VisionTransformer

SMALL = {"patch_size": 4, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2, "seed": 1}


def scramble(net):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return net


@pytest.fixture
def checkpoint(tmp_path):
    """Makes ``net.ckpt`` of a small network with the given options, or of a given network."""

    def make(net=None, **options):
        if net is None:
            net = VisionTransformer(**{"image_size": (16, 24), "in_channels": 3, **SMALL, **options})
        data = {"image_size": list(net.config["image_size"]), "in_channels": net.config["in_channels"]}
        if data["in_channels"] == 1:
            data |= {"mean": [0.4], "std": [0.2]}
        return write_checkpoint(tmp_path / "net.ckpt", scramble(net), **data)

    return make
