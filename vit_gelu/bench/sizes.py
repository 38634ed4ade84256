"""What is measured: sizes of real ViTs, by name or as numbers."""

import re
from dataclasses import dataclass, replace

from vit_gelu.models.layers import hidden_size
from vit_gelu.models.vit import VIT_SIZES
from vit_gelu.suggest import unknown

MLP_RATIO = 4


@dataclass(frozen=True)
class ModelSize:
    """A ViT, its images and a batch.

    Attributes:
        label: as the field writes it, such as S/16@224.
        model: key of ``VIT_SIZES``.
        patch_size, image_size: pixels.
        num_classes: of the head.
        cpu_batch, gpu_batch: images at a time, unless asked otherwise.
    """

    label: str
    model: str
    patch_size: int
    image_size: int
    num_classes: int
    cpu_batch: int
    gpu_batch: int

    def batch(self, device_type: str) -> int:
        """The batch for a kind of device."""
        return self.gpu_batch if device_type == "cuda" else self.cpu_batch


SIZES = {
    size.label: size
    for size in (
        ModelSize("Ti/4@32", "vit_tiny", 4, 32, 10, cpu_batch=32, gpu_batch=1024),
        ModelSize("S/16@224", "vit_small", 16, 224, 1000, cpu_batch=4, gpu_batch=256),
        ModelSize("B/16@224", "vit_base", 16, 224, 1000, cpu_batch=2, gpu_batch=256),
    )
}


def default_sizes(device_type: str) -> list[str]:
    """Names of the sizes that are measured unless others are asked for."""
    return list(SIZES) if device_type == "cuda" else ["Ti/4@32"]


def model_size(text: str) -> ModelSize:
    """``NAME`` or ``NAME:BATCH``, with a name of ``SIZES`` in any case.

    Raises:
        ValueError: no such size, or a batch that is no positive number.

    >>> model_size("s/16@224:7").batch("cuda")
    7
    """
    name, colon, batch = text.partition(":")
    by_lower = {label.lower(): size for label, size in SIZES.items()}
    if name.lower() not in by_lower:
        raise ValueError("--sizes: " + unknown("size", text, SIZES) + "; with a batch: Ti/4@32:256")
    size = by_lower[name.lower()]
    if not colon:
        return size
    if not batch.isdecimal() or int(batch) < 1:
        raise ValueError(f"--sizes {text}: the batch after ':' must be a whole number of at least 1")
    return replace(size, cpu_batch=int(batch), gpu_batch=int(batch))


@dataclass(frozen=True)
class HiddenSize:
    """The hidden tensor of a ViT's MLP.

    Attributes:
        label: name of the size, or the numbers.
        shape: (batch, tokens, hidden).
        gated_hidden: units after the gate of a gated MLP with equally many parameters.
    """

    label: str
    shape: tuple[int, int, int]
    gated_hidden: int

    def input_shape(self, gated: bool) -> tuple[int, int, int]:
        """Shape of the activation's input; a gated one gets twice what comes out."""
        batch, tokens, hidden = self.shape
        return batch, tokens, 2 * self.gated_hidden if gated else hidden


def hidden_tensor(text: str, device_type: str) -> HiddenSize:
    """A name as for ``model_size``, or BATCHxTOKENSxHIDDEN.

    Raises:
        ValueError: neither.

    >>> hidden_tensor("Ti/4@32:128", "cpu").shape, hidden_tensor("2x197x1536", "cpu").gated_hidden
    ((128, 65, 768), 1024)
    """
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if numbers:
        batch, tokens, hidden = (int(n) for n in numbers.groups())
        if min(batch, tokens, hidden) < 1:
            raise ValueError(f"--sizes {text}: each of BATCHxTOKENSxHIDDEN must be at least 1")
        width = max(1, hidden // MLP_RATIO)
        return HiddenSize(text, (batch, tokens, hidden), hidden_size(width, hidden / width, gated=True))
    try:
        size = model_size(text)
    except ValueError as error:
        raise ValueError(f"{error}; or BATCHxTOKENSxHIDDEN: 32x197x3072") from None
    width = VIT_SIZES[size.model].embed_dim
    tokens = (size.image_size // size.patch_size) ** 2 + 1
    shape = (size.batch(device_type), tokens, MLP_RATIO * width)
    return HiddenSize(size.label, shape, hidden_size(width, MLP_RATIO, gated=True))
