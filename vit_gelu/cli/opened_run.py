"""A trained run as the commands after training see it: its network, its options, and the images it is asked about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.evaluation_data import Split, load_split, run_config
from vit_gelu.models import VisionTransformer
from vit_gelu.models.build import Network
from vit_gelu.training.attention import compute_as_trained
from vit_gelu.training.checkpoint import find_checkpoint, load_network
from vit_gelu.training.record import read_record


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A checkpoint of ours, read.

    Attributes:
        checkpoint: the file.
        net: in evaluation mode, on the CPU.
        card: what the checkpoint says of itself; see ``load_network``.
        config: options of its run; empty for a checkpoint by itself.
    """

    checkpoint: Path
    net: Network
    card: dict[str, Any]
    config: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where results go unless the user says: the run folder, or that of a checkpoint by itself."""
        return self.checkpoint.parent.parent if self.config else self.checkpoint.parent

    @property
    def precision(self) -> str:
        """The precision of the run, so that its own numbers come out again."""
        # A record has what the Trainer made of what was asked for: bf16-mixed of bf16, or of 16-mixed on a CPU.
        record = read_record(self.checkpoint.resolve().parent.parent) if self.config else None
        own = (record or {}).get("env", {}).get("precision")
        own = own or (self.config.get("trainer") or {}).get("precision")
        return own if own in ("bf16-mixed", "16-mixed") else "32-true"

    @property
    def batch_size(self) -> int:
        """Images per forward pass in the run's own evaluation."""
        return (self.config.get("data") or {}).get("eval_batch_size") or 512

    @property
    def activation(self) -> str | None:
        """Of its MLPs; a network of timm that kept its own says which that is."""
        return self.card["network"]["activation"] or self.card["network"].get("native_activation")

    def split(
        self, name: str | None, root: str | None, split: str, *, resize: bool, same_classes: bool
    ) -> Split:
        """Part of a data set, fit for the network; see ``load_split``."""
        return load_split(
            self.card["data"],
            self.config.get("data") or {},
            name=name,
            root=root,
            split=split,
            resize=resize,
            same_classes=same_classes,
        )

    def use_its_attention(self, precision: str, batch_size: int, device: torch.device) -> str | None:
        """Compute attention as the run's evaluation did; returns the kernel, None where a network has none of ours."""
        if not isinstance(self.net, VisionTransformer):
            return None
        return compute_as_trained(self.net, self.config, batch=batch_size, precision=precision, device=device)

    @property
    def record(self) -> dict[str, Any]:
        """What a result says of where it comes from."""
        state = {name: self.card[name] for name in ("epoch", "step", "seed")}
        return {"checkpoint": {"path": str(self.checkpoint), **state}, "activation": self.activation}

    @property
    def as_trained(self) -> dict[str, Any]:
        """How images are brought to the network: ``mean``, ``std`` and ``upsample``, as in its training."""
        data = self.card["data"]
        upsample = tuple(data["image_size"]) if data.get("upsampled_from") else None
        return {"mean": tuple(data["mean"]), "std": tuple(data["std"]), "upsample": upsample}


def open_run(run: str, which: str | None) -> OpenedRun:
    """Read a run folder or checkpoint.

    Args:
        run: as the user named it.
        which: ``--checkpoint``: last or best of a folder; None: last.

    Raises:
        UsageError: a checkpoint chosen of a file.
        ValueError: see ``find_checkpoint`` and ``load_network``.
    """
    path = Path(run).expanduser()
    checkpoint = find_checkpoint(path, which or "last")
    if which and path.is_file():
        raise UsageError(f"--checkpoint {which}: only for a run folder; {run} is a file")
    net, card = load_network(checkpoint)
    return OpenedRun(checkpoint, net, card, run_config(checkpoint))
