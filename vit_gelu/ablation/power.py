"""How many seeds a comparison needs, and what it could have found with those it had."""

from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

POWER = 0.8
MOST_SEEDS = 1_000_000


def t_power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test, by the noncentral t distribution.

    Args:
        effect: true mean difference over the standard deviation of the differences.
        n: pairs, at least 2.
        alpha: level.
    """
    critical = stats.t.isf(alpha / 2, n - 1)
    shift = abs(effect) * np.sqrt(n)
    with np.errstate(divide="ignore"):  # scipy before 1.14 warns of divisions, with the right result
        # The far tail is below rounding, and scipy's noncentral t gives NaN there.
        far = stats.nct.cdf(-critical, n - 1, shift)
        near = stats.nct.sf(critical, n - 1, shift)
    return float(near + (far if np.isfinite(far) else 0.0))


def minimum_detectable_effect(sd: float, n: int, alpha: float = 0.05, power: float = POWER) -> float:
    """The smallest true mean difference that the paired t test finds with this power, in the unit of ``sd``.

    Raises:
        ValueError: fewer than two pairs, or a negative ``sd``.
    """
    if n < 2 or not sd >= 0:
        raise ValueError(f"needs n of at least 2 and sd of at least 0, got {n} and {sd}")

    def missing(effect: float) -> float:
        return t_power(effect, n, alpha) - power

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(sd * optimize.brentq(missing, 0.0, high))


def equivalence_power(margin: float, effect: float, n: int, alpha: float = 0.05, points: int = 2000) -> float:
    """Power of the two one-sided t tests, by numerical integration over the estimated variance.

    Args:
        margin, effect: margin and true mean difference over the standard deviation of the differences.
        n: pairs, at least 2.
        alpha: level of each one-sided test.
        points: quantiles of the χ² distribution that the integral is a mean over.
    """
    levels = (np.arange(points) + 0.5) / points
    estimated = np.sqrt(stats.chi2.ppf(levels, n - 1) / (n - 1))
    room = margin * np.sqrt(n) - stats.t.isf(alpha, n - 1) * estimated
    shift = effect * np.sqrt(n)
    inside = stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift)
    return float(np.where(room > 0, inside, 0.0).mean())


def seeds_to_decide(
    mean: float, sd: float, n: int, margin: float, alpha: float = 0.05, power: float = POWER
) -> int | None:
    """How many more pairs would decide an undecided comparison, if the observed sd is the true one.

    First the size at which the question is answered either way with this power: a true difference of ``margin``
    is found, and a true difference of 0 is shown to be within it. Where n has reached that already, the truth
    lies in between: then the size at which one of the two tests succeeds if the observed mean is true.

    Args:
        mean, sd: of the n observed differences.
        n: pairs so far.
        margin: of equivalence, in the unit of ``sd``.
        alpha: level per comparison; divide it by their number to be on Holm's safe side.

    Returns:
        Pairs beyond n, or None where that is more than ``MOST_SEEDS``.
    """
    if sd == 0:
        return None

    def either_way(size: int) -> bool:
        found = t_power(margin / sd, size, alpha) >= power
        return found and equivalence_power(margin / sd, 0.0, size, alpha) >= power

    def as_observed(size: int) -> bool:
        found = t_power(mean / sd, size, alpha) >= power
        return found or equivalence_power(margin / sd, mean / sd, size, alpha) >= power

    for enough in (either_way, as_observed):
        size = _smallest(enough)
        if size is None or size > n:
            return None if size is None else size - n
    return 1


def _smallest(enough: Callable[[int], bool]) -> int | None:
    """The first size from 2 on with ``enough``, which stays true once it is; by doubling, then halving."""
    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_SEEDS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
