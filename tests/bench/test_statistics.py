"""Ratios and intervals against scipy's paired t test; coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from vit_gelu.bench.statistics import paired_ratio, spread


@pytest.mark.parametrize(("n", "confidence"), [(2, 0.95), (7, 0.9), (20, 0.95)])
def test_interval_is_that_of_the_paired_t_test_on_logs(n, confidence):
    generator = np.random.default_rng(n)
    base = np.exp(generator.normal(size=n))
    times = base * np.exp(generator.normal(0.2, 0.05, size=n))
    ratio = paired_ratio(times, base, confidence)
    low, high = stats.ttest_rel(np.log(times), np.log(base)).confidence_interval(confidence)
    assert (ratio.low, ratio.high) == pytest.approx((np.exp(low), np.exp(high)))
    assert ratio.value == pytest.approx(stats.gmean(times / base))
    assert ratio.n == n


def test_coverage():
    """95 % intervals hold the true ratio 95 % of the time, whatever the rounds have in common."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        shared = np.exp(generator.normal(0, 1.0, size=8))
        times, base = (shared * c * np.exp(generator.normal(0, 0.1, size=8)) for c in (1.3, 1.0))
        ratio = paired_ratio(times, base)
        hits += ratio.low <= 1.3 <= ratio.high
    assert 930 <= hits <= 970


def test_spread_is_numpys():
    times = [5.0, 1.0, 4.0, 2.0]
    assert tuple(spread(times)) == (*np.quantile(times, [0.5, 0.25, 0.75]), 4)


def test_what_cannot_be_paired():
    with pytest.raises(ValueError, match="paired"):
        paired_ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 2"):
        paired_ratio([1.0], [1.0])
