"""A checkpoint that is not a run of ours, as ``--model.pretrained`` takes it, and the images it is asked about."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_gelu.cli.errors import UsageError


def is_run(name: str) -> bool:
    """Whether the subject is, or looks like, a run folder or checkpoint of ours, and no other checkpoint."""
    path = Path(name).expanduser()
    if path.is_dir():
        return not (path / "config.json").is_file()
    on_the_hub = name.startswith(("hf-hub:", "hf_hub:"))
    return path.suffix == ".ckpt" or (not path.exists() and "/" in name and not on_the_hub)


@dataclass(frozen=True, eq=False)
class OpenedPretrained:
    """Somebody else's network without its head, and a data set brought to its size.

    Attributes:
        pretrained: what was read; see ``read_pretrained``.
        net: in evaluation mode, on the CPU.
        changes: what was adapted, a line each.
        data: ``ImageData``, set up.
        precision, batch_size: of its passes, unless the user says.
    """

    pretrained: Any
    net: Any
    changes: tuple[str, ...]
    data: Any
    precision: str = "32-true"
    batch_size: int = 512

    @property
    def as_trained(self) -> dict[str, Any]:
        """How images are brought to the network: ``mean``, ``std`` and ``upsample``."""
        return {"mean": self.data.mean, "std": self.data.std, "upsample": self.data.upsample}

    def split(self, name: str) -> Any:
        """The ``Split`` of that name."""
        from vit_gelu.cli.evaluation_data import Split

        return Split(self.data.source, name, getattr(self.data.source, name), None)

    def folder_name(self, prefix: str, split: str) -> str:
        """``PREFIX-DATA-SPLIT-CHECKPOINT``."""
        return f"{prefix}-{self.data.source.name}-{split}-{self.pretrained.name.replace('/', '-')}"

    @property
    def record(self) -> dict[str, Any]:
        """What a result says of where it comes from."""
        pretrained = self.pretrained
        return {
            "checkpoint": {
                "source": pretrained.source,
                "sha256": pretrained.sha256,
                "origin": pretrained.origin,
            },
            "changes": list(self.changes),
            "activation": pretrained.options["activation"],
        }


def open_pretrained(options: Any, what: str) -> OpenedPretrained:
    """Read a checkpoint and a data set.

    Args:
        options: of a command: ``run``, ``checkpoint``, ``data_name``, ``data_root``, ``num_workers``.
        what: is to be done, for the message of a data set that is not named.

    Raises:
        UsageError: no data set named, or an option that only a run has.
        ValueError: see ``read_pretrained`` and ``build_pretrained``.
    """
    from vit_gelu.data import ImageData
    from vit_gelu.models.options import pair
    from vit_gelu.models.pretrained import build_pretrained, read_pretrained

    if options.data_name is None:
        no_run = "" if Path(options.run).expanduser().exists() else f" ({options.run} is no run folder here)"
        raise UsageError(f"--data.name: say on which data set {what.format(options.run)}{no_run}")
    if options.checkpoint is not None:
        raise UsageError(f"--checkpoint {options.checkpoint}: only for a run folder; {options.run} is none")
    pretrained = read_pretrained(options.run)
    data = ImageData(options.data_name, options.data_root, num_workers=options.num_workers)
    data.follow(pair("image_size", pretrained.options["image_size"]), pretrained.normalization)
    network, changes = build_pretrained(
        pretrained, image_size=data.image_size, in_channels=data.in_channels, num_classes=0
    )
    notes = (*pretrained.notes, *(change.text for change in changes))
    return OpenedPretrained(pretrained, network.eval(), notes, data)
