"""Images: where they come from, and how they reach the model."""

from vit_gelu.data.arrays import ImageArrays, ImageFiles, Images, Source
from vit_gelu.data.cifar import find_cifar
from vit_gelu.data.decode import decode_image
from vit_gelu.data.sources import default_root, load_source

__all__ = [
    "ImageArrays",
    "ImageFiles",
    "Images",
    "Source",
    "decode_image",
    "default_root",
    "find_cifar",
    "load_source",
]
