"""The one form that images take, wherever they come from."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images in memory.

    Attributes:
        images: uint8, shape (n, c, h, w); the strides may be channels-last.
        labels: int64, shape (n,).
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, too many to keep in memory: decoded by ``decode_image`` when they are needed.

    Attributes:
        paths: one file per image.
        labels: int64, shape (n,).
        channels: what the files are decoded to: 1 (grey) or 3 (RGB).
        image_size: height and width in pixels that they are decoded to.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    channels: int = 3
    image_size: tuple[int, int] = (224, 224)

    def __len__(self) -> int:
        return len(self.labels)


Images = ImageArrays | ImageFiles


@dataclass(frozen=True, eq=False)
class Source:
    """A data set, split and described.

    Attributes:
        name: as asked for: cifar10, cifar100, digits, or the stem of the path.
        train, val, test: the three parts; all of one size, channel count and class list.
        class_names: one name per label.
        mean, std: of the train pixels, per channel, with pixels scaled to 0-1.
        image_size: height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        fingerprint: hexadecimal hash of all three parts, images and labels, in order.
    """

    name: str
    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    channels: int
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)
