"""The answer in sentences, in the words that the number of pairs allows."""

from collections.abc import Sequence

from vit_gelu.ablation.comparison import LEAST_FOR_VERDICT, Analysis, Comparison, Verdict
from vit_gelu.ablation.costs import Costs
from vit_gelu.ablation.naming import capital, display, interval, listing, number
from vit_gelu.ablation.statistics import Interval

MOST_IN_FULL = 3


def answer(analysis: Analysis, costs: Costs) -> list[str]:
    """What the runs say, most important first: the headline, then the rest.

    With one pair there is no comparison at all, below ``LEAST_FOR_VERDICT`` pairs intervals without a verdict.
    """
    rows = analysis.against_baseline
    sentences: list[str] = []
    by_verdict = {v: [c for c in rows if c.verdict is v] for v in Verdict}
    sentences += _decided(analysis, costs, by_verdict[Verdict.BETTER], "beat")
    sentences += _decided(analysis, costs, by_verdict[Verdict.WORSE], "lose to")
    if by_verdict[Verdict.EQUIVALENT]:
        sentences.append(_equivalent(analysis, by_verdict[Verdict.EQUIVALENT]))
    sentences += [_undecided(analysis, c) for c in by_verdict[Verdict.UNDECIDED]]
    sentences += _without_verdict(analysis, [c for c in by_verdict[Verdict.NONE] if not c.identical])
    sentences += _same_network(analysis)
    sentences += _too_few(analysis)
    same = [c for c in analysis.among_others if c.verdict is Verdict.EQUIVALENT]
    if same:
        pairs = listing([f"{display(c.arm)} and {display(c.other)}" for c in same[:MOST_IN_FULL]])
        more = f", as are {len(same) - MOST_IN_FULL} more pairs of arms" if len(same) > MOST_IN_FULL else ""
        sentences.append(f"{capital(pairs)} are equivalent within {_margin(analysis)}{more} ({_n(same)}).")
    diverged = analysis.experiment.diverged()
    for arm, count in sorted(diverged.items()):
        total = count + len(analysis.experiment.arms.get(arm, {}))
        sentences.append(
            f"{count} of {total} runs of {display(arm)} diverged and are in none of these figures."
        )
    sentences += _speed(analysis, costs, inline=_inline(by_verdict[Verdict.BETTER]))
    return sentences


def _equivalent(analysis: Analysis, rows: Sequence[Comparison]) -> str:
    names, base = [display(c.arm) for c in rows], display(analysis.baseline)
    if len(rows) == 1:
        subject = f"{listing([base, *names])} are equivalent"
    else:
        subject = f"{listing(names)} are each equivalent to {base}"
    return f"{capital(subject)} within {_margin(analysis)}{_of(analysis)} ({_n(rows)})."


def _margin(analysis: Analysis) -> str:
    return f"{analysis.margin:g} {analysis.metric.unit}"


def _n(rows: Sequence[Comparison]) -> str:
    counts = sorted({c.n for c in rows})
    return f"n = {counts[0]} pairs" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]} pairs"


def _of(analysis: Analysis) -> str:
    """The metric, where it is not the usual one."""
    return "" if analysis.metric.name == "test_top1" else f" in {analysis.metric.label}"


def _inline(better: Sequence[Comparison]) -> str | None:
    """The arm whose speed stands in the headline: the only one that is better."""
    return better[0].arm if len(better) == 1 else None


def _gain(analysis: Analysis, row: Comparison) -> str:
    """How far apart, as a positive number with its interval turned likewise."""
    digits = analysis.metric.digits
    low, high = row.interval
    ends = Interval(low, high) if row.mean > 0 else Interval(-high, -low)
    return f"{number(abs(row.mean), digits)} {analysis.metric.unit} {interval(ends, digits)}"


def _decided(analysis: Analysis, costs: Costs, rows: Sequence[Comparison], verb: str) -> list[str]:
    if not rows:
        return []
    base = display(analysis.baseline)
    if len(rows) > MOST_IN_FULL:
        gains = sorted(abs(c.mean) for c in rows)
        digits = analysis.metric.digits
        names = listing([display(c.arm) for c in rows])
        return [
            f"{capital(names)} {verb} {base} by {number(gains[0], digits)} to {number(gains[-1], digits)} "
            f"{analysis.metric.unit}{_of(analysis)} ({_n(rows)})."
        ]
    if len(rows) == 1:
        row = rows[0]
        singular = {"beat": "beats", "lose to": "loses to"}[verb]
        cost = _speed_clause(costs, row.arm) if verb == "beat" else ""
        return [
            f"{capital(display(row.arm))} {singular} {base} by {_gain(analysis, row)}{_of(analysis)} "
            f"({_n(rows)}){cost}."
        ]
    arms = listing([display(c.arm) for c in rows])
    by = listing([_gain(analysis, c) for c in rows])
    return [f"{capital(arms)} {verb} {base}{_of(analysis)} by {by} ({_n(rows)})."]


def _speed_clause(costs: Costs, arm: str) -> str:
    cost = costs.speed.get(arm)
    if cost is None or cost.change is None or cost.change_interval is None or cost.pairs < LEAST_FOR_VERDICT:
        return ""
    percent = number(100 * abs(cost.change), 1)
    if not cost.differs:
        return " at a speed that cannot be told apart"
    return f" and costs {percent} % speed" if cost.change < 0 else f" and is {percent} % faster"


def _speed(analysis: Analysis, costs: Costs, inline: str | None) -> list[str]:
    if not costs.speed:
        return ["Speed is not compared: no run is known to have had its device to itself."]
    rest = [
        c
        for s in analysis.summaries[1:]
        if (c := costs.speed.get(s.arm)) and c.change is not None and c.change_interval is not None
        and not (s.arm == inline and _speed_clause(costs, s.arm))
    ]  # fmt: skip
    if not rest:
        return []
    base = display(analysis.baseline)
    parts = [
        f"{display(c.arm)} {number(100 * c.change, 1, True)} % "
        f"{interval(Interval(*(100 * x for x in c.change_interval)), 1, True)}"
        for c in rest
        if c.change is not None and c.change_interval is not None
    ]
    counts = sorted({c.pairs for c in rest})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return [f"Training speed against {base}: {', '.join(parts)} ({n} pairs)."]


def _undecided(analysis: Analysis, row: Comparison) -> str:
    digits = analysis.metric.digits
    text = (
        f"{capital(display(row.arm))} against {display(row.other)} is undecided at "
        f"{number(row.mean, digits, True)} {analysis.metric.unit} {interval(row.interval, digits, True)} "
        f"(n = {row.n} pairs)"
    )
    if row.more_seeds is None:
        return f"{text}."
    return f"{text}; about {row.more_seeds:,} more seed{'s' if row.more_seeds > 1 else ''} would decide it."


def _without_verdict(analysis: Analysis, rows: Sequence[Comparison]) -> list[str]:
    if not rows:
        return []
    digits = analysis.metric.digits
    parts = [
        f"{display(c.arm)} {number(c.mean, digits, True)} {interval(c.interval, digits, True)}" for c in rows
    ]
    return [
        f"Difference to {display(analysis.baseline)} in {analysis.metric.label}, in {analysis.metric.unit} with 95 % "
        f"interval: {', '.join(parts)} ({_n(rows)}). Fewer than {LEAST_FOR_VERDICT} pairs carry no verdict."
    ]


def _same_network(analysis: Analysis) -> list[str]:
    return [
        f"{capital(display(c.arm))} and {display(c.other)} gave the same result to the last digit in every seed: "
        "they are the same network, and nothing was compared."
        for c in (*analysis.against_baseline, *analysis.among_others)
        if c.identical
    ]


def _too_few(analysis: Analysis) -> list[str]:
    compared = {c.arm for c in analysis.against_baseline}
    alone = [s for s in analysis.summaries[1:] if s.arm not in compared]
    if not alone:
        return []
    digits = analysis.metric.digits
    if len(alone) == len(analysis.summaries) - 1:
        values = [f"{display(s.arm)} {number(s.mean, digits)}" for s in analysis.summaries]
        return [
            f"One pair of runs ranks nothing: {analysis.metric.axis} is {', '.join(values)}. Repeat with other "
            f"seeds, at least {LEAST_FOR_VERDICT} each, for a verdict."
        ]
    names = listing([display(s.arm) for s in alone])
    return [f"{capital(names)}: fewer than two pairs with {display(analysis.baseline)}, so not compared."]
