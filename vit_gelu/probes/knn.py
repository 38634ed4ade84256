"""Weighted nearest neighbours: DINO (Caron et al. 2021, arXiv:2104.14294), §4.1; Wu et al. 2018 (arXiv:1805.01978)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_gelu.probes.features import Features, Hits, hits

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1024  # judged images at a time: 200 MB of similarities to 50,000 others


def knn_probe(
    train: Features,
    judges: Features,
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Hits:
    """Classify each image by a vote of its nearest training images.

    Nearest by the cosine of the features; a neighbour votes for its class with weight exp(cosine / temperature).

    Args:
        train: whose labels vote.
        judges: other images.
        num_classes: classes.
        neighbours: how many vote.
        temperature: > 0.

    Raises:
        ValueError: more neighbours than training images.
    """
    if not 1 <= neighbours <= len(train):
        raise ValueError(
            f"--neighbours {neighbours}: must lie between 1 and {len(train)}, the training images"
        )
    references = F.normalize(train.values, dim=1)
    predicted = []
    for chunk in F.normalize(judges.values, dim=1).split(CHUNK):
        cosines, nearest = (chunk @ references.mT).topk(neighbours, dim=1)
        predicted.append(_vote(cosines, train.labels[nearest], num_classes, temperature))
    return hits(torch.cat(predicted), judges.labels)


def _vote(cosines: Tensor, labels: Tensor, num_classes: int, temperature: float) -> Tensor:
    # Relative to the nearest, so that no weight overflows.
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), num_classes).scatter_add(1, labels, weights).argmax(dim=1)
