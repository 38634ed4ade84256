"""Images: where they come from, and how they reach the model."""

from typing import TYPE_CHECKING, Any

from vit_gelu.data.arrays import ImageArrays, ImageFiles, Images, Source
from vit_gelu.data.cifar import find_cifar
from vit_gelu.data.decode import decode_image
from vit_gelu.data.loader import Batch, EvalLoader, TrainLoader
from vit_gelu.data.sources import default_root, load_source

if TYPE_CHECKING:
    from vit_gelu.data.module import ImageData

__all__ = [
    "Batch",
    "EvalLoader",
    "ImageArrays",
    "ImageData",
    "ImageFiles",
    "Images",
    "Source",
    "TrainLoader",
    "decode_image",
    "default_root",
    "find_cifar",
    "load_source",
]


def __getattr__(name: str) -> Any:
    if name == "ImageData":  # the only part that needs Lightning: loaded when asked for
        from vit_gelu.data.module import ImageData

        return ImageData
    raise AttributeError(f"module 'vit_gelu.data' has no attribute {name!r}")
