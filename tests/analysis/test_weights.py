"""Patch filters against scikit-learn, position embeddings against scipy and loops."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine
from sklearn.decomposition import PCA

from vit_gelu.analysis import patch_filters, position_similarity
from vit_gelu.models import VisionTransformer


def network(**options):
    small = {
        "image_size": (12, 20),
        "patch_size": 4,
        "num_classes": 3,
        "embed_dim": 64,
        "depth": 1,
        "num_heads": 2,
    }
    return VisionTransformer(**small | {"seed": 5} | options)


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_principal_components(channels):
    vit = network(in_channels=channels)
    found = patch_filters(vit, most=10)
    flat = vit.patch_embed.proj.weight.detach().double().numpy().reshape(64, -1)
    oracle = PCA(10, svd_solver="full").fit(flat)
    assert found.components.shape == (10, channels, 4, 4)
    np.testing.assert_allclose(found.explained, oracle.explained_variance_ratio_, rtol=1e-6)
    ours = found.components.numpy().reshape(10, -1)
    signs = np.sign((ours * oracle.components_).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, signs * oracle.components_, atol=1e-6)
    largest = ours[np.arange(10), np.abs(ours).argmax(axis=1)]
    assert (largest > 0).all()


def test_no_more_components_than_pixels_or_channels():
    assert patch_filters(network(in_channels=1)).components.shape == (16, 1, 4, 4)
    assert patch_filters(network(embed_dim=6)).components.shape == (6, 3, 4, 4)


def test_equal_filters_have_no_components_to_explain():
    vit = network()
    with torch.no_grad():
        vit.patch_embed.proj.weight.fill_(0.5)
    assert set(patch_filters(vit).explained) == {0.0}


def test_other_stems_have_no_filters():
    with pytest.raises(ValueError, match="conv stem has no patch filters"):
        patch_filters(network(stem="conv"))


@pytest.mark.parametrize("options", [{}, {"register_tokens": 2}, {"register_tokens": 1, "no_embed_class": True},
                                     {"position_embedding": "sincos2d"}], ids=str)  # fmt: skip
def test_position_similarity_is_that_of_loops(options):
    vit = network(**options)
    prefix = 0 if options.get("no_embed_class") else vit.num_prefix_tokens
    table = vit.pos_embed[0, prefix:].detach().double().numpy()
    places = list(itertools.product(range(3), range(5)))
    assert len(table) == len(places)
    found = position_similarity(vit)
    groups = {"neighbours": [], "same_row": [], "same_column": [], "others": []}
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(places), repeat=2):
        similarity = 1 - cosine(table[i], table[j])
        assert float(found.cosine[a, b, c, d]) == pytest.approx(similarity, abs=1e-9)
        if i == j:
            continue
        if abs(a - c) + abs(b - d) == 1:
            groups["neighbours"].append(similarity)
        elif a == c:
            groups["same_row"].append(similarity)
        elif b == d:
            groups["same_column"].append(similarity)
        else:
            groups["others"].append(similarity)
    for name, values in groups.items():
        assert getattr(found, name) == pytest.approx(np.mean(values)), name


def test_positions_that_are_not_there():
    with pytest.raises(ValueError, match="no position embeddings"):
        position_similarity(network(position_embedding="none"))
    with pytest.raises(ValueError, match="one patch"):
        position_similarity(network(image_size=4))
    two = position_similarity(network(image_size=(4, 8)))
    assert (two.same_row, two.same_column, two.others) == (None, None, None)
