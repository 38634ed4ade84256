"""One pass of a trained network over images, watched: everything that ``vit-gelu analyze`` says."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_gelu.analysis.activations import ActivationRow, watching_activations
from vit_gelu.analysis.attention import AttentionStatistics, Head, attention_rollout, watching_attention
from vit_gelu.analysis.weights import PatchFilters, PositionSimilarity, patch_filters, position_similarity
from vit_gelu.cli.device import autocast
from vit_gelu.data import Images
from vit_gelu.data.arrays import spread
from vit_gelu.data.batch import pixels_of
from vit_gelu.data.loader import EvalLoader
from vit_gelu.data.progress import progress
from vit_gelu.models import VisionTransformer
from vit_gelu.models.activation_places import find_places

SHOWN = 8  # images of the rollout
BATCHES_WORTH_A_BAR = 5
WEIGHTS_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Rollout:
    """Attention rolled out over the blocks, of a few images.

    Attributes:
        indices: of the images in their split.
        images: as the network sees them, but pixels 0-1; float32 (k, channels, height, width), on the CPU.
        shares: float32 (k, rows, columns), see ``attention_rollout``; on the CPU.
    """

    indices: tuple[int, ...]
    images: Tensor
    shares: Tensor


@dataclass(frozen=True, eq=False)
class Analysis:
    """What was found; parts that a network does not have are None, and ``missing`` says why.

    Attributes:
        n: images looked at.
        activations: one row each, in the order of the network.
        heads: of all blocks, in order; empty where the network is no Vision Transformer of ours.
        uniform_distance: pixels; the distance of attention that makes no difference between patches.
        rollout, filters, positions: see there.
        missing: what is not there, and why.
    """

    n: int
    activations: tuple[ActivationRow, ...]
    heads: tuple[Head, ...]
    uniform_distance: float | None
    rollout: Rollout | None
    filters: PatchFilters | None
    positions: PositionSimilarity | None
    missing: dict[str, str]


@torch.no_grad()  # not inference mode: slopes are computed by autograd
def analyse(
    net: nn.Module,
    images: Images,
    *,
    most: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device,
    upsample: tuple[int, int] | None = None,
    precision: str = "32-true",
    num_workers: int = 0,
) -> Analysis:
    """Look at a network at work, and at its weights.

    Args:
        net: images float32 (b, c, h, w) -> logits; moved to the device, in evaluation mode.
        images: the split.
        most: how many of them, evenly spread.
        mean, std: per channel, of pixels scaled to 0-1, as in the network's training.
        batch_size: images per forward pass.
        device: where to run.
        upsample: height and width that images are enlarged to, as in the network's training.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``, of the network; statistics are computed in float32.
        num_workers: processes that decode image files.

    Raises:
        ValueError: no images, no activation that could be watched, or numbers that are not finite.
        OSError, ValueError: an image file cannot be read; names it.
    """
    if not len(images):
        raise ValueError("there are no images to look at")
    net = net.to(device).eval()
    indices = spread(len(images), most)
    passes: dict[str, Any] = {"mean": mean, "std": std, "device": device, "upsample": upsample}
    loader = EvalLoader(images.take(indices), batch_size=batch_size, num_workers=num_workers, **passes)
    places, _ = find_places(net)
    vit = net if isinstance(net, VisionTransformer) else None
    attention = None if vit is None else AttentionStatistics(vit)
    bar = progress("looking", len(indices), "images")
    with contextlib.ExitStack() as stack:
        show = stack.enter_context(bar) if len(loader) >= BATCHES_WORTH_A_BAR else lambda done: None
        statistics = stack.enter_context(watching_activations(places))
        if vit is not None and attention is not None:
            stack.enter_context(watching_attention(vit, attention.update, WEIGHTS_AT_ONCE))
        done = 0
        for batch in loader:
            with autocast(device, precision):
                # Not a plain call: that leaves out most tokens of the last block where only one is looked at.
                net(batch.images) if vit is None else vit.forward_features(batch.images)
            done += len(batch.targets)
            show(done)
    missing: dict[str, str] = {}
    rollout = filters = positions = None
    if vit is None:
        kind = getattr(net, "config", {}).get("name", type(net).__name__)
        missing["attention"] = (
            f"{kind} is no Vision Transformer of this package, whose attention can be looked at"
        )
    else:
        few = indices[spread(len(indices), SHOWN)]
        (batch,) = EvalLoader(images.take(few), batch_size=SHOWN, **passes)
        with autocast(device, precision):
            shares = attention_rollout(vit, batch.images)
        pixels = pixels_of(batch.images, mean, std)
        rollout = Rollout(tuple(few.tolist()), pixels, shares.float().cpu())
        try:
            filters = patch_filters(vit)
        except ValueError as error:
            missing["patch_filters"] = str(error)
        try:
            positions = position_similarity(vit)
        except ValueError as error:
            missing["position_embedding"] = str(error)
    return Analysis(
        len(indices),
        tuple(s.row() for s in statistics),
        tuple(attention.heads()) if attention else (),
        attention.uniform_distance if attention else None,
        rollout,
        filters,
        positions,
        missing,
    )
