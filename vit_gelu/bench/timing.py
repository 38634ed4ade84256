"""The timing core: competitors take turns, round by round, and whoever began a round begins the next one last.

Nothing here knows torch. A drift of the machine (heat, another program) meets all competitors of a round alike,
so that the ratio of two times of one round holds where neither time does.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Competitor:
    """What is timed.

    Attributes:
        call: the work; gets what ``setup`` returned, or nothing where there is no ``setup``.
        setup: made anew before each call, outside of the time.
    """

    call: Callable[..., object]
    setup: Callable[[], Any] | None = None


def nothing(*_: Any) -> None:
    """Do nothing: the default of hooks."""


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The order of round ``turn``: the first ones of the earlier rounds have gone to the end.

    >>> rotated(["a", "b", "c"], 1), rotated(["a", "b", "c"], 5)
    (['b', 'c', 'a'], ['c', 'a', 'b'])
    """
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def calibrate(
    competitors: Mapping[str, Competitor],
    min_time: float,
    *,
    clock: Callable[[], Any] = time.perf_counter,
    synchronise: Callable[[], object] = nothing,
    most: int = 10_000,
) -> dict[str, int]:
    """How many calls each competitor needs for a turn of ``min_time``; never less than 1, never more than ``most``.

    Calls are doubled until they take a tenth of ``min_time``, so that the estimate is not of one cold call.

    Args:
        competitors: by name.
        min_time: seconds.
        clock, synchronise: see ``interleave``.
        most: upper bound.
    """
    needed = {}
    for name, competitor in competitors.items():
        calls = 1
        while True:
            total = calls * _turn(competitor, calls, clock, synchronise)[0]
            if total >= 0.1 * min_time or calls >= most:
                break
            calls = min(2 * calls, most)
        each = total / calls
        needed[name] = max(1, min(most, math.ceil(min_time / each))) if each > 0 else most
    return needed


def interleave(
    competitors: Mapping[str, Competitor],
    rounds: int,
    *,
    warmup: int = 1,
    clock: Callable[[], Any] = time.perf_counter,
    synchronise: Callable[[], object] = nothing,
    calls: Mapping[str, int] | None = None,
    head_start: Callable[[float], object] | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> dict[str, list[float]]:
    """Time all competitors in every round, in an order that rotates by one from round to round.

    Args:
        competitors: by name; the order of round 0.
        rounds: how often each one is timed.
        warmup: rounds before, not kept.
        clock: gives marks whose difference is seconds, once ``synchronise`` has returned: floats of a host
            clock, or events of a device.
        synchronise: waits until the device is idle.
        calls: calls per turn; 1 where not given.
        head_start: keeps the device busy for that many seconds without the host waiting, so that the host
            queues the turn's calls ahead and its own time is not measured; None: no head start.
        out_of_time: asked before each round; once it says yes, no round begins.

    Returns:
        Seconds per call, for each competitor and round. All lists are equally long: a round counts whole or
        not at all.

    Raises:
        ValueError: rounds < 1 or warmup < 0.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"{rounds} rounds after {warmup} of warm-up: at least 1 and 0 are needed")
    names = list(competitors)
    times: dict[str, list[float]] = {name: [] for name in names}
    host = dict.fromkeys(names, 0.0)
    with _no_garbage_collection():
        for turn in range(-warmup, rounds):
            if out_of_time():
                break
            for name in rotated(names, turn):
                count = calls[name] if calls else 1
                # Twice what it took before: a head start that is too short measures the host.
                seconds, host[name] = _turn(
                    competitors[name], count, clock, synchronise, head_start, 2.0 * host[name]
                )
                if turn >= 0:
                    times[name].append(seconds)
    return times


def _turn(
    competitor: Competitor,
    calls: int,
    clock: Callable[[], Any],
    synchronise: Callable[[], object],
    head_start: Callable[[float], object] | None = None,
    ahead: float = 0.0,
) -> tuple[float, float]:
    """Seconds per call by ``clock``, and the host's own seconds for the whole turn."""
    synchronise()
    if head_start is not None and ahead > 0.0:
        head_start(ahead)
    call, setup = competitor.call, competitor.setup
    begun = time.perf_counter()
    marks = []
    if setup is None:
        start = clock()
        for _ in range(calls):
            call()
        marks.append((start, clock()))
    else:
        for _ in range(calls):
            state = setup()
            start = clock()
            call(state)
            marks.append((start, clock()))
    host = time.perf_counter() - begun
    synchronise()
    return float(sum(end - start for start, end in marks)) / calls, host


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python's collector would run in somebody's turn."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Deadline:
    """A limit on the time of a whole benchmark.

    Args:
        seconds: from now; None: no limit.
        clock: in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = math.inf if seconds is None else clock() + seconds

    def __call__(self) -> bool:
        """Whether it has passed."""
        return self.clock() >= self.end
