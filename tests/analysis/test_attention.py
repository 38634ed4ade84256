"""Attention weights against timm's own, distances and rollout against loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vit_gelu.analysis import AttentionStatistics, attention_rollout, patch_distances, watching_attention
from vit_gelu.models import VisionTransformer

OPTIONS = {
    "image_size": (16, 24), "patch_size": 8, "num_classes": 5, "embed_dim": 24, "depth": 3, "num_heads": 3, "seed": 3,
}  # fmt: skip
IMAGES = torch.randn(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def network(**options):
    """With large weights, so that attention is far from uniform."""
    vit = VisionTransformer(**OPTIONS | options).eval()
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight.mul_(25)
    return vit


def timms_weights(vit, images):
    """What timm's attention, written out, multiplies with its values, block by block."""
    import timm

    model = timm.models.VisionTransformer(
        img_size=(16, 24), patch_size=8, num_classes=5, embed_dim=24, depth=3, num_heads=3,
        global_pool="avg" if vit.pooling == "mean" else "token", class_token=vit.cls_token is not None,
        reg_tokens=vit.config["register_tokens"], qk_norm=vit.config["qk_norm"],
    )  # fmt: skip
    model.load_state_dict(vit.state_dict())
    caught = []
    for block in model.eval().blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        model(images)
    return caught


def watched(vit, images):
    found = {}
    with torch.no_grad(), watching_attention(vit, found.__setitem__):
        vit.forward_features(images)
    return [found[block] for block in range(len(vit.blocks))]


@pytest.mark.parametrize(("most", "parts"), [(1, [1, 1, 1, 1]), (3 * 7**2 * 3, [3, 1]), (10**9, [4])])
def test_large_batches_come_in_parts(most, parts):
    vit = network()
    found = [[] for _ in vit.blocks]
    with torch.no_grad(), watching_attention(vit, lambda block, w: found[block].append(w), most):
        vit.forward_features(IMAGES)
    for got, whole in zip(found, watched(vit, IMAGES), strict=True):
        assert [len(part) for part in got] == parts
        torch.testing.assert_close(torch.cat(got), whole)


@pytest.mark.parametrize("options", [
    {}, {"pooling": "mean"}, {"pooling": "mean", "class_token": False}, {"register_tokens": 2}, {"qk_norm": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kernel", ["explicit", "sdpa"])
def test_weights_are_timms(options, kernel):
    vit = network(attention=kernel, **options)
    ours, theirs = watched(vit, IMAGES), timms_weights(vit, IMAGES)
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape == (4, 3, vit.num_tokens, vit.num_tokens)
        assert b.std() > 0.05
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_watching_changes_nothing_and_ends():
    vit = network()
    with torch.no_grad():
        before = vit.forward_features(IMAGES)
        seen = []
        with watching_attention(vit, lambda block, weights: seen.append(block)):
            during = vit.forward_features(IMAGES)
        after = vit.forward_features(IMAGES)
    assert seen == [0, 1, 2]
    assert torch.equal(before, during)
    assert torch.equal(before, after)


def test_weights_are_float32_under_autocast():
    vit = network()
    with torch.autocast("cpu", torch.bfloat16):
        rough = watched(vit, IMAGES)
    for a in rough:
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:-1]))
    # Scores are products of bfloat16 numbers, but the softmax is not: far nearer than bfloat16's own steps near 1.
    torch.testing.assert_close(rough[0], watched(vit, IMAGES)[0], rtol=0.2, atol=0.05)


def test_distances_are_those_of_patch_centres():
    centres = [((r + 0.5) * 16 / 2, (c + 0.5) * 30 / 5) for r in range(2) for c in range(5)]
    np.testing.assert_allclose(patch_distances((16, 30), (2, 5)).numpy(), cdist(centres, centres))


@pytest.mark.parametrize(
    "options", [{}, {"register_tokens": 2}, {"pooling": "mean", "class_token": False}], ids=str
)
def test_statistics_are_those_of_a_loop(options):
    vit = network(**options)
    statistics = AttentionStatistics(vit)
    for part in IMAGES.split(3):  # batches of unequal size
        with torch.no_grad(), watching_attention(vit, statistics.update):
            vit.forward_features(part)
    prefix, distances = vit.num_prefix_tokens, patch_distances((16, 24), (2, 3)).numpy()
    every = [w.double().numpy() for w in timms_weights(vit, IMAGES)]
    found = statistics.heads()
    assert [(h.block, h.head) for h in found] == list(itertools.product(range(3), range(3)))
    for head in found:
        far, entropy, share = [], [], []
        for image, query in itertools.product(range(4), range(6)):
            row = every[head.block][image, head.head, prefix + query]
            far.append(np.average(distances[query], weights=row[prefix:]))
            entropy.append(-sum(p * math.log(p) for p in row if p))
            share.append(row[:prefix].sum())
        expected = np.mean(far), np.mean(entropy), np.mean(share)
        assert (head.distance, head.entropy, head.prefix_share) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_uniform_attention_has_the_uniform_distance():
    vit = VisionTransformer(**OPTIONS).eval()
    statistics = AttentionStatistics(vit)
    tokens = vit.num_tokens
    statistics.update(0, torch.full((2, 3, tokens, tokens), 1 / tokens))
    for head in statistics.heads():
        assert head.distance == pytest.approx(statistics.uniform_distance)
        assert head.entropy == pytest.approx(math.log(tokens))
        assert head.prefix_share == pytest.approx(1 / tokens)
    statistics.update(1, torch.eye(tokens).expand(1, 3, tokens, tokens))
    assert [h.distance for h in statistics.heads()[3:]] == [0, 0, 0]
    assert [h.entropy for h in statistics.heads()[3:]] == [0, 0, 0]


def test_attention_to_prefix_tokens_alone_is_finite():
    vit = VisionTransformer(**OPTIONS).eval()
    statistics = AttentionStatistics(vit)
    weights = torch.zeros(1, 3, vit.num_tokens, vit.num_tokens)
    weights[..., 0] = 1
    statistics.update(0, weights)
    assert [(h.distance, h.prefix_share) for h in statistics.heads()] == [(0, 1)] * 3


@pytest.mark.parametrize("options", [{}, {"register_tokens": 2}, {"pooling": "mean"},
                                     {"pooling": "mean", "class_token": False}], ids=str)  # fmt: skip
def test_rollout_is_the_product_of_the_blocks(options):
    vit = network(**options)
    prefix = vit.num_prefix_tokens
    rolled = attention_rollout(vit, IMAGES)
    assert rolled.shape == (4, 2, 3)
    every = [w.double().numpy() for w in timms_weights(vit, IMAGES)]
    for image in range(4):
        product = np.eye(vit.num_tokens)
        for weights in every:
            mean = sum(weights[image, head] for head in range(3)) / 3
            product = (mean / 2 + np.eye(vit.num_tokens) / 2) @ product
        seen = product[0] if vit.pooling == "cls" else product[prefix:].mean(axis=0)
        expected = seen[prefix:] / seen[prefix:].sum()
        np.testing.assert_allclose(rolled[image].flatten().numpy(), expected, rtol=1e-4, atol=1e-6)
