"""Plain weights: ``model.safetensors`` and ``model.pth`` with timm's names; ``network.json`` builds the network."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from vit_gelu.export.trained import Trained
from vit_gelu.models.build import build_network
from vit_gelu.training.checkpoint_io import pickled
from vit_gelu.training.record import write_json
from vit_gelu.whole_file import whole_file

WEIGHTS, PICKLED, NETWORK = "model.safetensors", "model.pth", "network.json"


def tensors_of(trained: Trained) -> dict[str, Tensor]:
    """The state dict, each tensor with memory of its own, as safetensors needs it."""
    return {name: value.detach().clone().contiguous() for name, value in trained.net.state_dict().items()}


def write_state_dict(trained: Trained, folder: Path) -> None:
    """Write the three files."""
    state = tensors_of(trained)
    with whole_file(folder / WEIGHTS, "wb") as file:
        file.write(save(state, metadata={"format": "pt"}))
    with whole_file(folder / PICKLED, "wb") as file:
        file.write(pickled(state).getbuffer())
    data = trained.card["data"]
    kept = ("class_names", "mean", "std", "image_size", "in_channels")
    write_json(folder / NETWORK, {"network": trained.net.config, "data": {k: data[k] for k in kept}})


def read_state_dict(folder: Path, weights: str = WEIGHTS) -> torch.nn.Module:
    """The network of such a folder, in evaluation mode.

    Args:
        folder: with ``network.json``.
        weights: which of the two files.
    """
    config = json.loads((folder / NETWORK).read_text(encoding="utf-8"))["network"]
    net = build_network(config)
    if weights == PICKLED:
        state = torch.load(folder / weights, map_location="cpu", weights_only=True)
    else:
        state = load_file(folder / weights)
    net.load_state_dict(state)
    return net.eval()
