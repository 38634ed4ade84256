"""Checkpoints for the tests of ``vit_gelu.models.pretrained``: made with timm, random in every parameter."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def scrambled(model: nn.Module, seed: int = 1, size: float = 0.2) -> nn.Module:
    """Biases, norms, LayerScale and tokens too, so that a wrong mapping of any of them shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(size: tuple[int, int] | list[int], channels: int = 3, n: int = 2) -> Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def assert_same_logits(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """To 1e-5 of their size, in float32."""
    a, b = ours.eval()(x), theirs.eval()(x)
    assert b.std() > 0.01  # the comparison would see a difference
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, b.abs().max().item()))


def timm_folder(model: nn.Module, architecture: str, arguments: dict[str, Any], folder: Path) -> Path:
    """The folder that a hub repository of timm's format is: config.json with model_args, and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "test",
            "mean": MEAN,
            "std": STD,
            "custom_load": False,
            "fixed_input_size": True,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def small_timm(name: str, **arguments: Any) -> nn.Module:
    """A scrambled timm model of two narrow blocks, heads of width 64 (as a bare file's are assumed to be)."""
    return scrambled(timm.create_model(name, **{"embed_dim": 128, "depth": 2, "num_heads": 2, **arguments}))
