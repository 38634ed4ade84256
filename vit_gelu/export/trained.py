"""The network of a run as an export sees it: in evaluation mode, float32, on the CPU, and what is known about it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_gelu.data.batch import Normalize
from vit_gelu.models.build import Network
from vit_gelu.models.timm_model import TimmModel
from vit_gelu.training.checkpoint import load_network
from vit_gelu.training.record import read_record


@dataclass(frozen=True, eq=False)
class Trained:
    """What is exported.

    Attributes:
        net: the network.
        card: the checkpoint's card: ``network``, ``data``, ``seed``, ``epoch``, ``step``.
        checkpoint: its file.
        options: the run's resolved options; empty for a checkpoint by itself.
        record: of the run, if it has ended.
        notes: what whoever uses the export should know, one sentence each.
    """

    net: Network
    card: dict[str, Any]
    checkpoint: Path
    options: dict[str, Any]
    record: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.card["data"]["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.card["data"]["std"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        height, width = self.card["data"]["image_size"]
        return self.card["data"]["in_channels"], height, width

    @property
    def class_names(self) -> list[str]:
        """In the order of the head; empty where there is none."""
        return list(self.card["data"]["class_names"]) if self.net.config["num_classes"] else []

    @property
    def activation(self) -> str:
        """Of the network, by name."""
        config = self.net.config
        return config["activation"] or config.get("native_activation") or "its own"


def read_trained(checkpoint: Path, options: dict[str, Any]) -> Trained:
    """Load a checkpoint for an export.

    Args:
        checkpoint: a ``.ckpt`` file.
        options: of its run; empty where there are none.

    Raises:
        ValueError: not a checkpoint, or one that no export can say the truth about: in the midst of annealing.
    """
    net, card = load_network(checkpoint)
    if "anneal" in net.config:
        raise ValueError(
            f"{checkpoint}: its activation is half way from {net.config['activation']} to "
            f"{net.config['anneal']['activation']} (alpha {net.config['anneal_alpha']:.3g}); "
            "export the end of the run: --checkpoint last"
        )
    folder = checkpoint.resolve().parent.parent
    record = read_record(folder) if options else None
    notes = []
    if net.config["activation"] == "gelu_stochastic":
        notes.append(
            "Trained with gelu_stochastic, which is exact GELU in evaluation; exported formats compute that."
        )
    return Trained(net.float().eval(), card, checkpoint, options, record, notes)


class Exported(nn.Module):
    """The network under one input name, with the normalisation in front if asked for.

    Args:
        net: of a run.
        preprocessing: takes uint8 pixels and normalises them itself.

    Shapes: ``images`` (b, c, h, w), float32 normalised, or uint8 -> logits (b, classes), float32.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, trained: Trained, *, preprocessing: bool) -> None:
        super().__init__()
        net = trained.net
        self.net: nn.Module = net.timm_model if isinstance(net, TimmModel) else net
        self.preprocessing = preprocessing
        normalize = Normalize(trained.mean, trained.std)
        self.register_buffer("scale", normalize.scale, persistent=False)
        self.register_buffer("shift", normalize.shift, persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if self.preprocessing:
            images = images.to(torch.float32) * self.scale + self.shift
        return self.net(images)
