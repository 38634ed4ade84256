"""The statistics against scipy, against hand-worked numbers, and in simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from vit_gelu.ablation.power import (
    equivalence_power,
    minimum_detectable_effect,
    seeds_to_decide,
    t_power,
)
from vit_gelu.ablation.statistics import (
    correlation,
    equivalence_p,
    holm,
    probability_of_superiority,
    sign_flip_test,
    standard_deviation,
    t_interval,
)

RANDOM = np.random.default_rng(7)
SAMPLES = [RANDOM.normal(0.2, 1.0, n) for n in (2, 3, 5, 9, 12)]


@pytest.mark.parametrize("d", SAMPLES, ids=len)
def test_t_interval_is_scipys(d):
    other = RANDOM.normal(size=len(d))
    expected = stats.ttest_rel(d + other, other).confidence_interval(0.95)
    assert t_interval(d) == pytest.approx(tuple(expected), rel=1e-10)
    wide = stats.ttest_1samp(d, 0).confidence_interval(0.99)
    assert t_interval(d, 0.99) == pytest.approx(tuple(wide), rel=1e-10)


@pytest.mark.parametrize("d", SAMPLES, ids=len)
def test_sign_flip_is_scipys_permutation_test(d):
    expected = stats.permutation_test(
        (d, np.zeros(len(d))),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert sign_flip_test(d).p == pytest.approx(expected.pvalue, rel=1e-12)


def test_sign_flip_by_brute_force_with_ties_and_zeros():
    d = np.array([0.3, 0.1, 0.2, 0.0, -0.1, 0.1])  # 0.1 + 0.2 is not 0.3 in floating point
    signs = np.array(list(itertools.product((1, -1), repeat=6)))
    sums = signs @ np.array([3, 1, 2, 0, -1, 1])
    assert sign_flip_test(d).p == np.mean(np.abs(sums) >= 6)
    assert sign_flip_test(d) == sign_flip_test(-d)
    assert sign_flip_test([1.0] * 5).p == 2 / 2**5  # five pairs never reach 0.05
    assert sign_flip_test([0.0, 0.0]).p == 1


def test_sign_flip_beyond_enumeration_is_drawn_and_says_so():
    d = np.random.default_rng(1).normal(0.3, 1, 18)
    exact = sign_flip_test(d, most_enumerated=18)
    drawn = sign_flip_test(d)
    assert (exact.exact, exact.assignments) == (True, 2**18)
    assert (drawn.exact, drawn.assignments) == (False, 100_000)
    assert drawn == sign_flip_test(d)  # fixed seed
    assert drawn.p == pytest.approx(exact.p, abs=5 * np.sqrt(exact.p / 100_000))
    assert sign_flip_test([1.0] * 40).p == 1 / 100_001  # never 0


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, then made monotone.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    p = list(RANDOM.uniform(size=8))
    rejected = [[x <= level for x in holm(p)] for level in (0.01, 0.05, 0.2)]
    for level, found in zip((0.01, 0.05, 0.2), rejected, strict=True):
        expected = [False] * 8
        for rank, i in enumerate(np.argsort(p)):  # the definition: step down until the first failure
            if p[i] > level / (8 - rank):
                break
            expected[i] = True
        assert found == expected


def test_equivalence_is_the_larger_of_scipys_two_one_sided_tests():
    for d in SAMPLES:
        low = stats.ttest_1samp(d, -0.5, alternative="greater").pvalue
        high = stats.ttest_1samp(d, 0.5, alternative="less").pvalue
        assert equivalence_p(d, 0.5) == pytest.approx(max(low, high), rel=1e-9)
        low, high = t_interval(d, 0.90)
        assert (equivalence_p(d, 0.5) < 0.05) == (low > -0.5 and high < 0.5)


def test_probability_of_superiority_is_the_share_of_new_pairs():
    # Bayes with a flat prior: draw variance, mean, then a new difference.
    d = np.array([0.4, -0.1, 0.3, 0.5, 0.0])
    generator = np.random.default_rng(2)
    variance = 4 * d.var(ddof=1) / generator.chisquare(4, 400_000)
    new = generator.normal(generator.normal(d.mean(), np.sqrt(variance / 5)), np.sqrt(variance))
    assert probability_of_superiority(d) == pytest.approx((new > 0).mean(), abs=0.004)
    assert probability_of_superiority(-d) == pytest.approx(1 - probability_of_superiority(d))


def test_power_is_that_of_simulated_tests():
    generator = np.random.default_rng(3)
    d = generator.normal(0.8, 1.0, (40_000, 10))
    t = d.mean(1) / (d.std(1, ddof=1) / np.sqrt(10))
    assert t_power(0.8, 10) == pytest.approx((np.abs(t) > stats.t.isf(0.025, 9)).mean(), abs=0.01)
    assert t_power(0.0, 10) == pytest.approx(0.05)
    error = d.std(1, ddof=1) / np.sqrt(10)
    for effect in (0.0, 0.8):
        mean = d.mean(1) - 0.8 + effect
        inside = (np.abs(mean) + stats.t.isf(0.05, 9) * error) < 1.2
        assert equivalence_power(1.2, effect, 10) == pytest.approx(inside.mean(), abs=0.01)
    assert t_power(50.0, 200) == pytest.approx(1.0)


def test_detectable_effect_is_where_power_is_80_percent():
    for n in (2, 5, 10, 50):
        effect = minimum_detectable_effect(0.3, n)
        assert t_power(effect / 0.3, n) == pytest.approx(0.8, abs=1e-6)
    # The textbook case: d = 0.5, two-sided 0.05, power 0.80 needs 34 pairs.
    assert minimum_detectable_effect(1.0, 34) <= 0.5 < minimum_detectable_effect(1.0, 33)
    assert minimum_detectable_effect(0.0, 5) == 0


def test_seeds_to_decide():
    more = seeds_to_decide(0.1, 0.3, 10, 0.2)
    total = 10 + more
    assert t_power(0.2 / 0.3, total) >= 0.8
    assert equivalence_power(0.2 / 0.3, 0.0, total) >= 0.8
    assert min(t_power(0.2 / 0.3, total - 1), equivalence_power(0.2 / 0.3, 0.0, total - 1)) < 0.8
    # Enough for either answer already: then by what was seen.
    later = seeds_to_decide(0.1, 0.3, 60, 0.2)
    assert max(t_power(0.1 / 0.3, 60 + later), equivalence_power(0.2 / 0.3, 0.1 / 0.3, 60 + later)) >= 0.8
    assert seeds_to_decide(0.0, 1000.0, 10, 0.001) is None
    assert seeds_to_decide(0.1, 0.0, 10, 0.2) is None


def test_intervals_cover_what_they_promise():
    d = np.random.default_rng(4).normal(0.3, 1.0, (4000, 5))
    covered = [t_interval(row).contains(0.3) for row in d]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_identical_arms_seldom_differ():
    """Family-wise error of Holm over sign-flip tests: seven arms that share a baseline, nine seeds."""
    generator = np.random.default_rng(5)
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=8)))
    signs = np.hstack([np.ones((256, 1)), signs])  # mirror images left out
    trials, arms, n = 4000, 7, 9
    runs = generator.normal(size=(trials, arms + 1, n))
    d = runs[:, 1:] - runs[:, :1]
    sums = np.abs(d @ signs.T)
    p = (sums >= np.abs(d.sum(-1))[..., None] - 1e-12).mean(-1)
    assert p[0, 0] == pytest.approx(sign_flip_test(d[0, 0]).p)
    smallest = [min(holm(row)) for row in p]
    assert np.mean(np.array(smallest) < 0.05) <= 0.05
    assert np.mean(p < 0.05) > 0.03  # the test is not merely silent


def test_degenerate_samples():
    same = [0.1 + 0.2] * 7
    assert standard_deviation(same) == 0
    assert t_interval(same) == pytest.approx((0.3, 0.3))
    assert equivalence_p(same, 0.5) == 0
    assert equivalence_p(same, 0.2) == 1
    assert probability_of_superiority(same) == 1
    assert probability_of_superiority([0.0, 0.0]) == 0.5
    assert correlation(same, range(7)) is None
    assert correlation([1.0, 2.0], [2.0, 1.0]) is None
    assert correlation([1.0, 2.0, 4.0], [2.0, 4.0, 8.0]) == pytest.approx(1)
    for function in (t_interval, standard_deviation, probability_of_superiority):
        with pytest.raises(ValueError, match="at least 2"):
            function([1.0])
        with pytest.raises(ValueError, match="NaN"):
            function([1.0, float("nan"), 2.0])
    with pytest.raises(ValueError, match="infinite"):
        sign_flip_test([float("inf")])
    with pytest.raises(ValueError, match="margin"):
        equivalence_p([1.0, 2.0], 0.0)
    with pytest.raises(ValueError, match="paired"):
        correlation([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="shape"):
        t_interval(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, float("nan")])
