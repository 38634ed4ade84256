"""One pass of a frozen network over images: their features, each image once."""

import contextlib
from typing import Any

import torch

from vit_gelu.cli.counting import BATCHES_WORTH_A_BAR
from vit_gelu.cli.device import autocast
from vit_gelu.data import Images
from vit_gelu.data.loader import EvalLoader
from vit_gelu.data.progress import progress
from vit_gelu.probes import Features


@torch.no_grad()  # not inference mode: the linear probe computes gradients with what comes out
def extract(
    net: Any,
    images: Images,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    batch_size: int,
    device: torch.device,
    upsample: tuple[int, int] | None = None,
    precision: str = "32-true",
    num_workers: int = 0,
    what: str = "features",
) -> Features:
    """Pooled features before the head, not augmented.

    Args:
        net: has ``forward_features`` and ``forward_head(tokens, pre_logits=True)``, as timm's models do; moved to
            the device, in evaluation mode.
        images: the split.
        mean, std: per channel, of pixels scaled to 0-1, as in the network's training.
        batch_size: images per forward pass.
        device: where to run, and where the features are.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``, of the network; the features are float32.
        num_workers: processes that decode image files.
        what: for the progress bar of a long pass.

    Raises:
        ValueError: features that are not finite.
        OSError, ValueError: an image file cannot be read; names it.
    """
    net = net.to(device).eval()
    loader = EvalLoader(
        images,
        batch_size=batch_size,
        mean=mean,
        std=std,
        device=device,
        upsample=upsample,
        num_workers=num_workers,
    )
    trunk = getattr(net, "timm_model", net)
    long = len(loader) >= BATCHES_WORTH_A_BAR
    values, labels, order, done = [], [], [], 0
    with progress(what, len(images), "images") if long else contextlib.nullcontext(lambda done: None) as show:
        for batch in loader:
            with autocast(device, precision):
                pooled = trunk.forward_head(trunk.forward_features(batch.images), pre_logits=True)
            values.append(pooled.float())
            labels.append(batch.targets)
            order.append(batch.indices)
            done += len(batch.targets)
            show(done)
    seen = torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
    if not torch.equal(seen.cpu(), torch.arange(len(images))):
        raise RuntimeError(f"{what}: not every one of {len(images)} images was seen exactly once")
    if not values:
        raise ValueError(f"{what}: there are no images")
    return Features(torch.cat(values), torch.cat(labels))
