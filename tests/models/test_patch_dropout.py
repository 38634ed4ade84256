"""Patch dropout: which tokens stay, how often, and that evaluation sees all of them."""

import pytest
import torch

from vit_gelu.models import VisionTransformer
from vit_gelu.models.layers import PatchDropout, take_patches


def tokens(b=200, n=16, prefix=2):
    """Tokens that carry their own index."""
    return torch.arange(prefix + n, dtype=torch.float32).expand(b, -1)[..., None].repeat(1, 1, 3)


def test_a_uniform_subset_without_repeats():
    torch.manual_seed(0)
    x = tokens(b=4000)
    y = PatchDropout(0.75, 2)(x)
    assert y.shape == (4000, 2 + 4, 3)
    assert torch.equal(y[:, :2], x[:, :2])
    kept = y[:, 2:, 0].long() - 2
    assert (kept.sort(dim=1).values.diff(dim=1) > 0).all(), "a patch was taken twice"
    counts = kept.flatten().bincount(minlength=16)
    assert ((counts / 4000 - 0.25).abs() < 4 * (0.25 * 0.75 / 4000) ** 0.5).all()


@pytest.mark.parametrize(("p", "kept"), [(0.5, 8), (0.9, 2), (0.99, 1), (0.0, 16)])
def test_how_many_stay(p, kept):
    assert PatchDropout(p, 1)(tokens(prefix=1)).shape[1] == 1 + kept
    assert PatchDropout(p, 0)(tokens(prefix=0)).shape[1] == kept


def test_evaluation_sees_everything():
    x = tokens()
    assert PatchDropout(0.5, 2).eval()(x) is x


def test_position_travels_with_the_patch():
    """With one patch kept, each logit row is that of the image with only that patch's token."""
    vit = VisionTransformer(
        8, 4, in_channels=1, num_classes=3, embed_dim=12, depth=1, num_heads=2, pooling="mean", class_token=False,
        patch_dropout=0.75, seed=0,
    )  # fmt: skip
    images = torch.randn(1, 1, 8, 8).expand(50, -1, -1, -1)
    torch.manual_seed(0)
    logits = vit.train()(images)
    vit.eval()
    whole = vit.embed(images[:1])
    alone = torch.cat([vit.forward_head(vit.norm(vit.blocks(whole[:, [i]]))) for i in range(4)])
    distance = torch.cdist(logits, alone)
    assert distance.min(dim=1).values.max() < 1e-3  # the others are 0.1 away
    assert distance.argmin(dim=1).unique().numel() == 4


@pytest.mark.parametrize("k", [1, 5, 9])
def test_the_gradient_goes_where_the_patch_came_from(k):
    """Compiled, too, where it is computed in another way: to the bit."""
    torch.manual_seed(k)
    x, grad = torch.randn(7, 9, 3, requires_grad=True), torch.randn(7, k, 3)
    indices = torch.rand(7, 9).argsort(dim=1)[:, :k]
    expected = torch.zeros(7, 9, 3)
    for i in range(7):
        for j in range(k):
            expected[i, indices[i, j]] = grad[i, j]
    torch._dynamo.reset()
    compiled = torch.compile(take_patches, backend="aot_eager", fullgraph=True)
    for call in (take_patches, compiled):
        taken = call(x, indices)
        assert torch.equal(taken, torch.stack([x[i, indices[i]] for i in range(7)]))
        assert torch.equal(torch.autograd.grad(taken, x, grad)[0], expected)


def test_rate_is_checked():
    with pytest.raises(ValueError, match=r"--model.patch_dropout 1.0"):
        PatchDropout(1.0, 0)
