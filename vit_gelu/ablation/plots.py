"""The figures of a report: each function draws one, or says why there is nothing to draw."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vit_gelu.ablation.comparison import Analysis, Comparison, Verdict
from vit_gelu.ablation.costs import Cost, Costs
from vit_gelu.ablation.curves import mean_curve
from vit_gelu.ablation.naming import display, interval, number
from vit_gelu.ablation.shapes import shape
from vit_gelu.figure_style import INK, LINE, SETTINGS, SHADE, Look, grid, looks, new_figure, save


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: stem of its files.
        title: above it.
        caption: what is seen, with n.
        svg: element for a page; empty where there was nothing to draw, and ``caption`` says why.
    """

    name: str
    title: str
    caption: str
    svg: str


Drawn = tuple[Figure | None, str]


def draw_all(analysis: Analysis, costs: Costs, folder: Path) -> list[Picture]:
    """Draw every figure into a folder, as PNG and SVG."""
    pictures = []
    for name, (title, draw) in FIGURES.items():
        with mpl.rc_context(SETTINGS):
            figure, caption = draw(analysis, costs)
        svg = save(figure, folder / name) if figure is not None else ""
        pictures.append(Picture(name, title, caption, svg))
    return pictures


def _looks(analysis: Analysis) -> dict[str, Look]:
    return looks(analysis.baseline, [s.arm for s in analysis.summaries[1:]])


def forest(analysis: Analysis, costs: Costs) -> Drawn:
    """Differences to the baseline with 95 % intervals, each pair as a dot, the margin shaded."""
    rows = analysis.against_baseline
    if not rows:
        return None, "No arm has two pairs with the baseline."
    metric = analysis.metric
    figure = new_figure(7.2, 1.25 + 0.42 * len(rows))
    axes = figure.add_subplot()
    axes.axvspan(-analysis.margin, analysis.margin, color=SHADE, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    arm_looks = _looks(analysis)
    for y, row in enumerate(rows):
        color = arm_looks[row.arm].color
        axes.plot(row.differences, np.full(row.n, y + 0.24), "|", color=color, alpha=0.55, markersize=5)
        axes.plot(
            [row.interval.low, row.interval.high], [y, y], color=color, linewidth=2, solid_capstyle="butt"
        )
        axes.plot(row.mean, y, "o", color=color, markersize=6)
        axes.annotate(
            _forest_text(row, metric.digits),
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(rows)), [display(row.arm) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    better = "right" if metric.sign > 0 else "left"
    axes.set_xlabel(
        f"{metric.label}: difference to {display(analysis.baseline)} ({metric.unit}); better to the {better}"
    )
    grid(axes, "x")
    axes.spines["left"].set_visible(False)
    return figure, (
        f"Paired difference to {display(analysis.baseline)} in {metric.unit}: dot and bar are the mean and its 95 % "
        f"interval, ticks the single pairs, shaded what lies within the margin of {analysis.margin:g}."
    )


def _forest_text(row: Comparison, digits: int) -> str:
    verdict = "" if row.verdict is Verdict.NONE else f"  {row.verdict.value}"
    return f"{number(row.mean, digits, True)} {interval(row.interval, digits, True)}{verdict}"


def pairs(analysis: Analysis, costs: Costs) -> Drawn:
    """Seed by seed, every arm beside the baseline: a line joins the two runs of a pair."""
    metric, experiment = analysis.metric, analysis.experiment
    arms = [s.arm for s in analysis.summaries[1:] if experiment.pairs(s.arm, analysis.baseline)]
    if not arms:
        return None, "No arm shares a seed with the baseline."
    columns = min(len(arms), 4)
    rows = -(-len(arms) // columns)
    figure = new_figure(max(3.4, 1.8 * columns), 2.6 * rows + 0.2)
    grid_axes = figure.subplots(rows, columns, sharey=True, squeeze=False)
    arm_looks = _looks(analysis)
    for axes, arm in itertools.zip_longest(grid_axes.flat, arms):
        if arm is None:
            axes.set_visible(False)
            continue
        found = experiment.pairs(arm, analysis.baseline)
        for run, base in found:
            values = metric.of(base), metric.of(run)
            axes.plot((0, 1), values, color=arm_looks[arm].color, linewidth=0.8, alpha=0.6)
            axes.plot(0, values[0], "o", color=INK, markersize=3.5)
            axes.plot(1, values[1], arm_looks[arm].marker, color=arm_looks[arm].color, markersize=4)
        axes.set_xticks((0, 1), (display(analysis.baseline), _broken(display(arm))))
        axes.set_xlim(-0.35, 1.35)
        axes.set_title(f"n = {len(found)} pairs" if len(found) > 1 else "1 pair", fontsize=8.5)
        grid(axes, "y")
    for axes in grid_axes[:, 0]:
        axes.set_ylabel(metric.axis)
    return (
        figure,
        "Each line is one seed: the same initial weights, order of images and augmentation in both runs.",
    )


def _broken(name: str, longest: int = 14) -> str:
    """A long name on two lines."""
    if len(name) <= longest or " " not in name:
        return name if len(name) <= 20 else name[:19] + "…"
    first, rest = name.split(" ", 1)
    return f"{first}\n{rest if len(rest) <= 20 else rest[:19] + '…'}"


def curves(analysis: Analysis, costs: Costs) -> Drawn:
    """Validation accuracy and training loss over the epochs, mean and 95 % interval."""
    panels = (("val_top1", "validation top-1 (%)", 100.0), ("train_loss", "training loss", 1.0))
    figure = new_figure(7.2, 3.3)
    arm_looks = _looks(analysis)
    counts, drawn = set(), False
    for axes, (column, label, scale) in zip(figure.subplots(1, 2), panels, strict=True):
        for summary in analysis.summaries:
            look, curve = arm_looks[summary.arm], mean_curve(summary.runs, column, scale)
            if curve is None:
                continue
            drawn = True
            counts.add(curve.n)
            mark = look.marker if len(curve.epochs) < 3 else ""
            axes.plot(
                curve.epochs, curve.mean, color=look.color, linestyle=look.dash, marker=mark, linewidth=1.5
            )
            if curve.low:
                axes.fill_between(
                    curve.epochs, curve.low, curve.high, color=look.color, alpha=0.15, linewidth=0
                )
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True)
        axes.set_title(label)
        grid(axes)
    if not drawn:
        return None, "No metrics.csv lies beside the records."
    _legend(figure, [s.arm for s in analysis.summaries], arm_looks, marker=False)
    n = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return figure, (
        f"Mean of n = {n} runs; shaded, where n is above 1: 95 % interval of the mean. Training loss: mean over the "
        "steps since the point before."
    )


def _legend(figure: Figure, arms: Sequence[str], arm_looks: dict[str, Look], marker: bool) -> None:
    handles = [
        Line2D([], [], color=arm_looks[a].color, marker=arm_looks[a].marker, linestyle="none", markersize=6)
        if marker
        else Line2D([], [], color=arm_looks[a].color, linestyle=arm_looks[a].dash, linewidth=1.8)
        for a in arms
    ]
    names = [display(a) for a in arms]
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=_legend_columns(
            [len(name) + (7 if marker else 10) for name in names], 13.5 * figure.get_figwidth()
        ),
        handlelength=1.0 if marker else 2.6,
    )


def _legend_columns(widths: Sequence[int], room: float) -> int:
    """As many columns as fit, in even rows; widths and room in characters."""
    for rows in range(1, len(widths)):
        columns = -(-len(widths) // rows)
        if sum(max(column) for column in np.array_split(widths, columns)) <= room:  # matplotlib's, too
            return columns
    return 1


def trade_off(analysis: Analysis, costs: Costs) -> Drawn:
    """Accuracy against speed, with 95 % intervals both ways."""
    if not costs.speed:
        return None, "Speed is missing: no run is known to have had its device to itself."
    metric = analysis.metric
    figure = new_figure(5.2, 3.9)
    axes = figure.add_subplot()
    arm_looks = _looks(analysis)
    shown = [s for s in analysis.summaries if s.arm in costs.speed]
    for s in shown:
        look, cost = arm_looks[s.arm], costs.speed[s.arm]
        axes.errorbar(
            cost.mean,
            s.mean,
            xerr=None
            if cost.interval is None
            else [[cost.mean - cost.interval.low], [cost.interval.high - cost.mean]],
            yerr=None if s.interval is None else [[s.mean - s.interval.low], [s.interval.high - s.mean]],
            color=look.color,
            marker=look.marker,
            markersize=6,
            linewidth=1.2,
            capsize=2,
        )
    axes.set_xlabel("training speed (images/s)")
    axes.set_ylabel(metric.axis)
    axes.margins(0.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)
    grid(axes)
    _legend(figure, [s.arm for s in shown], arm_looks, marker=True)
    return figure, f"Bars: 95 % intervals of the means. {costs.conditions}."


def cost_bars(analysis: Analysis, costs: Costs) -> Drawn:
    """Speed and memory side by side."""
    if not costs.speed and not costs.memory:
        return None, "Speed and memory are missing: no run is known to have had its device to itself."
    arms = [s.arm for s in analysis.summaries if s.arm in costs.speed or s.arm in costs.memory]
    figure = new_figure(7.2, 1.2 + 0.36 * len(arms))
    left, right = figure.subplots(1, 2, sharey=True)
    arm_looks = _looks(analysis)
    _bars(left, arms, costs.speed, 1.0, arm_looks, "training speed (images/s)")
    _bars(right, arms, costs.memory, 2.0**20, arm_looks, "peak memory (MiB)")
    left.set_yticks(range(len(arms)), [display(a) for a in arms])
    left.set_ylim(len(arms) - 0.5, -0.5)
    on_cpu = analysis.experiment.runs[0].env.get("device_type") == "cpu"
    what = "resident memory of the whole process" if on_cpu else "tensors allocated on the device"
    return figure, f"Mean and 95 % interval; memory is {what}. {costs.conditions}."


def _bars(
    axes: Axes,
    arms: Sequence[str],
    costs: dict[str, Cost],
    unit: float,
    arm_looks: dict[str, Look],
    label: str,
) -> None:
    for y, arm in enumerate(arms):
        if arm not in costs:
            continue
        cost = costs[arm]
        axes.barh(y, cost.mean / unit, height=0.62, color=arm_looks[arm].color, alpha=0.8, linewidth=0)
        end = cost.mean
        if cost.interval is not None:
            axes.plot([cost.interval.low / unit, cost.interval.high / unit], [y, y], color=INK, linewidth=1.2)
            end = max(end, cost.interval.high)
        axes.annotate(
            f"{cost.mean / unit:,.0f}",
            (end / unit, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_xlabel(label)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.15)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=4)
    grid(axes, "x")


def shapes(analysis: Analysis, costs: Costs) -> Drawn:
    """The activations themselves, from closed forms, and a closer look around 0."""
    x = np.linspace(-4, 3, 1401)
    arm_looks = _looks(analysis)
    known, unknown = {}, []
    for s in analysis.summaries:
        record = s.runs[0].record
        values = shape(record["activation"], record.get("activation_kwargs"), x)
        if values is None:
            unknown.append(display(s.arm))
        else:
            known[s.arm] = values
    if not known:
        return None, "None of the activations is a fixed function of a number that could be drawn."
    figure = new_figure(7.2, 3.3)
    left, right = figure.subplots(1, 2)
    for arm, values in known.items():
        for axes in (left, right):
            axes.plot(x, values, color=arm_looks[arm].color, linestyle=arm_looks[arm].dash, linewidth=1.5)
    left.set(title="activation", xlim=(-4, 3), ylim=(-1.3, 3), xlabel="input")
    right.set(title="around 0", xlim=(-2.5, 1), ylim=(-0.5, 1), xlabel="input")
    for axes in (left, right):
        axes.axhline(0, color=LINE, linewidth=1, zorder=0)
        grid(axes)
    _legend(figure, list(known), arm_looks, marker=False)
    more = f" Not drawn, because they have no fixed closed form: {', '.join(unknown)}." if unknown else ""
    return figure, f"Drawn from their formulas.{more}"


FIGURES: dict[str, tuple[str, Callable[[Analysis, Costs], Drawn]]] = {
    "differences": ("Differences to the baseline", forest),
    "pairs": ("Seed by seed", pairs),
    "curves": ("Learning curves", curves),
    "trade_off": ("Accuracy and speed", trade_off),
    "costs": ("Speed and memory", cost_bars),
    "shapes": ("The activations", shapes),
}
