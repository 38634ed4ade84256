"""What a checkpoint is, once it has been read: an architecture, weights, and the images it was trained on."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

OPTION = "--model.pretrained"

# What may differ from a checkpoint without changing what its network computes in evaluation.
FREE = (
    "dropout",
    "attention_dropout",
    "patch_dropout",
    "drop_path",
    "attention",
    "mlp_memory",
    "residual_precision",
    "init",
    "zero_init_head",
    "seed",
)

# Mean and standard deviation of the 0-1 pixels that a network was trained on.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint, read and understood, but not built.

    Attributes:
        source: what the user wrote.
        name: timm's name with tag, a repository, or a file's stem.
        origin: ``timm``, ``google``, ``torchvision`` or ``vit_gelu``.
        options: of ``VisionTransformer``, for the checkpoint's own model with its native activation.
        state: its parameters under our names, float32, on the CPU.
        mean, std: of the images it was trained on, pixels in 0-1, one number per channel.
        sha256: of the file's bytes.
        notes: what was assumed or left out, a line each.
        class_names: in the order of its head; empty where the checkpoint does not say.
        trained_on: of a run of ours: ``name`` of its data set, ``fingerprint`` of its images, labels and their split,
            and ``val_fraction`` (None: not known); empty elsewhere.
        resizing: how its position embeddings and patch kernels are resized, a key of ``resize.RESIZINGS``;
            empty: as its origin does.

    Raises:
        ValueError: weights that are not finite.
    """

    source: str
    name: str
    origin: str
    options: dict[str, Any]
    state: dict[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    notes: tuple[str, ...] = ()
    resizing: str = ""
    class_names: tuple[str, ...] = ()
    trained_on: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.state.items():
            if not value.isfinite().all():
                raise ValueError(
                    f"{OPTION} {self.source}: {name} has values that are NaN or infinite; the file is of a training "
                    "that failed, or damaged"
                )

    def record(self) -> dict[str, Any]:
        """What a run's record keeps of it, in plain values."""
        return {
            "source": self.source,
            "name": self.name,
            "origin": self.origin,
            "sha256": self.sha256,
            "notes": list(self.notes),
        }

    def normalization(self, in_channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std for images of another number of channels: averaged for one, repeated for others."""
        own = self.options["in_channels"]
        if in_channels == own:
            return self.mean, self.std
        if in_channels == 1:
            return (sum(self.mean) / len(self.mean),), (sum(self.std) / len(self.std),)
        return (
            tuple(self.mean[i % own] for i in range(in_channels)),
            tuple(self.std[i % own] for i in range(in_channels)),
        )
