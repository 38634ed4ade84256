"""The linear probe against scikit-learn's logistic regression."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from vit_gelu.probes import Features, linear_probe
from vit_gelu.probes.features import standardisation
from vit_gelu.probes.linear import fit_logistic


def clusters(n, seed, d=6, k=4, spread=1.5, dtype=torch.float64):
    """Overlapping classes, features of very different scales."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(k, d)) * spread
    labels = rng.integers(0, k, n)
    values = (centres[labels] + rng.normal(size=(n, d))) * np.logspace(-2, 2, d) + 3
    return Features(torch.tensor(values, dtype=dtype), torch.tensor(labels))


def sklearn_fit(values, labels, l2):
    model = LogisticRegression(C=1 / (len(labels) * l2), tol=1e-10, max_iter=10_000)
    return model.fit(values, labels)


@pytest.mark.parametrize("l2", [1e-4, 1e-2, 1.0])
def test_weights_are_scikit_learns(l2):
    train = clusters(300, 1)
    mean, deviation = standardisation(train.values)
    values = (train.values - mean) / deviation
    fit = fit_logistic(Features(values, train.labels), 4, l2)
    assert fit.converged
    oracle = sklearn_fit(values.numpy(), train.labels.numpy(), l2)
    assert np.allclose(fit.weight.numpy(), oracle.coef_, atol=2e-5)
    # The bias is fixed up to a constant.
    bias = fit.bias.numpy()
    assert np.allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=2e-5)


def test_where_it_starts_does_not_matter():
    train = clusters(300, 1, spread=0.5)
    mean, deviation = standardisation(train.values)
    ready = Features((train.values - mean) / deviation, train.labels)
    cold = fit_logistic(ready, 4, 1e-3)
    warm = fit_logistic(ready, 4, 1e-3, start=fit_logistic(ready, 4, 1.0))
    assert torch.allclose(cold.weight, warm.weight, atol=1e-5)


def test_the_probe_is_the_best_of_scikit_learns_on_the_images_that_choose():
    grid = (1e-5, 1e-3, 1e-1, 10.0)
    train, chooses, judges = clusters(60, 1), clusters(400, 2), clusters(500, 3)
    found = linear_probe(train, chooses, judges, 4, grid)
    mean, deviation = train.values.numpy().mean(0), train.values.numpy().std(0)
    scores = {}
    for l2 in grid:
        model = sklearn_fit((train.values.numpy() - mean) / deviation, train.labels.numpy(), l2)
        scores[l2] = model.score((chooses.values.numpy() - mean) / deviation, chooses.labels.numpy()), model
    assert {row["l2"]: row["top1"] for row in found.grid} == pytest.approx(
        {l2: s for l2, (s, _) in scores.items()}, abs=0.006
    )
    model = scores[found.l2][1]
    values, labels = (judges.values.numpy() - mean) / deviation, judges.labels.numpy()
    assert found.hits.n == 500
    assert found.hits.correct == pytest.approx(500 * model.score(values, labels), abs=1)
    loss = -log_softmax(model.decision_function(values), axis=1)[np.arange(500), labels].mean()
    assert found.loss == pytest.approx(loss, rel=1e-3)


def test_float32_agrees_with_float64():
    sizes = ((300, 1), (200, 2), (200, 3))
    single, double = (
        linear_probe(*(clusters(n, seed, dtype=dtype) for n, seed in sizes), 4)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.l2 == double.l2 or abs(single.hits.correct - double.hits.correct) <= 2
    assert single.converged


def test_of_equals_the_stronger_and_the_edge_is_told():
    # Far apart: every strength gets all of them right.
    train, chooses, judges = (clusters(100, s, spread=30.0) for s in (1, 2, 3))
    found = linear_probe(train, chooses, judges, 4, (1e-4, 1e-3, 1e-2))
    assert found.hits.correct == 100
    assert found.l2 == 1e-2
    assert found.at_edge


def test_a_feature_that_never_changes():
    train, chooses, judges = (clusters(100, s) for s in (1, 2, 3))
    parts = [
        Features(torch.cat([f.values, torch.ones(100, 1)], 1), f.labels) for f in (train, chooses, judges)
    ]
    assert linear_probe(*parts, 4).hits == linear_probe(train, chooses, judges, 4).hits


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), "must be"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "at least one image"),
        (torch.full((2, 3), float("nan")), torch.zeros(2, dtype=torch.int64), "not finite"),
    ],
)
def test_features_that_are_none(values, labels, message):
    with pytest.raises(ValueError, match=message):
        Features(values, labels)
