"""From sound runs to arms of paired runs: what does not belong to one experiment is left out, by name."""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vit_gelu.ablation.arm_names import arm_key, arm_labels, own_label
from vit_gelu.ablation.recipe import Recipe, differing, read_recipe
from vit_gelu.ablation.records import LeftOut, Run, look_up, only_tuned, read_runs
from vit_gelu.cli.errors import UsageError

# What all runs of one experiment share, and how a message calls it.
PROTOCOL = {
    "data set": ("dataset.name",),
    "fingerprint of the data set": ("dataset.fingerprint",),
    "split (train, validation, test images)": ("dataset.train_n", "dataset.val_n", "dataset.test_n"),
    "global batch size": ("global_batch_size",),
    "number of epochs": ("epochs",),
    "number of steps": ("steps",),
    "tested checkpoint": ("tested",),
    "precision": ("env.precision",),
    "device type": ("env.device_type",),
    "tuning": ("tuned",),
}


@dataclass
class Experiment:
    """Runs that may be compared.

    Attributes:
        arms: name -> its runs by seed; one run per seed.
        left_out: runs that count nowhere.
        notes: what a reader must know about the runs that count.
    """

    arms: dict[str, dict[int, Run]]
    left_out: list[LeftOut]
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """All runs that count, by arm and seed."""
        return [run for arm in self.arms.values() for run in arm.values()]

    def pairs(self, arm: str, other: str) -> list[tuple[Run, Run]]:
        """Runs of two arms that share a seed, by seed; their orders of images are equal."""
        common = sorted(self.arms[arm].keys() & self.arms[other].keys())
        return [(self.arms[arm][seed], self.arms[other][seed]) for seed in common]

    def diverged(self) -> dict[str, int]:
        """How many runs of each arm diverged, where any did."""
        labels = arm_labels(
            [*(r.record for r in self.runs), *(x.record for x in self.left_out if x.diverged)]
        )
        return dict(Counter(labels[arm_key(x.record)] for x in self.left_out if x.diverged))


def read_experiment(folders: Sequence[Path]) -> Experiment:
    """Read run folders and pair them; see ``read_runs`` and ``pair``."""
    runs, left_out = read_runs(folders)
    return pair(runs, left_out)


def pair(runs: Sequence[Run], left_out: Sequence[LeftOut] = ()) -> Experiment:
    """Sort runs into arms, and leave out whatever cannot be paired.

    Where runs disagree on what must be common (``PROTOCOL``, the options of the recipe, the order of images at a
    seed), the strict majority stays and each other run is left out by name. An arm with a label of its own may
    have options of its own, and every arm its own value of what the ablation tuned; the notes then list them.

    Args:
        runs: sound runs.
        left_out: what was left out before.

    Raises:
        UsageError: no run is left, or the runs belong to several experiments with no majority for one.
    """
    compared = [x for x in runs if not only_tuned(x.record)]
    left_out = [x for x in left_out if not only_tuned(x.record)]
    sieve = _Sieve(compared, list(left_out))
    if len(compared) < len(runs):
        sieve.notes.append(
            f"Runs of the tuning ({len(runs) - len(compared)}) are not part of the comparison."
        )
    sieve.drop_copies()
    for what, names in PROTOCOL.items():
        sieve.keep_majority(what, names)
    sieve.keep_majority("model", ("model.name",), plain=True)
    labels = arm_labels([*(r.record for r in sieve.runs), *(x.record for x in left_out if x.diverged)])
    sieve.runs = [replace(run, arm=labels[arm_key(run.record)]) for run in sieve.runs]
    sieve.keep_one_recipe()
    sieve.keep_first_of_seed()
    sieve.keep_paired_orders()
    if not sieve.runs:
        shown = "; ".join(f"{x.folder}: {x.reason}" for x in sieve.left_out[:3])
        more = f"; and {len(sieve.left_out) - 3} more" if len(sieve.left_out) > 3 else ""
        raise UsageError(f"no run can be used: {shown}{more}")
    arms: dict[str, dict[int, Run]] = {}
    for run in sorted(sieve.runs, key=lambda r: (r.arm, r.seed)):
        arms.setdefault(run.arm, {})[run.seed] = run
    return Experiment(
        arms, sorted(sieve.left_out, key=lambda x: str(x.folder)), [*sieve.notes, *_versions(sieve.runs)]
    )


class _Sieve:
    def __init__(self, runs: list[Run], left_out: list[LeftOut]) -> None:
        self.runs, self.left_out = runs, left_out
        self.notes: list[str] = []

    def drop(self, reasons: dict[Path, str]) -> None:
        self.left_out += [
            LeftOut(r.folder, reasons[r.folder], r.record) for r in self.runs if r.folder in reasons
        ]
        self.runs = [r for r in self.runs if r.folder not in reasons]

    def drop_copies(self) -> None:
        """The same run copied into two folders counts once."""
        first: dict[str, Run] = {}
        reasons = {}
        for run in self.runs:
            text = json.dumps(run.record, sort_keys=True)
            if text in first:
                reasons[run.folder] = f"a copy of {first[text].folder}"
            first.setdefault(text, run)
        self.drop(reasons)

    def keep_majority(self, what: str, names: tuple[str, ...], *, plain: bool = False) -> None:
        """``plain``: among arms without a label of their own, since one with a label may differ."""
        runs = [r for r in self.runs if not (plain and own_label(r))]

        def value(run: Run) -> tuple[Any, ...]:
            return tuple(_hashable(look_up(run.record, n)) for n in names)

        common = majority([value(r) for r in runs])
        if common is None and runs:
            found = Counter(value(r) for r in runs)
            counts = sorted(found.items(), key=lambda item: (-item[1], str(item[0])))[:4]
            listed = ", ".join(f"{_shown(v)} ({n} run{'s' if n > 1 else ''})" for v, n in counts)
            raise UsageError(
                f"the runs are of several experiments and none has the majority: {what} {listed}\n"
                "name the folders of one experiment"
            )
        self.drop(
            {r.folder: f"{what} is {_shown(value(r))}, {_shown(common)} in the others"
             for r in runs if common is not None and value(r) != common}
        )  # fmt: skip

    def keep_one_recipe(self) -> None:
        recipes = {r.folder: read_recipe(r) for r in self.runs}
        tuned = [name for name in _tuning(self.runs) if name != "seeds"]
        plain = [x for r in self.runs if not own_label(r) and (x := recipes[r.folder])]
        common = _common([{n: v for n, v in x.items() if n not in tuned} for x in plain])
        reasons = {}
        chosen: dict[str, Recipe] = {}
        for arm in sorted({r.arm for r in self.runs}):
            runs = [r for r in self.runs if r.arm == arm]
            known = [x for r in runs if (x := recipes[r.folder])]
            chosen[arm] = _common([{n: x[n] for n in tuned if n in x} for x in known])
            target = _common(known) if own_label(runs[0]) else common | chosen[arm]
            for run in runs:
                recipe = recipes[run.folder]
                if recipe and (names := differing(recipe, target)):
                    n = names[0]
                    more = f" (and {len(names) - 1} more options)" if len(names) > 1 else ""
                    reasons[run.folder] = f"--{n} is {recipe[n]}, {target[n]} in the others{more}"
            if known and own_label(runs[0]) and (names := differing(target, common)):
                own = ", ".join(f"--{n} {target[n]} (the others: {common[n]})" for n in names)
                self.notes.append(f"{arm} has options of its own: {own}.")
            reasons |= self._unknown_recipes([r for r in runs if recipes[r.folder] is None])
        self._note_choices(chosen)
        unknown = sum(x is None for x in recipes.values())
        if unknown:
            self.notes.append(
                f"{unknown} of {len(recipes)} runs have no config.yaml with the hash of their record beside them: that "
                "their learning rate and other options agree with the rest was not checked."
            )
        self.drop(reasons)

    def _note_choices(self, chosen: dict[str, Recipe]) -> None:
        """Which value of the grid each arm got."""
        tuning = _tuning(self.runs)
        seeds = ", ".join(map(str, tuning.get("seeds", ())))
        for option, grid in tuning.items():
            values = {arm: recipe[option] for arm, recipe in chosen.items() if option in recipe}
            if option == "seeds" or not values:
                continue
            ends = (min(grid), max(grid))
            listed = ", ".join(
                f"{arm} {value:g}{' (an end of the grid)' if value in ends else ''}"
                for arm, value in values.items()
            )
            self.notes.append(
                f"--{option} was chosen for each arm by validation accuracy, from {', '.join(f'{v:g}' for v in grid)}, "
                f"in runs of their own (seeds {seeds}): {listed}."
            )

    def _unknown_recipes(self, runs: list[Run]) -> dict[Path, str]:
        """Without options to look at, only an equal hash shows that an arm's runs are alike."""
        hashes = [r.record["config_hash"] for r in runs]
        common = majority(hashes)
        return {
            r.folder: f"config hash {h} differs from the arm's other runs, and no config.yaml says in what"
            for r, h in zip(runs, hashes, strict=True)
            if h != common
        }

    def keep_first_of_seed(self) -> None:
        """Of several runs of an arm at one seed, the one that started first: no choice by result."""
        first: dict[tuple[str, int], Run] = {}
        reasons = {}
        for run in sorted(self.runs, key=lambda r: (str(r.record.get("started")), str(r.folder))):
            kept = first.setdefault((run.arm, run.seed), run)
            if kept is not run:
                reasons[run.folder] = (
                    f"a later run of {run.arm} at seed {run.seed}; the first is {kept.folder}"
                )
        self.drop(reasons)

    def keep_paired_orders(self) -> None:
        by_seed: dict[int, list[Run]] = defaultdict(list)
        for run in self.runs:
            by_seed[run.seed].append(run)
        reasons = {}
        owner: dict[str, int] = {}
        for seed, runs in sorted(by_seed.items()):
            common = majority([r.order_hash for r in runs])
            for run in runs:
                if common is None:
                    reasons[run.folder] = f"at seed {seed} no order of images is shared by most of the runs"
                elif run.order_hash != common:
                    reasons[run.folder] = (
                        f"order of images {run.order_hash[:12]} at seed {seed} is not the other arms' {common[:12]}"
                    )
                elif owner.setdefault(common, seed) != seed:
                    reasons[run.folder] = (
                        f"the order of images at seed {seed} is that of seed {owner[common]}"
                    )
        self.drop(reasons)


def majority(values: Sequence[Hashable]) -> Any:
    """The value that more than half have, None if there is none."""
    if not values:
        return None
    value, count = Counter(values).most_common(1)[0]
    return value if 2 * count > len(values) else None


def _common(recipes: Sequence[Recipe]) -> Recipe:
    """For every option its most frequent value."""
    common = {}
    for name in sorted({n for r in recipes for n in r}):
        texts = [json.dumps(r[name], sort_keys=True, default=str) for r in recipes if name in r]
        top = Counter(texts).most_common(2)
        if len(top) == 2 and top[0][1] == top[1][1]:
            raise UsageError(
                f"the runs are of several experiments and none has the majority: --{name} {top[0][0]} "
                f"({top[0][1]} runs), {top[1][0]} ({top[1][1]} runs)\nname the folders of one experiment"
            )
        common[name] = next(
            r[name]
            for r in recipes
            if name in r and json.dumps(r[name], sort_keys=True, default=str) == top[0][0]
        )
    return common


def _tuning(runs: Sequence[Run]) -> dict[str, Any]:
    """What the ablation of these runs tuned, a grid by option, and with which seeds; empty: nothing."""
    return (runs[0].record.get("tuned") or {}) if runs else {}


def _hashable(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def _shown(values: tuple[Any, ...]) -> str:
    return ", ".join(str(v) for v in values)


def _versions(runs: Sequence[Run]) -> list[str]:
    """A note for every version or device that is not the same in all runs."""
    notes = []
    for name in (
        "torch",
        "vit_gelu",
        "python",
        "device",
        "n_devices",
        "compiled",
        "autotuned",
        "cuda_graphs",
        "git",
    ):
        counts = Counter(str(r.env.get(name)) for r in runs)
        if len(counts) > 1:
            listed = ", ".join(f"{v} ({n})" for v, n in counts.most_common(5))
            notes.append(f"{name} is not the same in all runs: {listed}.")
    dirty = sum(str(r.env.get("git") or "").endswith("-dirty") for r in runs)
    if dirty:
        notes.append(f"{dirty} of {len(runs)} runs were made with code that differs from its commit.")
    mixed = [r for r in runs if r.env.get("earlier")]
    if mixed:
        notes.append(
            f"{len(mixed)} of {len(runs)} runs began with other code, or on another device, than they ended with "
            f"(env.earlier in their records): {', '.join(r.folder.name for r in mixed[:3])}"
            f"{', …' if len(mixed) > 3 else '.'}"
        )
    return notes
