"""Whitened patches: the tokens' second moments, whatever the widths; a function of images and seed alone."""

import numpy as np
import pytest
import torch

from vit_gelu.models import VisionTransformer
from vit_gelu.models.whitening import whiten_patches


def correlated_images(n=400):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    return smooth + 0.05 * torch.randn(n, 3, 16, 16, generator=generator)


def vit(dim, **options):
    return VisionTransformer(16, 4, num_classes=2, embed_dim=dim, depth=1, num_heads=2, seed=0, **options)


@pytest.mark.parametrize("dim", [64, 48, 24])
def test_second_moments_become_flat(dim):
    images = correlated_images()
    net = vit(dim)
    before = np.linalg.svd(net.patch_embed(images).detach().flatten(0, 1).numpy(), compute_uv=False) ** 2
    whiten_patches(net, images, seed=3, eps=1e-9)
    tokens = net.patch_embed(images).detach().flatten(0, 1).double().numpy()
    moments = np.linalg.eigvalsh(tokens.T @ tokens / len(tokens))
    rank = min(dim, 48)
    expected = 0.25 * max(1, dim / 48)
    np.testing.assert_allclose(moments[-rank:], expected, rtol=1e-3)
    np.testing.assert_allclose(moments[:-rank], 0, atol=1e-6)
    assert (tokens**2).mean() == pytest.approx(0.25, rel=1e-3)
    assert before[0] / before[rank - 1] > 50, "the images were white already: the test says nothing"


def test_flat_directions_are_not_blown_up():
    net = vit(48)
    whiten_patches(net, torch.zeros(10, 3, 16, 16), seed=0, eps=0.01)
    assert net.patch_embed.proj.weight.abs().max() < 0.5 / 0.01**0.5 + 1e-6


def test_a_function_of_images_and_seed():
    images = correlated_images()
    weights = []
    for seed, noise in ((1, 0), (1, 99), (2, 0)):
        torch.manual_seed(noise)
        net = vit(48)
        whiten_patches(net, images, seed=seed)
        weights.append(net.patch_embed.proj.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_other_stems_are_refused():
    net = VisionTransformer(
        32, 4, num_classes=2, embed_dim=8, depth=1, num_heads=2, stem="resnet_stem", seed=0
    )
    with pytest.raises(ValueError, match=r"--model.whiten_patches: needs --model.stem patch"):
        whiten_patches(net, torch.zeros(1, 3, 32, 32), seed=0)
