"""What an ablation is: arms, seeds, baseline and margin, fixed before the first run; and the runs that follow."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vit_gelu.cli.run_hash import config_hash

Resolve = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Arm:
    """One thing that is compared.

    Attributes:
        label: its name in tables and in ``record["arm"]``.
        config: all options of its runs but the seed, as they stand in a run's ``config.yaml``.
    """

    label: str
    config: dict[str, Any]

    @property
    def hash(self) -> str:
        """Sixteen hex digits that say what is run, whatever it is called."""
        return config_hash(self.config)

    @property
    def name(self) -> str:
        """Label and hash, fit for a file's name."""
        return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', self.label).strip('-')}-{self.hash[:8]}"

    def with_option(self, option: str, value: Any, label: str | None = None) -> "Arm":
        """The arm with one dotted option changed."""
        config = copy.deepcopy(self.config)
        *groups, last = option.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
        label = self.label if label is None else label
        return Arm(label, config | {"arm": label})

    def get(self, option: str) -> Any:
        """The value of a dotted option."""
        value: Any = self.config
        for part in option.split("."):
            value = value[part]
        return value


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        id: arm, seed and hash of all options: the name of its folder, log, lock and failure.
        arm: what is trained.
        seed: of the run.
        kind: ``runs``, or ``tuning`` for runs that choose a hyper-parameter; the folder that it lies in.
    """

    id: str
    arm: Arm
    seed: int
    kind: str = "runs"


def make_run(arm: Arm, seed: int, kind: str = "runs") -> Run:
    """The run of an arm with a seed, under its stable name."""
    stem, digits = arm.name.rsplit("-", 1)
    return Run(f"{stem}-seed{seed}-{digits}", arm, seed, kind)


@dataclass(frozen=True)
class Tune:
    """A grid that each arm chooses from, by validation accuracy.

    Attributes:
        option: dotted name, such as ``model.lr``.
        values: the grid, ascending.
        seeds: of the tuning runs; none of them is a seed of the ablation.
    """

    option: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    def as_plain(self) -> dict[str, Any]:
        """As it stands in plans, and in the options of the runs that come of it."""
        return {self.option: list(self.values), "seeds": list(self.seeds)}

    def candidates(self, arm: Arm) -> list[Arm]:
        """The arm at every value; each has a label of its own, so that no report mixes it with the arm."""
        return [self.give(arm, value, f"{arm.label} [{self.option}={value!r}]") for value in self.values]

    def give(self, arm: Arm, value: float, label: str | None = None) -> Arm:
        """The arm at a value of the grid. Its runs say so, or a report would take the difference for a mistake."""
        changed = arm.with_option(self.option, value, label)
        return replace(changed, config=changed.config | {"tuned": self.as_plain()})


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Attributes:
        arms: what is compared.
        seeds: each arm is run with each of them.
        baseline: label of the arm that the others are compared with.
        margin: difference in percentage points below which two arms count as equal.
        tune: a grid searched before the runs, or None.
    """

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    baseline: str
    margin: float
    tune: Tune | None = None

    @property
    def devices_per_run(self) -> int:
        """How many devices each run takes; equal for all arms."""
        return int(self.arms[0].get("trainer.devices"))

    def with_seeds(self, seeds: tuple[int, ...]) -> "Plan":
        """The same plan with other seeds."""
        return replace(self, seeds=seeds)

    def runs(self, arms: tuple[Arm, ...] | None = None) -> list[Run]:
        """All runs, seed by seed, so that whole pairs are there early.

        Args:
            arms: the arms after tuning; those of the plan by default.
        """
        return [make_run(arm, seed) for seed in self.seeds for arm in (self.arms if arms is None else arms)]

    def tuning_runs(self) -> Iterator[Run]:
        """The runs of the grid; none without one."""
        if self.tune is not None:
            for seed in self.tune.seeds:
                for arm in self.arms:
                    for candidate in self.tune.candidates(arm):
                        yield make_run(candidate, seed, "tuning")
