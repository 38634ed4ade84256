"""Which value of the grid an arm gets: the best mean validation accuracy of its tuning runs; never the test set."""

from dataclasses import asdict, dataclass
from typing import Any

from vit_gelu.ablation.plan import Arm, Plan, Run, Tune
from vit_gelu.ablation.workspace import DIVERGED, FINISHED, State


@dataclass(frozen=True)
class Choice:
    """What an arm's tuning came to.

    Attributes:
        arm: its label.
        option: what was chosen, such as ``model.lr``.
        value: the choice, or None.
        reason: why there is none.
        at_edge: whether it lies at an end of the grid, so that a better value may lie outside.
        table: for each value, ``value``, ``val_top1`` (mean fraction over the seeds; None if a run diverged),
            and ``runs``: per seed its ``val_top1``, or ``diverged``.
    """

    arm: str
    option: str
    value: float | None
    reason: str
    at_edge: bool
    table: list[dict[str, Any]]

    def as_plain(self) -> dict[str, Any]:
        return asdict(self)


def choose(tune: Tune, arm: Arm, states: list[tuple[Run, State]]) -> Choice:
    """Choose from the grid.

    Ties go to the value nearest the middle of the grid, then to the smaller one. A value at which a run diverged is
    not eligible. If a run failed for another reason, nothing is chosen: the comparison would be unfair.

    Args:
        tune: the grid.
        arm: whose.
        states: tuning runs and what they came to; those of other arms are ignored.
    """
    middle = (len(tune.values) - 1) / 2
    table, ranked, unfinished = [], [], []
    for position, (value, candidate) in enumerate(zip(tune.values, tune.candidates(arm), strict=True)):
        own = [(run, state) for run, state in states if run.arm == candidate]
        unfinished += [run.id for run, state in own if not state.final]
        records = [state.record for _, state in own if state.status == FINISHED and state.record]
        mean = None
        if own and len(records) == len(own):
            # Whole numbers of hits, so that equal means are equal.
            mean = sum(r["val"]["correct"] for r in records) / sum(r["val"]["n"] for r in records)
            ranked.append((-mean, abs(position - middle), position))
        shown = {
            str(run.seed): state.record["val"]["top1"]
            if state.status == FINISHED and state.record
            else state.status
            for run, state in own
        }
        table.append({"value": value, "val_top1": mean, "runs": shown})
    if unfinished:
        return Choice(arm.label, tune.option, None, f"tuning run {unfinished[0]} has no result", False, table)
    if not ranked:
        return Choice(arm.label, tune.option, None, f"{DIVERGED} at every {tune.option}", False, table)
    position = min(ranked)[2]
    at_edge = position in (0, len(tune.values) - 1)
    return Choice(arm.label, tune.option, tune.values[position], "", at_edge, table)


def chosen_arms(plan: Plan, choices: list[Choice]) -> tuple[Arm, ...]:
    """The arms of a plan with what was chosen; arms without a choice are left out."""
    assert plan.tune is not None
    arms = zip(plan.arms, choices, strict=True)
    return tuple(plan.tune.give(arm, c.value) for arm, c in arms if c.value is not None)
