"""Timing several things side by side: in turn, in an order that rotates, so that a slow minute hits all alike."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import quantile_test


class Case(NamedTuple):
    """One of the things that are compared.

    Attributes:
        run: does the work once.
        units: how many images (or steps) one call does.
        prepare: called before each timed block, untimed.
    """

    run: Callable[[], Any]
    units: int = 1
    prepare: Callable[[], Any] = lambda: None


class Timings(NamedTuple):
    """What a rotation measured.

    Attributes:
        seconds: per unit, one number a round, for each case; numbers of one round belong together.
        left_out: cases that the time limit left no time for.
    """

    seconds: dict[str, list[float]]
    left_out: list[str]


class Ratio(NamedTuple):
    """A median of paired ratios with its 95 % interval; None where there are too few pairs for one (n < 6)."""

    ratio: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.ratio:.3f}{interval}"


def order(names: Sequence[str], turn: int) -> list[str]:
    """The order of a round: there and back, then the same from one further on; all take all places equally often.

    >>> ["".join(order("abc", turn)) for turn in range(6)]
    ['abc', 'cba', 'bca', 'acb', 'cab', 'bac']
    """
    start = turn // 2 % len(names)
    rotated = [*names[start:], *names[:start]]
    return rotated[::-1] if turn % 2 else rotated


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(case: Case, calls: int, device: torch.device) -> float:
    """Seconds of a block of calls, from an idle device to an idle device."""
    case.prepare()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        case.run()
    synchronize(device)
    return time.perf_counter() - start


def time_in_rotation(
    cases: Mapping[str, Case],
    *,
    rounds: int,
    device: torch.device,
    min_seconds: float = 0.2,
    time_limit: float = math.inf,
) -> Timings:
    """Warm all cases up, then time a block of each per round.

    Args:
        cases: by name.
        rounds: how often each is timed.
        device: waited for at both ends of a block.
        min_seconds: a block has as many calls as take at least this long.
        time_limit: seconds; cases whose warm-up (compiling, above all) would start after three quarters of it
            are left out, and no round but the first starts that would end after it.
    """
    began = time.monotonic()
    calls: dict[str, int] = {}
    left_out = []
    for name, case in cases.items():
        if time.monotonic() - began > 0.75 * time_limit and calls:
            left_out.append(name)
            continue
        print(f"warming up {name}", file=sys.stderr, flush=True)
        case.prepare()
        case.run()
        first = timed(case, 1, device)
        calls[name] = max(1, math.ceil(min_seconds / first))
        if calls[name] > 1:  # the first call is slower than the rest: without this, blocks would be too short
            again = timed(case, calls[name], device) / calls[name]
            calls[name] = max(1, math.ceil(min_seconds / again))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    longest = 0.0
    for turn in range(rounds):
        start = time.monotonic()
        if turn and start + longest - began > time_limit:
            break
        for name in order(list(calls), turn):
            block = timed(cases[name], calls[name], device)
            seconds[name].append(block / (calls[name] * cases[name].units))
        longest = max(longest, time.monotonic() - start)
    return Timings(seconds, left_out)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Median of the ratios within rounds, with the distribution-free 95 % interval of a median.

    The interval's ends are order statistics (Conover 1999, "Practical Nonparametric Statistics", §3.2), so
    a few rounds that something else disturbed move it little.

    Raises:
        ValueError: not as many numerators as denominators.
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    interval = quantile_test(ratios, q=statistics.median(ratios), p=0.5).confidence_interval(0.95)
    low, high = (None if math.isnan(end) else float(end) for end in interval)
    known = low is not None and high is not None
    return Ratio(statistics.median(ratios), low if known else None, high if known else None, len(ratios))
