"""What an arm costs: speed and memory, from runs that had their device to themselves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vit_gelu.ablation.pairing import Experiment
from vit_gelu.ablation.records import Run, look_up
from vit_gelu.ablation.statistics import Interval, t_interval

SPEED, MEMORY = "speed.train_images_per_second", "speed.peak_memory_bytes"
# Figures under two of these never stand beside each other.
CONDITIONS = ("device", "n_devices", "precision", "compiled", "autotuned", "cuda_graphs", "torch")
# Of the steps that the other runs timed: annealing, dropped patches, mixing do not last for a whole training.
ENOUGH_TIMED = 0.8


@dataclass(frozen=True)
class Cost:
    """One quantity of one arm.

    Attributes:
        arm: its name.
        runs: that were measured.
        values: one per run: images per second, or bytes.
        mean: of the values.
        interval: 95 %, None for one run.
        change: relative to the baseline over pairs, geometric mean, as a share (−0.013: 1.3 % less); None
            without pairs, and for the baseline.
        change_interval: 95 %, by a t-interval on the logarithm of the ratio; None below two pairs.
        pairs: number of them.
    """

    arm: str
    runs: tuple[Run, ...]
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    change: float | None
    change_interval: Interval | None
    pairs: int

    @property
    def differs(self) -> bool:
        """Whether the interval of the change excludes 0."""
        return self.change_interval is not None and not self.change_interval.contains(0.0)


@dataclass(frozen=True)
class Costs:
    """Speed and memory of the arms.

    Attributes:
        conditions: device, precision and so on, common to all figures; empty when there are none.
        speed, memory: arm -> cost, where measured.
        notes: which runs were left out, and why.
    """

    conditions: str
    speed: dict[str, Cost]
    memory: dict[str, Cost]
    notes: tuple[str, ...]


def measure_costs(experiment: Experiment, baseline: str) -> Costs:
    """Speed and memory of every arm, and paired ratios to the baseline.

    Only runs whose record says ``exclusive: true`` count, and of these only those under the conditions
    (``CONDITIONS``) that most of them share, and those that timed as much of their training as the others.
    """
    runs = experiment.runs
    exclusive = [r for r in runs if look_up(r.record, "speed.exclusive") is True]
    notes = []
    if len(exclusive) < len(runs):
        notes.append(
            f"{len(runs) - len(exclusive)} of {len(runs)} runs shared their device, or do not know whether they did: "
            "they are left out of speed and memory."
        )
    counts = Counter(_conditions(r) for r in exclusive).most_common(2)
    if not counts:
        return Costs("", {}, {}, tuple(notes))
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        notes.append(
            "Speed and memory are not compared: as many runs were made under "
            f"{_shown(counts[0][0])} as under {_shown(counts[1][0])}."
        )
        return Costs("", {}, {}, tuple(notes))
    usual = counts[0][0]
    if len(counts) == 2:
        notes.append(f"Speed and memory are of the runs under {_shown(usual)}; {len(exclusive) - counts[0][1]} "
                     "others ran under other conditions.")  # fmt: skip
    same = [r for r in exclusive if _conditions(r) == usual]
    shares = {r.folder: _timed(r) for r in same}
    enough = ENOUGH_TIMED * max((s for s in shares.values() if s is not None), default=0.0)
    kept = [r for r in same if (share := shares[r.folder]) is None or share >= enough]
    if len(kept) < len(same):
        notes.append(
            f"{len(same) - len(kept)} of {len(same)} runs were stopped on their way, and have timed their steps since "
            "they went on alone: they are left out of speed and memory."
        )
    return Costs(_shown(usual), _costs(kept, baseline, SPEED), _costs(kept, baseline, MEMORY), tuple(notes))


def _conditions(run: Run) -> tuple[str, ...]:
    # What an older record does not have was off.
    return tuple(str(run.env.get(name) or None) for name in CONDITIONS)


def _timed(run: Run) -> float | None:
    """Share of its steps that a run timed; an older record does not tell."""
    timed, steps = (look_up(run.record, name) for name in ("speed.timed_steps", "steps"))
    return timed / steps if isinstance(timed, int) and steps else None


def _shown(values: tuple[str, ...]) -> str:
    device, n_devices, precision, compiled, autotuned, graphs, torch = values
    code = "compiled" if compiled == "True" else "eager"
    code += ", products autotuned" if autotuned == "True" else ""
    code += "" if graphs == "None" else f", {graphs} replayed from CUDA graphs"
    return f"{n_devices} x {device}, {precision}, {code}, torch {torch}"


def _costs(runs: Sequence[Run], baseline: str, name: str) -> dict[str, Cost]:
    measured: dict[str, dict[int, Run]] = {}
    for run in runs:
        value = look_up(run.record, name)
        if isinstance(value, int | float) and np.isfinite(value) and value > 0:
            measured.setdefault(run.arm, {})[run.seed] = run
    base = measured.get(baseline, {})
    return {
        arm: _cost(arm, by_seed, {} if arm == baseline else base, name) for arm, by_seed in measured.items()
    }


def _cost(arm: str, by_seed: dict[int, Run], base: dict[int, Run], name: str) -> Cost:
    values = tuple(float(look_up(r.record, name)) for r in by_seed.values())
    common = sorted(by_seed.keys() & base.keys())
    logs = [np.log(look_up(by_seed[s].record, name) / look_up(base[s].record, name)) for s in common]
    interval = None
    if len(logs) > 1:
        low, high = t_interval(logs)
        interval = Interval(float(np.expm1(low)), float(np.expm1(high)))
    return Cost(
        arm,
        tuple(by_seed.values()),
        values,
        sum(values) / len(values),
        t_interval(values) if len(values) > 1 else None,
        float(np.expm1(np.mean(logs))) if logs else None,
        interval,
        len(common),
    )
