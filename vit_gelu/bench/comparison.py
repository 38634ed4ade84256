"""One comparison: competitors of one size, dtype and mode, taken through their rounds and summed up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_gelu.activations import ACTIVATIONS
from vit_gelu.bench.compiling import COMPILED, Compilation, counted
from vit_gelu.bench.devices import DeviceClock
from vit_gelu.bench.options import Options
from vit_gelu.bench.statistics import paired_ratio, spread
from vit_gelu.bench.timing import Competitor, calibrate, interleave
from vit_gelu.training.exclusivity import Exclusivity, summed_up

FEWEST_ROUNDS = 2


class OutOfTime(Exception):
    """The time limit came before a comparison was whole; what was measured of it is not used."""


@dataclass(frozen=True)
class Comparison:
    """What stands in one table.

    Attributes:
        labels: what its rows have in common: size, batch, dtype, mode.
        passes: what was timed: forward, backward, both; or train, inference.
        rows: one per activation.
        times: per pass and competitor, seconds of each round.
        exclusive: whether the device was ours alone; None: unknown.
        notes: what a reader must know.
    """

    labels: dict[str, Any]
    passes: tuple[str, ...]
    rows: list[dict[str, Any]]
    times: dict[str, dict[str, list[float]]]
    exclusive: bool | None
    notes: list[str]

    @property
    def title(self) -> str:
        """One line that tells it from the others."""
        return title(self.labels)


def title(labels: Mapping[str, Any]) -> str:
    """Size, dtype and mode of a comparison."""
    more = ", products autotuned" if labels.get("autotuned") else ""
    more += ", CUDA graphs" if labels.get("cuda_graphs") else ""
    return f"{labels['size']}, batch {labels['batch']}, {labels['dtype']}, {labels['mode']}{more}"


class Referee:
    """Times passes under the rules of ``options``, and watches for what would spoil them.

    Args:
        options: rounds, time per turn, deadline.
        clock: of the device.
        mode: eager or compiled.
    """

    def __init__(self, options: Options, clock: DeviceClock, mode: str) -> None:
        self.options, self.clock, self.mode = options, clock, mode
        self.exclusive: list[bool | None] = []
        self.notes: list[str] = []

    def time(self, what: str, competitors: Mapping[str, Competitor]) -> dict[str, list[float]]:
        """Seconds per call of each competitor and round.

        Raises:
            OutOfTime: the deadline passed before the second round.
            RuntimeError: torch.compile worked during the rounds, so that they hold compile time.
        """
        options, clock = self.options, self.clock
        if options.deadline():
            raise OutOfTime
        calls = calibrate(
            competitors,
            options.min_time,
            clock=clock.clock,
            synchronise=clock.synchronise,
            most=clock.most_calls,
        )
        graphs = counted()[0] if self.mode == COMPILED else 0
        watch = Exclusivity(options.device)
        times = interleave(
            competitors,
            options.rounds,
            clock=clock.clock,
            synchronise=clock.synchronise,
            calls=calls,
            head_start=clock.head_start,
            out_of_time=options.deadline,
        )
        self.exclusive.append(watch.check())
        if self.mode == COMPILED and counted()[0] != graphs:
            raise RuntimeError(f"{what}: torch.compile compiled again during the timed rounds")
        rounds = min(len(t) for t in times.values())
        if rounds < FEWEST_ROUNDS:
            raise OutOfTime
        if rounds < options.rounds:
            self.notes.append(f"{what}: {rounds} of {options.rounds} rounds within the time limit")
        return times

    def alone(self) -> bool | None:
        """Whether the device was ours in all rounds so far."""
        return summed_up(self.exclusive)


def figures(times: Mapping[str, Sequence[float]], name: str, baseline: str) -> dict[str, Any]:
    """``seconds`` {median, q1, q3}, ``rounds`` and ``ratio`` {value, low, high} of one competitor.

    The baseline's ratio to itself is 1 without an interval.
    """
    s = spread(times[name])
    figures: dict[str, Any] = {"seconds": {"median": s.median, "q1": s.q1, "q3": s.q3}, "rounds": s.n}
    if name == baseline:
        return figures | {"ratio": {"value": 1.0, "low": None, "high": None}}
    r = paired_ratio(times[name], times[baseline])
    return figures | {"ratio": {"value": r.value, "low": r.low, "high": r.high}}


def is_ours(name: str) -> bool:
    """Whether an activation comes with this package, which promises that it runs and compiles whole."""
    return name in ACTIVATIONS and ACTIVATIONS[name].factory.__module__.startswith("vit_gelu.")


def check_compiled(name: str, compilation: Compilation, *, empty: bool = False) -> list[str]:
    """Notes on what torch.compile left out.

    Args:
        name: of the activation.
        compilation: its first call.
        empty: whether there is nothing to compile (identity).

    Raises:
        RuntimeError: nothing was compiled, so that the row would be eager code under another name; or one of our
            own has graph breaks.
    """
    if compilation.graphs == 0 and not empty:
        raise RuntimeError(
            f"{name}: torch.compile compiled nothing; its figures would be those of eager code"
        )
    if compilation.graph_breaks == 0:
        return []
    if is_ours(name):
        raise RuntimeError(f"{name}: {compilation.graph_breaks} graph breaks in an activation of ours")
    return [f"{name}: {compilation.graph_breaks} graph breaks; part of it runs eagerly"]


def flattened(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """One level of keys, joined by ``_``.

    >>> flattened({"a": 1, "b": {"c": 2, "d": {"e": 3}}})
    {'a': 1, 'b_c': 2, 'b_d_e': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}_")
        else:
            flat[prefix + key] = value
    return flat


Say = Callable[[str], object]
