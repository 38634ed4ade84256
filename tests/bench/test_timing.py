"""The timing core under a clock that only moves when somebody works."""

import gc

import pytest

from vit_gelu.bench.timing import Competitor, Deadline, calibrate, interleave, rotated


class World:
    """A clock, and work of known length that is written down."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def clock(self):
        return self.now

    def work(self, name, seconds):
        def call(*state):
            self.log.append((name, *state))
            self.now += seconds

        return call


def test_order_rotates_exactly():
    world = World()
    competitors = {n: Competitor(world.work(n, 1.0)) for n in "abc"}
    interleave(competitors, 4, warmup=0, clock=world.clock)
    order = "".join(name for (name,) in world.log)
    assert order == "abcbcacababc"
    assert [rotated("abc", i)[0] for i in range(6)] == [*"abcabc"]


def test_times_are_per_call_and_round():
    """Rounds of different length, after a long round of warm-up; the waits around them cost nothing."""
    world = World()
    lengths = iter([9.0, 1.0, 2.0, 4.0])
    marks = iter([0.0, 45.0, 0.0, 5.0, 0.0, 10.0, 0.0, 20.0])  # five calls between two marks
    waits = []
    times = interleave(
        {"a": Competitor(world.work("a", 1.0))},
        3,
        warmup=1,
        clock=lambda: next(marks),
        synchronise=lambda: waits.append(len(world.log)),
        calls={"a": 5},
    )
    assert times == {"a": [*lengths][1:]}
    assert waits == [0, 5, 5, 10, 10, 15, 15, 20]  # before and after each turn, never between its calls


def test_setup_is_not_timed_and_its_state_is_handed_over():
    world = World()
    states = iter(range(100))

    def setup():
        world.now += 50.0
        return next(states)

    times = interleave({"a": Competitor(world.work("a", 2.0), setup)}, 2, clock=world.clock, calls={"a": 3})
    assert times == {"a": [2.0, 2.0]}
    assert world.log == [("a", i) for i in range(9)]


def test_a_drift_cancels_in_the_ratio():
    """A machine that gets slower by half during the rounds."""
    world = World()

    def work(cost):
        def call():
            world.now += cost * (1 + world.now / 100)

        return Competitor(call)

    times = interleave({"a": work(0.2), "b": work(0.1)}, 60, clock=world.clock)
    assert times["a"][-1] > 1.15 * times["a"][0]
    ratios = [a / b for a, b in zip(times["a"], times["b"], strict=True)]
    assert all(1.99 < r < 2.01 for r in ratios)


def test_out_of_time_keeps_whole_rounds():
    world = World()
    competitors = {n: Competitor(world.work(n, 1.0)) for n in "abc"}
    deadline = Deadline(7.5, clock=world.clock)
    times = interleave(competitors, 50, warmup=1, clock=world.clock, out_of_time=deadline)
    assert {len(t) for t in times.values()} == {2}  # warm-up to 3, rounds to 6 and 9
    assert not Deadline(None)()


def test_head_start_comes_after_the_warm_up_and_is_longer_than_the_host_took():
    world = World()
    given = []
    interleave({"a": Competitor(lambda: sum(range(20_000)))}, 3, clock=world.clock, head_start=given.append)
    assert len(given) == 3
    assert min(given) > 0


def test_calibration_fills_the_time():
    world = World()
    competitors = {
        "long": Competitor(world.work("long", 0.3)),
        "short": Competitor(world.work("short", 0.001)),
        "free": Competitor(world.work("free", 0.0)),
    }
    calls = calibrate(competitors, 0.0205, clock=world.clock, most=500)
    assert calls == {"long": 1, "short": 21, "free": 500}


def test_garbage_waits():
    seen = []
    assert gc.isenabled()
    interleave({"a": Competitor(lambda: seen.append(gc.isenabled()))}, 2)
    assert seen == [False] * 3
    assert gc.isenabled()


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (3, -1)])
def test_no_rounds_are_refused(rounds, warmup):
    with pytest.raises(ValueError, match="at least"):
        interleave({"a": Competitor(lambda: None)}, rounds, warmup=warmup)
