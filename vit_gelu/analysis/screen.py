"""What ``vit-gelu analyze`` shows."""

from rich.console import Console
from rich.table import Table

from vit_gelu.analysis.names import short_names
from vit_gelu.analysis.observe import Analysis


def print_analysis(console: Console, analysis: Analysis) -> None:
    """Print a row for each activation, and a line for everything else.

    Args:
        console: where to.
        analysis: what was found.
    """
    kinds = list(dict.fromkeys(row.activation for row in analysis.activations))
    same = len(kinds) == 1
    console.print(f"activation: {kinds[0]}" if same else "activations", markup=False, highlight=False)
    console.print(_table(analysis, same))
    console.print(
        "From below 0 on per cent, of pre-activations and of units. Flat: where the slope is within 0.01 of 0; "
        "linear: of 1; curved: the rest. Dead units are at a flat place for every token of every image.",
        highlight=False,
    )
    for line in lines(analysis):
        console.print(line, markup=False, highlight=False)


def _table(analysis: Analysis, same: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    names = short_names([row.name for row in analysis.activations])
    table.add_column("", no_wrap=True)
    if not same:
        table.add_column("activation")
    for title in ("mean", "sd", "1 %", "99 %"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("  below\n0", "output\n0", "flat", "curved", "linear", "dead\nunits", "linear\nunits"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, row in zip(names, analysis.activations, strict=True):
        numbers = (row.mean, row.sd, row.quantiles[0], row.quantiles[-1])
        shares = (row.negative, row.zero, row.flat, row.curved, row.linear, row.flat_units, row.linear_units)
        kind = () if same else (row.activation,)
        table.add_row(name, *kind, *(f"{x:.2f}" for x in numbers), *(_percent(x) for x in shares))
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def lines(analysis: Analysis) -> list[str]:
    """What there is besides the table, and what there is not."""
    found = []
    for name in dict.fromkeys(name for row in analysis.activations for name in row.learned):
        values = " ".join(
            f"{row.learned[name]:.3f}" if name in row.learned else "–" for row in analysis.activations
        )
        found.append(f"learned {name}: {values}")
    if analysis.uniform_distance is not None:
        last = max(head.block for head in analysis.heads)
        of = {b: [h.distance for h in analysis.heads if h.block == b] for b in (0, last)}
        found.append(
            f"attention distance: {_range(of[0])} pixels in the first block, {_range(of[last])} in the last; "
            f"uniform attention has {analysis.uniform_distance:.1f}"
        )
    if analysis.positions is not None:
        p = analysis.positions
        apart = [("in one row", p.same_row), ("in one column", p.same_column), ("elsewhere", p.others)]
        rest = ", ".join(f"{value:.2f} {where}" for where, value in apart if value is not None)
        found.append(
            f"position embeddings: cosine {p.neighbours:.2f} between neighbours{', ' if rest else ''}{rest}"
        )
    if analysis.filters is not None:
        shares = analysis.filters.explained
        k = min(5, len(shares))
        found.append(f"patch filters: {k} components hold {100 * sum(shares[:k]):.0f} % of their variance")
    names = {
        "attention": "attention",
        "patch_filters": "patch filters",
        "position_embedding": "position embeddings",
    }
    found += [f"{names[what]}: not there: {why}" for what, why in analysis.missing.items()]
    return found


def _range(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
