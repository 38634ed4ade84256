"""From times to statements: median and quartiles, and the ratio of two competitors, paired by round."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Spread(NamedTuple):
    """Median and quartiles (linear interpolation) of the times of n rounds, in seconds."""

    median: float
    q1: float
    q3: float
    n: int


class Ratio(NamedTuple):
    """time / baseline's time, with a confidence interval; above 1 is slower than the baseline."""

    value: float
    low: float
    high: float
    n: int


def spread(times: Sequence[float]) -> Spread:
    """Median and quartiles.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, q1=1.5, q3=2.5, n=3)
    """
    q1, median, q3 = np.percentile(np.asarray(times, dtype=float), [25, 50, 75])
    return Spread(float(median), float(q1), float(q3), len(times))


def paired_ratio(times: Sequence[float], baseline: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Geometric mean of the ratios round by round, and Student's t interval of their logarithms.

    What the interval covers is the spread from round to round in this process. What is drawn once per process
    (where memory lies, what the compiler chose) it does not see.

    Args:
        times, baseline: seconds, one per round, of the same rounds.
        confidence: of the interval.

    Raises:
        ValueError: not equally many rounds, or fewer than two.

    >>> paired_ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    Ratio(value=2.0, low=2.0, high=2.0, n=3)
    """
    if len(times) != len(baseline):
        raise ValueError(f"{len(times)} rounds against {len(baseline)}: only rounds of both can be paired")
    n = len(times)
    if n < 2:
        raise ValueError(f"{n} rounds: an interval needs at least 2")
    logs = np.log(np.asarray(times, dtype=float) / np.asarray(baseline, dtype=float))
    mean, error = float(logs.mean()), float(logs.std(ddof=1)) / n**0.5
    reach = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
    value, low, high = (float(np.exp(v)) for v in (mean, mean - reach, mean + reach))
    return Ratio(value, low, high, n)
