"""Verdicts: statistics of every arm, against the baseline and against each other."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from vit_gelu.ablation.metric import Metric
from vit_gelu.ablation.pairing import Experiment
from vit_gelu.ablation.power import minimum_detectable_effect, seeds_to_decide
from vit_gelu.ablation.records import Run
from vit_gelu.ablation.statistics import (
    Interval,
    SignFlip,
    correlation,
    equivalence_p,
    holm,
    probability_of_superiority,
    sign_flip_test,
    standard_deviation,
    t_interval,
)
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

ALPHA = 0.05
# Seven comparisons under Holm cannot reach 0.05 with fewer pairs.
LEAST_FOR_VERDICT = 9


class Verdict(Enum):
    """What n pairs say about an arm."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    UNDECIDED = "undecided"
    NONE = "no verdict"


@dataclass(frozen=True)
class Summary:
    """An arm by itself; values on the screen's scale.

    Attributes:
        arm: its name.
        runs: by seed.
        values: one per run.
        mean: of the values.
        sd, interval: None for a single run.
    """

    arm: str
    runs: tuple[Run, ...]
    values: tuple[float, ...]
    mean: float
    sd: float | None
    interval: Interval | None

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.runs)


@dataclass(frozen=True)
class Comparison:
    """An arm against another, over pairs of runs with one seed; differences are arm − other.

    Attributes:
        arm, other: names.
        seeds, differences: one per pair.
        mean, sd, interval: of the differences; the interval has 95 % and is not adjusted for the number of arms.
        sign_flip: exact paired test.
        p_holm: its p, adjusted over the family.
        equivalence_holm: p of equivalence within the margin, adjusted likewise.
        superiority: probability that a new seed's pair favours the arm.
        detectable: smallest true difference found with 80 % power at this sd and n, level 0.05 unadjusted.
        correlation: of the pairs; None where undefined.
        identical: the runs agree to the last digit in every seed, loss included.
        verdict: NONE below ``LEAST_FOR_VERDICT`` pairs.
        more_seeds: pairs that would decide an undecided one; None when decided or unreachable.
    """

    arm: str
    other: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    sd: float
    interval: Interval
    sign_flip: SignFlip
    p_holm: float
    equivalence_p: float
    equivalence_holm: float
    superiority: float
    detectable: float
    correlation: float | None
    identical: bool
    verdict: Verdict = Verdict.NONE
    more_seeds: int | None = None

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.seeds)


@dataclass(frozen=True)
class Analysis:
    """Everything that a report says about accuracy.

    Attributes:
        experiment, metric, baseline, margin: what was asked.
        summaries: every arm, the baseline first.
        against_baseline: one family of comparisons, over which p-values are adjusted.
        among_others: pairs of arms without the baseline; a second family.
        notes: what a reader must know.
    """

    experiment: Experiment
    metric: Metric
    baseline: str
    margin: float
    summaries: tuple[Summary, ...]
    against_baseline: tuple[Comparison, ...]
    among_others: tuple[Comparison, ...]
    notes: tuple[str, ...]


def analyse(experiment: Experiment, metric: Metric, baseline: str, margin: float) -> Analysis:
    """Compare all arms of an experiment.

    Arms are ordered by name, the baseline first: their order is no ranking.

    Args:
        experiment: paired runs.
        metric: what to compare.
        baseline: an arm's name.
        margin: differences below it do not matter, in the metric's unit.

    Raises:
        UsageError: no such arm, only one arm, or a run without the metric.
    """
    arms = experiment.arms
    if baseline not in arms:
        lost = [
            f"{x.folder}: {x.reason}" for x in experiment.left_out if x.record.get("activation") == baseline
        ]
        why = f"\nits runs were left out, such as {lost[0]}" if lost else ""
        raise UsageError(f"--baseline {baseline}: {unknown('arm', baseline, arms)}{why}")
    if len(arms) < 2:
        lost = [f"{x.folder}: {x.reason}" for x in experiment.left_out]
        why = f"\n{len(lost)} run(s) were left out, such as {lost[0]}" if lost else ""
        raise UsageError(f"only one arm to be compared: {baseline}{why}")
    lacking = [run.folder for run in experiment.runs if not metric.known(run)]
    if lacking:
        raise UsageError(f"--metric {metric.name}: {lacking[0]} has none")
    others = [arm for arm in arms if arm != baseline]
    notes = [*experiment.notes, *_notes(experiment, metric, baseline, margin)]
    first = _family(experiment, metric, [(arm, baseline) for arm in others], margin)
    second = _family(experiment, metric, list(itertools.combinations(others, 2)), margin)
    notes += [
        f"{c.arm} and {c.other} agree to the last digit in all {c.n} seeds, loss included: the same network was "
        "trained twice, and no verdict is given."
        for c in (*first, *second)
        if c.identical
    ]
    notes += [
        f"{c.arm} and {c.other} have the same {metric.label} in all {c.n} seeds, though not the same loss: that they "
        "are equivalent rests on equal counts, not on a t test."
        for c in (*first, *second)
        if c.verdict is Verdict.EQUIVALENT and c.sd == 0
    ]
    summaries = tuple(summarise(arm, list(arms[arm].values()), metric) for arm in (baseline, *others))
    return Analysis(experiment, metric, baseline, margin, summaries, first, second, tuple(notes))


def summarise(arm: str, runs: Sequence[Run], metric: Metric) -> Summary:
    """Mean, sd and 95 % interval of an arm's runs."""
    values = tuple(metric.of(run) for run in runs)
    several = len(values) > 1
    return Summary(
        arm,
        tuple(runs),
        values,
        sum(values) / len(values),
        standard_deviation(values) if several else None,
        t_interval(values) if several else None,
    )


def _notes(experiment: Experiment, metric: Metric, baseline: str, margin: float) -> list[str]:
    notes = []
    for arm, runs in experiment.arms.items():
        alone = sorted(set(runs) - set(experiment.arms[baseline]))
        if arm != baseline and alone:
            listed = ", ".join(str(seed) for seed in alone[:8]) + (", …" if len(alone) > 8 else "")
            notes.append(f"{arm} has runs without a partner in {baseline}: seeds {listed}.")
    for arm, count in sorted(experiment.diverged().items()):
        total = count + len(experiment.arms.get(arm, {}))
        notes.append(f"{count} of {total} runs of {arm} diverged; the figures are of those that did not.")
    image = 100 / experiment.runs[0].record["dataset"][f"{metric.path.split('.')[0]}_n"]
    if metric.scale == 100 and image > margin:
        notes.append(
            f"One image is {image:.2f} points, more than the margin of {margin:g}: a single run cannot tell "
            "apart what the margin asks for; only the mean over seeds can."
        )
    return notes


def _family(
    experiment: Experiment, metric: Metric, names: Sequence[tuple[str, str]], margin: float
) -> tuple[Comparison, ...]:
    """All comparisons of a family that have two pairs or more, with adjusted p-values and verdicts."""
    raw = [
        compare(arm, other, pairs, metric, margin)
        for arm, other in names
        if len(pairs := experiment.pairs(arm, other)) >= 2
    ]
    adjusted = holm([c.sign_flip.p for c in raw])
    equivalence = holm([c.equivalence_p for c in raw])
    family = [
        replace(c, p_holm=p, equivalence_holm=e) for c, p, e in zip(raw, adjusted, equivalence, strict=True)
    ]
    return tuple(decide(c, metric.sign, margin, len(family)) for c in family)


def compare(
    arm: str, other: str, pairs: Sequence[tuple[Run, Run]], metric: Metric, margin: float
) -> Comparison:
    """One comparison, before adjustment and verdict; needs two pairs."""
    a = [metric.of(first) for first, _ in pairs]
    b = [metric.of(second) for _, second in pairs]
    differences = tuple(x - y for x, y in zip(a, b, strict=True))
    sd = standard_deviation(differences)
    flip = sign_flip_test(differences)
    equivalence = equivalence_p(differences, margin)
    return Comparison(
        arm=arm,
        other=other,
        seeds=tuple(first.seed for first, _ in pairs),
        differences=differences,
        mean=sum(differences) / len(differences),
        sd=sd,
        interval=t_interval(differences),
        sign_flip=flip,
        p_holm=flip.p,
        equivalence_p=equivalence,
        equivalence_holm=equivalence,
        superiority=probability_of_superiority([metric.sign * d for d in differences]),
        detectable=minimum_detectable_effect(sd, len(pairs)),
        correlation=correlation(a, b),
        identical=all(_same(first, second) for first, second in pairs),
    )


def _same(a: Run, b: Run) -> bool:
    return a.record["test"] == b.record["test"] and a.record.get("val") == b.record.get("val")


def decide(comparison: Comparison, sign: int, margin: float, family: int) -> Comparison:
    """Add the verdict.

    Equivalent: the adjusted p of equivalence is below 0.05, also where a difference that small is significant.
    Better or worse: the adjusted p of the exact test is below 0.05 and the 95 % interval agrees, so that no
    verdict contradicts the interval beside it. Otherwise undecided.

    Args:
        comparison: with adjusted p-values.
        sign: +1 where more is better.
        margin: of equivalence.
        family: number of comparisons, for the seeds that would decide.
    """
    if comparison.n < LEAST_FOR_VERDICT or comparison.identical:
        return replace(comparison, verdict=Verdict.NONE)
    if comparison.equivalence_holm < ALPHA:
        return replace(comparison, verdict=Verdict.EQUIVALENT)
    if comparison.p_holm < ALPHA and not comparison.interval.contains(0.0):
        better = comparison.mean * sign > 0
        return replace(comparison, verdict=Verdict.BETTER if better else Verdict.WORSE)
    more = seeds_to_decide(comparison.mean, comparison.sd, comparison.n, margin, ALPHA / family)
    return replace(comparison, verdict=Verdict.UNDECIDED, more_seeds=more)
