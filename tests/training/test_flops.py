"""Counted FLOPs against the closed form and against timm's."""

import pytest
import timm
import torch

from vit_gelu.models import VisionTransformer
from vit_gelu.training.flops import count_flops, flops_of


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("attention", ["auto", "explicit", "sdpa"])
@pytest.mark.parametrize(("size", "patch", "d", "depth", "heads"), [(8, 2, 32, 2, 4), (16, 4, 48, 3, 3)])
def test_flops_equal_the_closed_form(attention, pooling, size, patch, d, depth, heads):
    net = VisionTransformer(
        size, patch, in_channels=3, num_classes=10, embed_dim=d, depth=depth, num_heads=heads, attention=attention,
        dropout=0.1, pooling=pooling, seed=0,
    )  # fmt: skip
    patches = (size // patch) ** 2
    n = patches + 1
    embed = 2 * patches * d * 3 * patch * patch
    last = 1 if pooling == "cls" else n  # tokens that the last block is computed for
    blocks = [
        2 * (2 * n * d * d + m * (d * d + d * d + 2 * 4 * d * d)) + 2 * (2 * m * n * d)
        for m in [n] * (depth - 1) + [last]
    ]
    head = 2 * d * 10
    # The backward pass does each product twice, but nobody needs the gradient of the pixels.
    expected = 3 * (embed + sum(blocks) + head) - embed
    random_state = torch.get_rng_state()
    assert count_flops(net, (3, size, size)) == expected
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.config["attention"] == attention
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("backward", [False, True])
def test_flops_of_timms_vit_are_those_of_ours_with_all_tokens(backward):
    """Its attention is torch's fused kernel, which does the arithmetic of the written-out one."""
    sizes = {"patch_size": 4, "num_classes": 7, "embed_dim": 24, "depth": 2, "num_heads": 3}
    theirs = timm.models.VisionTransformer(img_size=16, **sizes).eval()
    ours = VisionTransformer(image_size=16, **sizes, seed=0).eval()
    image = torch.zeros(1, 3, 16, 16)
    calls = (lambda: theirs(image), lambda: ours.forward_head(ours.forward_features(image)))
    assert theirs.blocks[0].attn.fused_attn
    counts = [flops_of(net, call, backward=backward) for net, call in zip((theirs, ours), calls, strict=True)]
    assert counts[0] == pytest.approx(counts[1], rel=1e-3)  # timm's patches are a convolution


def test_flops_of_the_patches_that_were_seen():
    net = VisionTransformer(
        16, 4, num_classes=10, embed_dim=32, depth=2, num_heads=2, patch_dropout=0.5, seed=0
    )
    smaller = VisionTransformer((8, 16), 4, num_classes=10, embed_dim=32, depth=2, num_heads=2, seed=0)
    half = count_flops(net, (3, 16, 16), 0.5)
    # Half of the patches costs what an image of half the size does, but all patches are embedded (forward
    # and weight gradient).
    assert half == count_flops(smaller, (3, 8, 16)) + 2 * 8 * 2 * 32 * 48
    assert net.patch_drop.p == 0.5
