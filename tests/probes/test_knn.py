"""Nearest neighbours against scikit-learn's, with the vote's weights as a function of the distance."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.probes.test_linear import clusters
from vit_gelu.probes import Features, knn, knn_probe


@pytest.mark.parametrize(
    ("neighbours", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (200, 0.5)]
)
def test_hits_are_scikit_learns(neighbours, temperature, monkeypatch):
    monkeypatch.setattr(knn, "CHUNK", 64)
    train, judges = clusters(200, 1, spread=0.7), clusters(150, 2, spread=0.7)
    oracle = KNeighborsClassifier(
        neighbours, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / temperature)
    ).fit(train.values.numpy(), train.labels.numpy())
    expected = oracle.predict(judges.values.numpy()) == judges.labels.numpy()
    found = knn_probe(train, judges, 4, neighbours=neighbours, temperature=temperature)
    assert (found.n, found.correct) == (150, expected.sum())
    assert 0.25 < found.top1 < 1


def test_a_small_temperature_does_not_overflow():
    train, judges = clusters(200, 1, dtype=torch.float32), clusters(50, 2, dtype=torch.float32)
    nearest = knn_probe(train, judges, 4, neighbours=1)
    assert knn_probe(train, judges, 4, temperature=1e-4).correct == pytest.approx(nearest.correct, abs=1)


def test_the_scale_of_the_features_does_not_matter():
    train, judges = clusters(200, 1), clusters(100, 2)
    bigger = [Features(f.values * 37.0, f.labels) for f in (train, judges)]
    assert knn_probe(*bigger, 4) == knn_probe(train, judges, 4)


@pytest.mark.parametrize("neighbours", [0, 201])
def test_more_neighbours_than_images(neighbours):
    train = clusters(200, 1)
    with pytest.raises(ValueError, match=f"--neighbours {neighbours}: must lie between 1 and 200"):
        knn_probe(train, train, 4, neighbours=neighbours)
