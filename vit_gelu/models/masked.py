"""Masked autoencoder: a ViT sees a few patches of an image, a light decoder draws the others.

He et al. 2021 (arXiv:2111.06377). The ViT paper's own self-supervision (arXiv:2010.11929, §4.6 and appendix B.1.2)
predicts masked patches as well; this form of it costs a fraction, as the encoder never sees what is masked.
"""

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from vit_gelu.models.initialisation import initialise
from vit_gelu.models.layers import Block, take_patches
from vit_gelu.models.options import must_divide, whole
from vit_gelu.models.position import sincos2d
from vit_gelu.models.stem import PatchEmbed
from vit_gelu.models.vit import VisionTransformer
from vit_gelu.randomness import key, uniform

CONTRAST_EPS = 1e-6  # added to the variance of a patch, as in the paper's code


def visible_count(num_patches: int, mask_ratio: float) -> int:
    """How many patches stay visible.

    Raises:
        ValueError: a ratio outside (0, 1), or one that masks nothing or everything.

    >>> visible_count(64, 0.75)
    16
    """
    if isinstance(mask_ratio, bool) or not 0 < mask_ratio < 1:
        raise ValueError(f"--model.mask_ratio {mask_ratio}: must lie between 0 and 1")
    visible = round(num_patches * (1 - mask_ratio))
    if not 0 < visible < num_patches:
        what = "none stays visible" if visible == 0 else "none is masked"
        raise ValueError(
            f"--model.mask_ratio {mask_ratio}: of the {num_patches} patches of an image {what}; "
            "choose another ratio or a smaller --model.patch_size"
        )
    return visible


def draw_visible(draw_key: int, samples: Tensor, num_patches: int, visible: int) -> Tensor:
    """A uniformly random subset of the patches for each sample, fixed by the key and the sample's index alone.

    Args:
        draw_key: from ``randomness.key``.
        samples: indices of the samples in their data set, int64, shape (b,).
        num_patches: of an image.
        visible: how many to draw.

    Returns:
        Indices of the visible patches, int64, shape (b, visible), on the device of ``samples``.

    >>> both = draw_visible(key(0, "noise", 1), torch.tensor([7, 9]), 16, 4)
    >>> torch.equal(both[1:], draw_visible(key(0, "noise", 1), torch.tensor([9]), 16, 4))
    True
    """
    # Stable: of two equal numbers, every device takes the same first.
    return uniform(draw_key, samples, num_patches).argsort(dim=1, stable=True)[:, :visible]


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Images (b, c, h, w) -> pixels of the patches (b, patches, c * height * width), row-major."""
    height, width = patch_size
    return rearrange(images, "b c (y h) (x w) -> b (y x) (c h w)", h=height, w=width)


def unpatchify(pixels: Tensor, grid: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """The inverse of ``patchify``.

    >>> images = torch.arange(48.0).view(1, 3, 4, 4)
    >>> torch.equal(unpatchify(patchify(images, (2, 2)), (2, 2), (2, 2)), images)
    True
    """
    (rows, columns), (height, width) = grid, patch_size
    return rearrange(pixels, "b (y x) (c h w) -> b c (y h) (x w)", y=rows, x=columns, h=height, w=width)


def contrast(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch over its pixels and channels, each (..., 1)."""
    return pixels.mean(dim=-1, keepdim=True), (pixels.var(dim=-1, keepdim=True) + CONTRAST_EPS).sqrt()


class MaskedDecoder(nn.Module):
    """Draws all patches of an image from the encoded visible ones: arXiv:2111.06377, §3.

    Args:
        encoder: whose tokens it takes; its activation is the decoder's as well.
        embed_dim: width of its own tokens; a multiple of 4 (fixed sine-cosine positions) and of the heads.
        depth: number of blocks.
        num_heads: attention heads.
        init: scheme of the initial weights, as for ``VisionTransformer``.
        seed: fixes them.

    Attributes:
        config: ``embed_dim``, ``depth``, ``num_heads``.

    Shapes: tokens (b, prefix + visible, encoder's width), indices int64 (b, visible) -> (b, patches, pixels), where
    pixels = channels * patch height * patch width.

    Raises:
        ValueError: widths that do not fit each other.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        embed_dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        init: str = "timm",
        seed: int = 0,
    ) -> None:
        super().__init__()
        whole("decoder_embed_dim", embed_dim)
        whole("decoder_depth", depth)
        whole("decoder_num_heads", num_heads)
        must_divide("decoder_num_heads", num_heads, "decoder's width", embed_dim)
        if embed_dim % 4:
            raise ValueError(
                f"--model.decoder_embed_dim {embed_dim}: must be a multiple of 4, for its positions"
            )
        self.config = {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        options, embed = encoder.config, encoder.patch_embed
        assert isinstance(embed, PatchEmbed)
        self.num_prefix_tokens = encoder.num_prefix_tokens
        pixels = embed.in_channels * embed.patch_size[0] * embed.patch_size[1]
        # Activations draw as they are built; see VisionTransformer.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, "init", "decoder construction"))
            self.embed = nn.Linear(options["embed_dim"], embed_dim)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
            self.pos_embed: Tensor
            self.register_buffer("pos_embed", sincos2d(embed.grid_size, embed_dim)[None])
            self.blocks = nn.Sequential(
                *(
                    Block(
                        embed_dim,
                        num_heads,
                        4 * embed_dim,
                        activation=options["activation"],
                        activation_kwargs=options["activation_kwargs"],
                        norm_eps=options["norm_eps"],
                        mlp_memory=options["mlp_memory"],
                    )
                    for _ in range(depth)
                )
            )
            self.norm = nn.LayerNorm(embed_dim, eps=options["norm_eps"])
            self.head = nn.Linear(embed_dim, pixels)
        # A seed of its own: the encoder's parameters of the same names would start with the same numbers.
        initialise(self, key(seed, "init", "decoder"), init)

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        x = self.embed(tokens)
        prefix, seen = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        b, _, d = x.shape
        patches = self.mask_token.to(x.dtype).expand(b, self.pos_embed.shape[1], d)
        patches = patches.scatter(1, repeat(visible, "b k -> b k d", d=d), seen) + self.pos_embed
        x = torch.cat([prefix, patches], dim=1) if self.num_prefix_tokens else patches
        return self.head(self.norm(self.blocks(x)))[:, self.num_prefix_tokens :]


class MaskedAutoencoder(nn.Module):
    """Loss of drawing the masked patches: arXiv:2111.06377, §3 and §4.1.

    The encoder's own last norm, which may be ``norm`` or ``fc_norm``, is applied to every token, so that all of its
    weights are trained; its head is not used.

    Args:
        encoder: a ViT whose patches are linear; its images, patches and tokens are these.
        decoder: made for it.
        norm_pixels: predict each patch less its mean, over its standard deviation (the paper's Table 1d).

    Shapes: images (b, c, h, w), indices of the visible patches int64 (b, visible) -> losses float32 (b,): per image,
    the mean squared error over the pixels of its masked patches.

    Raises:
        ValueError: norm_pixels and patches of a single value.
    """

    def __init__(
        self, encoder: VisionTransformer, decoder: MaskedDecoder, *, norm_pixels: bool = True
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.norm_pixels = encoder, decoder, norm_pixels
        embed = encoder.patch_embed
        assert isinstance(embed, PatchEmbed)
        self.patch_size, self.grid_size = embed.patch_size, embed.grid_size
        if norm_pixels and embed.in_channels * self.patch_size[0] * self.patch_size[1] == 1:
            raise ValueError(
                "--model.norm_pixels true: a patch of a single grey pixel has no contrast; choose a larger "
                "--model.patch_size"
            )

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters, other than biases and norms, that weight decay should leave alone."""
        names = {f"encoder.{name}" for name in self.encoder.no_weight_decay()} | {"decoder.mask_token"}
        return names | {n for n, p in self.decoder.named_parameters(prefix="decoder") if _spared(p)}

    def encode(self, images: Tensor, visible: Tensor) -> Tensor:
        """Images and indices of the visible patches -> tokens (b, prefix + visible, width)."""
        net = self.encoder
        x = net.embed(images)
        prefix, patches = x[:, : net.num_prefix_tokens], x[:, net.num_prefix_tokens :]
        patches = take_patches(patches, visible)
        x = torch.cat([prefix, patches], dim=1) if net.num_prefix_tokens else patches
        return net.fc_norm(net.norm(net.blocks(x)))

    def predict(self, images: Tensor, visible: Tensor) -> Tensor:
        """As ``forward``, but what is drawn: pixels of all patches, (b, patches, pixels), normalised if so asked."""
        return self.decoder(self.encode(images, visible), visible)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        predicted = self.predict(images, visible).float()
        target = patchify(images, self.patch_size)
        if self.norm_pixels:
            mean, deviation = contrast(target)
            target = (target - mean) / deviation
        errors = (predicted - target).square().mean(dim=2)
        masked = torch.ones_like(errors).scatter(1, visible, 0.0)
        return (errors * masked).sum(dim=1) / (errors.shape[1] - visible.shape[1])

    @torch.no_grad()
    def reconstruct(self, images: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """What was shown and what was made of it.

        Returns:
            The mask, bool (b, 1, h, w), True where pixels were hidden; and the images with the hidden patches as
            predicted. With ``norm_pixels`` a predicted patch gets the mean and deviation of the true one,
            which the network was not asked for.
        """
        target = patchify(images, self.patch_size)
        predicted = self.predict(images, visible).float()
        if self.norm_pixels:
            mean, deviation = contrast(target)
            predicted = predicted * deviation + mean
        b, n, _ = target.shape
        hidden = torch.ones(b, n, 1, dtype=torch.bool, device=images.device).scatter(
            1, visible[..., None], False
        )
        area = self.patch_size[0] * self.patch_size[1]
        mask = unpatchify(hidden.expand(b, n, area), self.grid_size, self.patch_size)
        drawn = torch.where(hidden, predicted, target)
        return mask, unpatchify(drawn, self.grid_size, self.patch_size)


def _spared(parameter: Any) -> bool:
    return bool(getattr(parameter, "no_weight_decay", False))
