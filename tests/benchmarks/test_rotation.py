"""Turns are fair, ratios are those of pairs, intervals cover."""

import math

import numpy as np
import pytest
import torch
from rotation import Case, order, paired_ratio, quartiles, time_in_rotation
from scipy.stats import binom

CPU = torch.device("cpu")


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_everyone_takes_every_place_equally_often(n):
    names = [str(i) for i in range(n)]
    rounds = [order(names, turn) for turn in range(2 * n)]
    assert all(sorted(r) == sorted(names) for r in rounds)
    for place in range(n):
        assert sorted(r[place] for r in rounds) == sorted(names * 2)


def test_blocks_are_interleaved_and_prepared():
    events = []
    cases = {n: Case(lambda n=n: events.append(n), 4, lambda n=n: events.append(n.upper())) for n in "ab"}
    timings = time_in_rotation(cases, rounds=3, device=CPU, min_seconds=0)
    assert timings.left_out == []
    assert {n: len(s) for n, s in timings.seconds.items()} == {"a": 3, "b": 3}
    assert "".join(events[-12:]) == "AaBb" + "BbAa" + "BbAa"


def test_seconds_are_per_unit(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rotation.time.perf_counter", lambda: now[0])
    calls = []

    def step():
        calls.append(now[0])
        now[0] += 1.5

    timings = time_in_rotation({"a": Case(step, units=8)}, rounds=2, device=CPU, min_seconds=4)
    assert timings.seconds == {"a": [1.5 / 8] * 2}
    assert len(calls) == 2 + 3 + 2 * 3  # warm-up, a block to learn its length, two blocks of at least 4 s


def test_what_there_was_no_time_for_is_listed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("rotation.time.monotonic", lambda: now[0])

    def slow():
        now[0] += 3.0

    cases = {name: Case(slow) for name in "abc"}
    timings = time_in_rotation(cases, rounds=9, device=CPU, min_seconds=0, time_limit=15)
    assert timings.left_out == ["c"]  # a and b warm up until 12 s, more than three quarters of the limit
    assert {name: len(s) for name, s in timings.seconds.items()} == {"a": 1, "b": 1}


def test_ratio_is_paired_and_its_interval_is_that_of_a_median():
    theirs = np.exp(np.random.default_rng(0).normal(0, 1, 21))
    factors = np.linspace(1.5, 2.5, 21)
    ratio = paired_ratio(list(theirs * factors), list(theirs))
    assert ratio.ratio == pytest.approx(2.0)
    # The narrowest symmetric pair of order statistics that covers a median 95 times in a hundred.
    k = max(k for k in range(10) if 2 * binom.cdf(k - 1, 21, 0.5) <= 0.05)
    assert (ratio.low, ratio.high) == pytest.approx((factors[k - 1], factors[21 - k]))


def test_too_few_pairs_have_no_interval():
    assert paired_ratio([2.0] * 5, [1.0] * 5)[1:] == (None, None, 5)
    assert paired_ratio([2.0] * 6, [1.0] * 6).low is not None
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired_ratio([1.0, 2.0], [1.0])


def test_quartiles():
    values = list(np.random.default_rng(1).random(10))
    assert quartiles(values) == pytest.approx(tuple(np.quantile(values, [0.25, 0.5, 0.75])))
    assert quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert not any(math.isnan(q) for q in quartiles([1.0, 2.0]))
