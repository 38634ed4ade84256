"""What attention looks at: how far (ViT paper, §4.5 and Figure 7), how widely, and rolled out over all blocks."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vit_gelu.models import VisionTransformer


@contextlib.contextmanager
def watching_attention(
    vit: VisionTransformer, see: Callable[[int, Tensor], None], most: int | None = None
) -> Iterator[None]:
    """Call ``see(block, weights)`` whenever a block computes attention.

    The weights, float32 (b, heads, tokens, tokens) with rows that sum to 1, are computed from the tokens that go into
    attention, written out: the fused kernels, which still compute the network's own result, never have them.

    Args:
        vit: whose ``forward_features`` is called meanwhile; a plain call may leave out tokens in the last block.
        see: gets the number of the block and its weights.
        most: numbers at once: a batch with more of them comes in parts. None: a batch is one call.
    """

    def watch(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            tokens = inputs[0]
            each = vit.config["num_heads"] * tokens.shape[1] ** 2
            for part in tokens.split(len(tokens) if most is None else max(1, most // each)):
                see(number, module.weights(part))  # type: ignore[operator]

        return hook

    with contextlib.ExitStack() as hooks:
        for number, block in enumerate(vit.blocks):
            attention: nn.Module = block.attn  # type: ignore[assignment]
            hooks.callback(attention.register_forward_pre_hook(watch(number)).remove)
        yield


def patch_distances(image_size: tuple[int, int], grid_size: tuple[int, int]) -> Tensor:
    """Euclidean distance between the centres of any two patches, in pixels of the network's input.

    Args:
        image_size: height, width in pixels.
        grid_size: rows, columns of patches.

    Returns:
        float64 (rows * columns, rows * columns), patches in row-major order.

    >>> patch_distances((32, 32), (2, 2))
    tensor([[ 0.0000, 16.0000, 16.0000, 22.6274],
            [16.0000,  0.0000, 22.6274, 16.0000],
            [16.0000, 22.6274,  0.0000, 16.0000],
            [22.6274, 16.0000, 16.0000,  0.0000]], dtype=torch.float64)
    """
    (height, width), (rows, columns) = image_size, grid_size
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64) * height / rows,
        torch.arange(columns, dtype=torch.float64) * width / columns,
        indexing="ij",
    )
    centres = torch.stack([y.flatten(), x.flatten()], dim=1)
    return (centres[:, None] - centres[None]).square().sum(dim=-1).sqrt()


@dataclass(frozen=True)
class Head:
    """What one attention head does, mean over images and query patches.

    Attributes:
        block, head: counted from 0.
        distance: pixels between a patch and those that it attends to, weighted by attention. What goes to class and
            register tokens, which are nowhere, is left out, and the other weights are scaled to sum to 1.
        entropy: of a patch's weights over all tokens, in nats; of uniform attention it is log(tokens).
        prefix_share: share of a patch's attention that goes to class and register tokens.
    """

    block: int
    head: int
    distance: float
    entropy: float
    prefix_share: float


class AttentionStatistics:
    """Sums over any number of batches; ``update`` is what ``watching_attention`` calls.

    Args:
        vit: the network.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        embed = vit.patch_embed
        self.prefix = vit.num_prefix_tokens
        self.distances = patch_distances(embed.image_size, embed.grid_size)
        self._sums: dict[int, Tensor] = {}
        self._queries: dict[int, int] = {}

    @property
    def uniform_distance(self) -> float:
        """Mean distance, in pixels, of attention that makes no difference between patches."""
        return float(self.distances.mean())

    @torch.no_grad()
    def update(self, block: int, weights: Tensor) -> None:
        """Add a batch: weights (b, heads, tokens, tokens) of one block."""
        rows = weights[:, :, self.prefix :]
        patches = rows[..., self.prefix :]
        distances = self.distances.to(weights.device, weights.dtype)
        seen = patches.sum(dim=-1)
        # A row whose every weight fell on a prefix token has no distance; 0 / tiny counts it as 0.
        far = (patches * distances).sum(dim=-1) / seen.clamp(min=torch.finfo(seen.dtype).tiny)
        entropy = -torch.special.xlogy(rows, rows).sum(dim=-1)
        sums = torch.stack([far, entropy, 1 - seen if self.prefix else torch.zeros_like(seen)])
        sums = sums.double().sum(dim=(1, 3)).cpu()
        self._sums[block] = self._sums.get(block, 0) + sums
        self._queries[block] = self._queries.get(block, 0) + weights.shape[0] * rows.shape[2]

    def heads(self) -> list[Head]:
        """Of all blocks, in order."""
        found = []
        for block, sums in sorted(self._sums.items()):
            means = (sums / self._queries[block]).T.tolist()
            found += [Head(block, head, *values) for head, values in enumerate(means)]
        return found


@torch.no_grad()
def attention_rollout(vit: VisionTransformer, images: Tensor) -> Tensor:
    """How much of each patch reaches the network's output through attention and residual connections.

    Abnar & Zuidema 2020 (arXiv:2005.00928), §3: the weights of a block, averaged over heads, count half and the
    residual connection half, Ã = (A + I) / 2, and the blocks' matrices are multiplied, Ã_L ⋯ Ã_1 (ViT paper, appendix
    D.8). Norms, values and MLPs do not enter: it shows where attention could carry information from, not that it did.

    Args:
        vit: in evaluation mode.
        images: normalised, (b, c, h, w), on its device.

    Returns:
        float32 (b, rows, columns): of what the head sees (the class token, or the mean over the patches), the
        share of each patch; all shares of an image sum to 1.
    """
    rolled: list[Tensor] = []

    def roll(block: int, weights: Tensor) -> None:
        mean = weights.mean(dim=1)
        mixed = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
        rolled[:] = [mixed @ rolled[0] if rolled else mixed]

    with watching_attention(vit, roll):
        vit.forward_features(images)
    prefix = vit.num_prefix_tokens
    rows = rolled[0][:, :1] if vit.pooling == "cls" else rolled[0][:, prefix:]
    patches = rows.mean(dim=1)[:, prefix:]
    shares = patches / patches.sum(dim=1, keepdim=True)
    return rearrange(shares, "b (y x) -> b y x", y=vit.patch_embed.grid_size[0])
