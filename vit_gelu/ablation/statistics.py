"""Paired comparisons of two activations, as pure functions of arrays.

Input is float64, shape (n,): one value per run, or one difference per pair of runs that share a seed. Every
function raises ``ValueError`` for values that are not finite, or too few of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

MOST_ENUMERATED = 16
MONTE_CARLO_DRAWS = 100_000
MONTE_CARLO_SEED = 0
# Enumerated means that differ by rounding alone are ties.
ROUNDING = 1e-12


class Interval(NamedTuple):
    """Ends of an interval, in the unit of the values."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether ``value`` is in the closed interval."""
        return self.low <= value <= self.high


class SignFlip(NamedTuple):
    """Result of ``sign_flip_test``.

    Attributes:
        p: two-sided.
        assignments: sign assignments behind it: 2ⁿ, or the number of draws.
        exact: whether all of them were counted.
    """

    p: float
    assignments: int
    exact: bool


def _finite(values: ArrayLike, least: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected one value per run, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("a value is NaN or infinite")
    if len(array) < least:
        raise ValueError(f"needs at least {least} values, got {len(array)}")
    return array


def standard_deviation(values: ArrayLike) -> float:
    """Sample standard deviation (n − 1); exactly 0 for equal values, whatever their mean rounds to."""
    array = _finite(values, 2)
    return 0.0 if np.ptp(array) <= ROUNDING * np.abs(array).max() else float(array.std(ddof=1))


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean: mean ± t · sd/√n (Student 1908).

    Raises:
        ValueError: fewer than two values.

    >>> low, high = t_interval([1.0, 2.0, 3.0])
    >>> print(f"{low:.3f} {high:.3f}")
    -0.484 4.484
    """
    array = _finite(values, 2)
    half = stats.t.ppf(0.5 + confidence / 2, len(array) - 1) * standard_deviation(array) / np.sqrt(len(array))
    return Interval(float(array.mean() - half), float(array.mean() + half))


def sign_flip_test(
    differences: ArrayLike,
    *,
    most_enumerated: int = MOST_ENUMERATED,
    draws: int = MONTE_CARLO_DRAWS,
    seed: int = MONTE_CARLO_SEED,
) -> SignFlip:
    """Two-sided exact test that paired differences are symmetric around 0 (Fisher 1935, §21).

    Under the null hypothesis each difference might as well have had the other sign. p is the share of all 2ⁿ sign
    assignments whose mean is at least as far from 0 as the observed one. It needs no normality, and is never
    below 2/2ⁿ.

    Args:
        differences: shape (n,), n ≥ 1.
        most_enumerated: up to this n, all assignments are counted.
        draws: beyond it, so many random ones; p = (1 + hits)/(1 + draws), which is valid, not only approximate
            (Phipson & Smyth 2010).
        seed: of the draws.

    >>> sign_flip_test([1.0, 2.0, 3.0]).p
    0.25
    """
    d = _finite(differences, 1)
    n = len(d)
    observed = abs(d.sum()) - ROUNDING * np.abs(d).sum()
    if n <= most_enumerated:
        # Both signs of the last difference give mirror images: half of the table is enough.
        sums = np.array([d[-1]])
        for value in d[:-1]:
            sums = np.concatenate([sums + value, sums - value])
        return SignFlip(float((np.abs(sums) >= observed).mean()), 2**n, True)
    generator = np.random.default_rng(seed)
    hits, left = 0, draws
    while left:
        size = min(left, max(1, 2_000_000 // n))
        signs = generator.integers(0, 2, (size, n), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ d) >= observed).sum())
        left -= size
    return SignFlip((1 + hits) / (1 + draws), draws, False)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the same order (Holm 1979): comparable with the level itself.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)) if len(p) else p
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(x) for x in adjusted]


def probability_of_superiority(differences: ArrayLike) -> float:
    """Probability that the next seed's pair favours the arm: that a new difference is above 0.

    The predictive distribution of a further normal observation, with mean and variance estimated from n of
    them, is mean + sd·√(1 + 1/n)·t with n − 1 degrees of freedom; this is its mass above 0. It is about single
    runs: a difference that is certain on average may still be lost in every third pair.

    Raises:
        ValueError: fewer than two differences.

    >>> probability_of_superiority([-1.0, 0.0, 1.0])
    0.5
    """
    d = _finite(differences, 2)
    spread = standard_deviation(d) * np.sqrt(1 + 1 / len(d))
    if spread == 0:
        return 0.5 if d.mean() == 0 else float(d.mean() > 0)
    return float(stats.t.cdf(d.mean() / spread, len(d) - 1))


def equivalence_p(differences: ArrayLike, margin: float) -> float:
    """p of the two one-sided t tests that |mean difference| < margin (Schuirmann 1987): the larger of the two.

    At level α it rejects exactly when the (1 − 2α) t-interval lies inside ±margin.

    Raises:
        ValueError: fewer than two differences, or a margin that is not above 0.
    """
    d = _finite(differences, 2)
    if not margin > 0:
        raise ValueError(f"the margin must be above 0, got {margin}")
    error = standard_deviation(d) / np.sqrt(len(d))
    if error == 0:
        return float(abs(d.mean()) >= margin)
    return float(stats.t.sf((margin - abs(d.mean())) / error, len(d) - 1))


def correlation(a: ArrayLike, b: ArrayLike) -> float | None:
    """Pearson's r over the pairs: what pairing gains. None where an arm does not vary or n < 3."""
    x, y = _finite(a, 1), _finite(b, 1)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values cannot be paired")
    if len(x) < 3 or standard_deviation(x) == 0 or standard_deviation(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1.0, 1.0))
