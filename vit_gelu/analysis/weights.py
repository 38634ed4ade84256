"""What a ViT's first weights have learned: filters of patches, and where patches are (ViT paper, §4.5)."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.models import VisionTransformer
from vit_gelu.models.stem import PatchEmbed


@dataclass(frozen=True, eq=False)
class PatchFilters:
    """Principal components of the embedding's filters.

    Attributes:
        components: float64 (k, channels, height, width), unit length, most variance first; the sign of each is such
            that its largest weight is positive.
        explained: share of the variance, of each.
    """

    components: Tensor
    explained: tuple[float, ...]


def patch_filters(vit: VisionTransformer, most: int = 28) -> PatchFilters:
    """The main patterns that the patch embedding tells apart: ViT paper, Figure 7, left.

    The filters, one of the patch's shape per channel of the tokens, are centred, and their principal components
    computed.

    Args:
        vit: the network.
        most: components at most; the paper shows 28.

    Raises:
        ValueError: the stem has no patch filters.
    """
    embed = vit.patch_embed
    if not isinstance(embed, PatchEmbed):
        raise ValueError(f"a {vit.config['stem']} stem has no patch filters")
    filters = embed.proj.weight.detach().cpu().double()
    flat = filters.flatten(1)
    _, values, vectors = torch.linalg.svd(flat - flat.mean(dim=0), full_matrices=False)
    variances = values.square()
    total = float(variances.sum())
    k = min(most, len(values))
    vectors = vectors[:k]
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    components = (vectors * largest.sign()).reshape(k, *filters.shape[1:])
    explained = tuple((variances[:k] / total).tolist()) if total else (0.0,) * k
    return PatchFilters(components, explained)


@dataclass(frozen=True, eq=False)
class PositionSimilarity:
    """How alike the position embeddings of patches are.

    Attributes:
        cosine: float64 (rows, columns, rows, columns): of each patch with each.
        neighbours: mean cosine of patches that share an edge.
        same_row, same_column: mean cosine of patches in one row, or column, that share no edge; None where there are
            none.
        others: mean cosine of the rest; None where there is none.
    """

    cosine: Tensor
    neighbours: float
    same_row: float | None
    same_column: float | None
    others: float | None


def position_similarity(vit: VisionTransformer) -> PositionSimilarity:
    """Cosine similarity of the patches' position embeddings: ViT paper, Figure 7, centre.

    Class and register tokens are left out.

    Raises:
        ValueError: the network has no position embeddings, or a single patch.
    """
    if vit.pos_embed is None:
        raise ValueError("the network has no position embeddings (--model.position_embedding none)")
    rows, columns = vit.patch_embed.grid_size
    count = rows * columns
    if count == 1:
        raise ValueError("the image is one patch, which has no position")
    embedding = vit.pos_embed.detach().cpu().double()[0, -count:]
    unit = torch.nn.functional.normalize(embedding, dim=1)
    cosine = unit @ unit.T
    place = torch.arange(count)
    row, column = place // columns, place % columns
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    apart = down + across

    def mean(where: Tensor) -> float | None:
        return float(cosine[where].mean()) if bool(where.any()) else None

    neighbours = mean(apart == 1)
    assert neighbours is not None
    return PositionSimilarity(
        rearrange(cosine, "(a b) (c d) -> a b c d", a=rows, c=rows),
        neighbours,
        mean((down == 0) & (apart > 1)),
        mean((across == 0) & (apart > 1)),
        mean((down > 0) & (across > 0)),
    )
