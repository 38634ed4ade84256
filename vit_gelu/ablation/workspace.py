"""The folder of an ablation: its plan, and what each of its runs has come to."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_gelu.ablation.plan import Arm, Plan, Run, Tune
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.run_record import read_record, write_json
from vit_gelu.whole_file import write_text

SCHEMA = 1
PLAN = "plan.yaml"
# Options that may differ between two calls of one plan: they change no result.
FREE = ("loggers", "checkpoint_minutes")

FINISHED, DIVERGED, FAILED, OPEN = "finished", "diverged", "failed", "open"


@dataclass(frozen=True)
class State:
    """What a run has come to.

    Attributes:
        status: ``finished`` and ``diverged`` are final; ``failed`` is tried again by the next call; ``open``.
        reason: why it is not finished.
        record: the run's record, where there is one.
    """

    status: str
    reason: str = ""
    record: dict[str, Any] | None = None

    @property
    def final(self) -> bool:
        return self.status in (FINISHED, DIVERGED)


def write_yaml(path: Path, content: Any) -> None:
    """Write YAML whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def plan_as_plain(plan: Plan) -> dict[str, Any]:
    """The plan as it stands in ``plan.yaml``."""
    return {
        "schema": SCHEMA,
        "seeds": list(plan.seeds),
        "baseline": plan.baseline,
        "margin": plan.margin,
        "tune": None if plan.tune is None else plan.tune.as_plain(),
        "arms": [{"label": a.label, "config_hash": a.hash, "config": a.config} for a in plan.arms],
    }


def read_plan(folder: Path) -> Plan | None:
    """The plan that a folder holds, or None.

    Raises:
        UsageError: the file is not a plan of ours, or was changed by hand.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise UsageError(f"{path}: schema {content['schema']} is newer than this version knows; upgrade")
        arms = tuple(Arm(a["label"], a["config"]) for a in content["arms"])
        tune = content["tune"]
        if tune is not None:
            option = next(key for key in tune if key != "seeds")
            tune = Tune(option, tuple(tune[option]), tuple(tune["seeds"]))
        plan = Plan(arms, tuple(content["seeds"]), content["baseline"], content["margin"], tune)
        hashes = [a["config_hash"] for a in content["arms"]]
    except (yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(f"{path}: is not the plan of an ablation ({error!r})") from None
    for arm, written in zip(plan.arms, hashes, strict=True):
        if arm.hash != written:
            raise UsageError(f"{path}: arm {arm.label!r} was changed by hand; a plan stays as its runs began")
    return plan


def differences(there: Plan, here: Plan) -> list[str]:
    """In what two plans differ, as ``what: value there, value here``; more seeds are no difference."""
    found = []
    missing = [seed for seed in there.seeds if seed not in here.seeds]
    if missing:
        found.append(f"seeds: {list(there.seeds)} there, {list(here.seeds)} here (seeds can only be added)")
    for name in ("baseline", "margin"):
        if getattr(there, name) != getattr(here, name):
            found.append(f"{name}: {getattr(there, name)} there, {getattr(here, name)} here")
    a, b = ({arm.label: arm for arm in plan.arms} for plan in (there, here))
    if list(a) != list(b):
        found.append(f"arms: {', '.join(a)} there, {', '.join(b)} here")
    if there.tune != here.tune:
        tunes = [None if p.tune is None else plan_as_plain(p)["tune"] for p in (there, here)]
        found.append(f"tune: {tunes[0]} there, {tunes[1]} here")
    for label in a:
        if label in b and a[label].hash != b[label].hash:
            found += [f"arm {label}: {line}" for line in _changed(a[label].config, b[label].config)]
    return found


def _changed(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in dict.fromkeys([*there, *here]):
        if not prefix and key in FREE:
            continue
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} there, {new} here")
    return found


class Workspace:
    """Paths of an ablation's folder, and the state of its runs.

    Args:
        folder: the folder; made when the plan is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def adopt(self, plan: Plan) -> bool:
        """Make this folder the plan's: write ``plan.yaml``, or find the same plan there, perhaps with fewer seeds.

        Returns:
            Whether runs of the plan may be there already.

        Raises:
            UsageError: the folder holds another plan, or something else.
        """
        there = self.check(plan)
        if there is None or plan_as_plain(there) != plan_as_plain(plan):
            write_yaml(self.folder / PLAN, plan_as_plain(plan))
        return there is not None

    def check(self, plan: Plan) -> Plan | None:
        """The plan that is there, which ``plan`` goes on with; None in a new folder. Raises as ``adopt``."""
        there = read_plan(self.folder)
        if there is None:
            # The last is made by submitit before there is a plan.
            own = (".lock", f"{PLAN}.partial", "slurm")
            foreign = [p.name for p in self.folder.glob("*") if p.name not in own]
            if self.folder.exists() and (foreign or not self.folder.is_dir()):
                what = f"holds something else ({foreign[0]})" if foreign else "is a file"
                raise UsageError(f"--out {self.folder}: {what} and no {PLAN}; choose another --out")
            return None
        found = differences(there, plan)
        if found:
            more = [f"and {len(found) - 3} more"] if len(found) > 3 else []
            lines = [f"  {line[:300]}" for line in found[:3]]
            first = f"--out {self.folder}: holds another plan; choose another --out"
            raise UsageError("\n".join([first, *lines, *more]))
        return there

    def run_folder(self, run: Run) -> Path:
        return self.folder / run.kind / run.id

    def log(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.id}.log"

    def lock(self, run: Run) -> Path:
        return self.folder / "locks" / f"{run.id}.lock"

    def failure(self, run: Run) -> Path:
        return self.folder / "failures" / f"{run.id}.json"

    def config(self, arm: Arm) -> Path:
        return self.folder / "configs" / f"{arm.name}.yaml"

    def write_configs(self, runs: list[Run]) -> None:
        """Write the recipe of every arm of these runs."""
        for arm in {run.arm.name: run.arm for run in runs}.values():
            write_yaml(self.config(arm), arm.config)

    def request(self, run: Run) -> dict[str, Any]:
        """All that a process needs to know to carry out a run; plain types."""
        folder = self.run_folder(run).absolute()
        return {
            "id": run.id,
            "folder": str(folder),
            "log": str(self.log(run).absolute()),
            "lock": str(self.lock(run).absolute()),
            "arguments": ["--config", str(self.config(run.arm).absolute()), "--seed", str(run.seed)],
            "working_folder": os.getcwd(),
        }

    def state(self, run: Run) -> State:
        """What the run has come to, by what lies on disk."""
        record = read_record(self.run_folder(run))
        if record is not None:
            if record["status"] == FINISHED:
                return State(FINISHED, "", record)
            return State(DIVERGED, f"diverged at step {record.get('diverged_step')}", record)
        failure = self.failure(run)
        if failure.is_file():
            return State(FAILED, yaml.safe_load(failure.read_text(encoding="utf-8"))["reason"])
        return State(OPEN)

    def note_failure(self, run: Run, reason: str) -> None:
        """Remember why a run failed, until it is tried again."""
        self.failure(run).parent.mkdir(parents=True, exist_ok=True)
        log = str(self.log(run).relative_to(self.folder))
        write_json(
            self.failure(run),
            {"id": run.id, "arm": run.arm.label, "seed": run.seed, "reason": reason, "log": log},
        )

    def forget_failure(self, run: Run) -> None:
        """The run is being tried again."""
        self.failure(run).unlink(missing_ok=True)
