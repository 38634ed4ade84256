"""Models: the Vision Transformer and its parts."""

from vit_gelu.models.layers import Attention, Block, DropPath, LayerScale, Mlp
from vit_gelu.models.stem import ConvEmbed, HybridEmbed, PatchEmbed
from vit_gelu.models.vit import VIT_SIZES, VisionTransformer, build_vit

__all__ = [
    "VIT_SIZES",
    "Attention",
    "Block",
    "ConvEmbed",
    "DropPath",
    "HybridEmbed",
    "LayerScale",
    "Mlp",
    "PatchEmbed",
    "VisionTransformer",
    "build_vit",
]
