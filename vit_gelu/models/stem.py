"""From an image to a sequence of patch embeddings: linear patches, convolutions, or a ResNet's feature map."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vit_gelu.models.options import STEMS, choice, divisors, must_divide

# Blocks per stage of the ResNet in front; () is its first convolution and pooling alone.
RESNET_LAYERS: dict[str, tuple[int, ...]] = {
    "resnet_stem": (),
    "resnet26": (2, 2, 2, 2),
    "resnet50": (3, 4, 9),
}


def check_image_shape(x: Tensor, in_channels: int, image_size: tuple[int, int]) -> None:
    """Raise ValueError unless x is a batch (b, c, h, w) of the size that the model was built for."""
    if tuple(x.shape[1:]) != (in_channels, *image_size):
        raise ValueError(
            f"images of shape {tuple(x.shape[1:])} given, but the model takes "
            f"{(in_channels, *image_size)} (channels, height, width)"
        )


def _grid(image_size: tuple[int, int], patch_size: tuple[int, int], stride: int = 1) -> tuple[int, int]:
    """Rows and columns of patches; ValueError for a patch that does not divide the image or is no multiple of
    the stem's stride."""
    for side, image, patch in zip(("height", "width"), image_size, patch_size, strict=True):
        whole = "image size" if image_size[0] == image_size[1] else f"image {side}"
        must_divide("patch_size", patch, whole, image, multiple_of=stride)
    return image_size[0] // patch_size[0], image_size[1] // patch_size[1]


class Embed(nn.Module):
    """What all stems have.

    Attributes:
        image_size: height, width in pixels.
        in_channels: channels of the image.
        grid_size: rows, columns of patches.
    """

    image_size: tuple[int, int]
    in_channels: int
    grid_size: tuple[int, int]

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid_size)


class PatchEmbed(Embed):
    """Patches times a matrix: ViT paper (arXiv:2010.11929), Eq. 1. Names are timm's.

    Args:
        image_size: height, width in pixels.
        patch_size: height, width in pixels; must divide the image.
        in_channels: channels of the image.
        embed_dim: width of the tokens.
        bias: add a bias.

    Shapes: (b, c, h, w) -> (b, rows * columns, embed_dim), patches in row-major order.

    Raises:
        ValueError: a patch that does not divide the image.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_channels: int,
        embed_dim: int,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.grid_size = _grid(image_size, patch_size)
        self.image_size, self.in_channels, self.patch_size = image_size, in_channels, patch_size
        # A convolution by its parameters, for their names and shapes; it is computed as the product that it is.
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image_shape(x, self.in_channels, self.image_size)
        height, width = self.patch_size
        patches = rearrange(x, "b c (y h) (x w) -> b (y x) (c h w)", h=height, w=width)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class ConvUnit(nn.Module):
    """Convolution 3×3 of stride 2, norm over the channels, ReLU.

    Shapes: (b, in_channels, h, w) -> (b, channels, h / 2, w / 2).
    """

    def __init__(self, in_channels: int, channels: int, norm_eps: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(channels, eps=norm_eps)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        # With the channels last in memory both views are free.
        x = self.conv(x.contiguous(memory_format=torch.channels_last))
        return self.act(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class ConvEmbed(Embed):
    """Overlapping convolutions instead of patches: Xiao et al. 2021 (arXiv:2106.14881), §4.

    One convolution 3×3 of stride 2 for every halving that ``patch_size`` asks for, each twice as wide as the one
    before and the last as wide as the tokens, then a 1×1 projection. As in the paper the activation is ReLU, whatever
    the MLPs have; instead of its batch norm there is a norm over the channels, so that an image's logits depend on
    no other image.

    Args:
        image_size: height, width in pixels.
        patch_size: pixels between tokens: a square, and a power of two of at least 2; must divide the image.
        in_channels: channels of the image.
        embed_dim: width of the tokens.
        bias: add a bias in the projection.
        norm_eps: epsilon of the norms.

    Shapes: (b, c, h, w) -> (b, rows * columns, embed_dim).

    Raises:
        ValueError: a patch that is none of those.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_channels: int,
        embed_dim: int,
        *,
        bias: bool = True,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid_size = _grid(image_size, patch_size)
        valid = [n for n in divisors(math.gcd(*image_size)) if n > 1 and n & (n - 1) == 0]
        if patch_size[0] != patch_size[1] or patch_size[0] not in valid:
            given = patch_size[0] if patch_size[0] == patch_size[1] else list(patch_size)
            raise ValueError(
                f"--model.patch_size {given}: --model.stem conv halves the image by convolutions, so a patch is a "
                f"square of 2, 4, 8 … pixels; valid: {', '.join(map(str, valid)) or 'none for this size'}"
            )
        halvings = patch_size[0].bit_length() - 1
        self.image_size, self.in_channels = image_size, in_channels
        widths = [max(1, embed_dim >> (halvings - 1 - i)) for i in range(halvings)]
        self.convs = nn.Sequential(*(ConvUnit(i, o, norm_eps) for i, o in pairwise([in_channels, *widths])))
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image_shape(x, self.in_channels, self.image_size)
        tokens = rearrange(self.convs(x), "b d h w -> b (h w) d")
        return F.linear(tokens, self.proj.weight.flatten(1), self.proj.bias)


class HybridEmbed(Embed):
    """Patches of a ResNet's feature map: the hybrid of ViT paper §3.1 and appendix B. Names are timm's.

    The network is BiT's ResNet (GroupNorm, weight standardisation; Kolesnikov et al. 2019, arXiv:1912.11370),
    from timm. ``patch_size`` counts pixels of the image: with ``resnet50`` (stride 16, its fourth stage moved
    into the third) a patch of 16 is one cell of the feature map, which makes the paper's R50+ViT-B/16.

    Args:
        stem: ``resnet_stem`` (stride 4), ``resnet26`` (stride 32) or ``resnet50`` (stride 16).
        others: as for ``PatchEmbed``; the patch must be a multiple of the stride.

    Shapes: (b, c, h, w) -> (b, rows * columns, embed_dim).

    Raises:
        ValueError: unknown stem, a patch that is no multiple of its stride or does not divide the image.
    """

    def __init__(
        self,
        stem: str,
        image_size: tuple[int, int],
        patch_size: tuple[int, int],
        in_channels: int,
        embed_dim: int,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        layers = RESNET_LAYERS[choice("stem", stem, tuple(RESNET_LAYERS))]
        stride = 4 * 2 ** max(0, len(layers) - 1)
        self.grid_size = _grid(image_size, patch_size, stride)
        self.image_size, self.in_channels = image_size, in_channels
        self.backbone = _resnet(layers, in_channels)
        features = 64 * 2 ** (len(layers) + 1) if layers else 64
        kernel = (patch_size[0] // stride, patch_size[1] // stride)
        self.proj = nn.Conv2d(features, embed_dim, kernel, stride=kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check_image_shape(x, self.in_channels, self.image_size)
        return rearrange(self.proj(self.backbone(x)), "b d h w -> b (h w) d")


def _resnet(layers: tuple[int, ...], in_channels: int) -> nn.Module:
    from functools import partial

    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem

    conv = partial(StdConv2dSame, eps=1e-8)
    if not layers:
        return create_resnetv2_stem(in_channels, stem_type="same", preact=False, conv_layer=conv)
    return ResNetV2(
        layers=list(layers),
        num_classes=0,
        global_pool="",
        in_chans=in_channels,
        preact=False,
        stem_type="same",
        conv_layer=conv,
    )


def build_stem(
    stem: str,
    image_size: tuple[int, int],
    patch_size: tuple[int, int],
    in_channels: int,
    embed_dim: int,
    *,
    bias: bool = True,
    norm_eps: float = 1e-6,
) -> PatchEmbed | ConvEmbed | HybridEmbed:
    """``PatchEmbed`` for ``stem="patch"``, ``ConvEmbed`` for ``"conv"``, ``HybridEmbed`` for the others.

    ``norm_eps`` is for ``conv``; a ResNet has its own.

    >>> build_stem("patch", (32, 32), (4, 4), 3, 192).num_patches
    64
    """
    if choice("stem", stem, STEMS) == "patch":
        return PatchEmbed(image_size, patch_size, in_channels, embed_dim, bias=bias)
    if stem == "conv":
        return ConvEmbed(image_size, patch_size, in_channels, embed_dim, bias=bias, norm_eps=norm_eps)
    return HybridEmbed(stem, image_size, patch_size, in_channels, embed_dim, bias=bias)
