"""Few-shot least squares against scikit-learn's ridge regression."""

import statistics

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from tests.probes.test_linear import clusters
from vit_gelu.probes import Features, fewshot_probe
from vit_gelu.probes.fewshot import draw, least_squares

NAMES = ["a", "b", "c", "d"]


@pytest.mark.parametrize(("n", "d"), [(50, 7), (7, 50), (20, 20)])
def test_weights_are_those_of_ridge(n, d):
    rng = np.random.default_rng(0)
    values, targets = rng.normal(size=(n, d)), rng.normal(size=(n, 3))
    oracle = Ridge(alpha=2.5, fit_intercept=False, solver="svd").fit(values, targets)
    weights = least_squares(torch.tensor(values), torch.tensor(targets), 2.5)
    assert np.allclose(weights.numpy().T, oracle.coef_, atol=1e-10)


@pytest.mark.parametrize("shots", [1, 5, 20])
def test_hits_are_those_of_ridge_on_the_same_images(shots):
    train, judges = clusters(400, 1, d=12), clusters(300, 2, d=12)
    (found,) = fewshot_probe(train, judges, NAMES, [shots])
    assert found.shots == shots
    assert len(found.hits) == 5
    for seed, hits in enumerate(found.hits):
        chosen = draw(train.labels, shots, NAMES, seed)
        x, y = train.values[chosen].numpy(), train.labels[chosen].numpy()
        mean, std = x.mean(0), x.std(0) + 1e-5

        def ready(values, mean=mean, std=std):
            return np.hstack([(values - mean) / std, np.full((len(values), 1), 100.0)])

        oracle = Ridge(alpha=2.0**10, fit_intercept=False, solver="svd")
        oracle.fit(ready(x), np.where(y[:, None] == np.arange(4), 1.0, -1.0))
        predicted = oracle.predict(ready(judges.values.numpy())).argmax(1)
        assert hits.correct == (predicted == judges.labels.numpy()).sum()
        assert hits.n == 300
    tops = [h.top1 for h in found.hits]
    assert found.mean == pytest.approx(np.mean(tops))
    assert found.sd == pytest.approx(np.std(tops, ddof=1))


def test_draws_are_nested_stratified_and_differ():
    labels = clusters(400, 1).labels
    ten, five = (draw(labels, shots, NAMES, 0) for shots in (10, 5))
    assert set(five.tolist()) < set(ten.tolist())
    assert len(set(ten.tolist())) == 40
    assert torch.bincount(labels[ten]).tolist() == [10] * 4
    assert set(draw(labels, 10, NAMES, 1).tolist()) != set(ten.tolist())


def test_more_images_help():
    train, judges = clusters(400, 1), clusters(300, 2)
    one, many = fewshot_probe(train, judges, NAMES, [1, 50])
    assert many.mean > one.mean
    assert statistics.stdev(h.top1 for h in one.hits) == one.sd
    assert fewshot_probe(train, judges, NAMES, [5], seeds=[3])[0].sd is None


def test_more_shots_than_images():
    train = Features(torch.randn(7, 3), torch.tensor([0, 0, 0, 1, 1, 2, 2]))
    with pytest.raises(ValueError, match="--shots 3: class 'b' has 2 training images; at most 2"):
        fewshot_probe(train, train, ["a", "b", "c"], [1, 3])
    with pytest.raises(ValueError, match="class 'd' has 0 training images; every class needs some"):
        fewshot_probe(train, train, NAMES, [1])
