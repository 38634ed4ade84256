"""The picture: one panel per comparison, fastest first, the numbers beside the marks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_gelu.bench.comparison import Comparison
from vit_gelu.bench.results import PICTURES
from vit_gelu.whole_file import whole_file

FORWARD, BACKWARD, MARK, BASE = "#4c78a8", "#9ecae1", "#222222", "#e45756"
ROW = 0.21  # inches
WIDTH = 6.6


def _figure(comparisons: Sequence[Comparison], columns: int) -> tuple[Figure, list[Axes]]:
    rows = -(-len(comparisons) // columns)
    tallest = max(len(c.rows) for c in comparisons)
    height = rows * (tallest * ROW + 1.05) + 0.9
    figure = Figure(figsize=(columns * WIDTH, height), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    panels = [axes[i // columns][i % columns] for i in range(rows * columns)]
    for empty in panels[len(comparisons) :]:
        empty.set_axis_off()
    return figure, panels


def _style(axes: Axes, names: Sequence[str], baseline: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    for label in axes.get_yticklabels():
        if label.get_text() == baseline:
            label.set_fontweight("bold")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(length=2, width=0.5, labelsize=8)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _ratio(ratio: Mapping[str, float | None], baseline: str) -> str:
    value, low, high = ratio["value"], ratio["low"], ratio["high"]
    if value is None or low is None or high is None:
        return "1  (baseline)"
    return f"{value:.2f}  [{low:.2f}, {high:.2f}]"


def _draw_activations(axes: Axes, comparison: Comparison, baseline: str) -> None:
    rows = sorted(comparison.rows, key=lambda r: r["both"]["seconds"]["median"])
    right = max(
        max(r["both"]["seconds"]["q3"], sum(r[p]["seconds"]["median"] for p in ("forward", "backward")))
        for r in rows
    )
    for i, row in enumerate(rows):
        forward, backward = (1e3 * row[p]["seconds"]["median"] for p in ("forward", "backward"))
        first = i == 0
        axes.barh(i, forward, 0.72, color=FORWARD, label="forward" if first else None)
        axes.barh(i, backward, 0.72, left=forward, color=BACKWARD, label="backward" if first else None)
        both = {k: 1e3 * v for k, v in row["both"]["seconds"].items()}
        reach = [[both["median"] - both["q1"]], [both["q3"] - both["median"]]]
        axes.errorbar(
            both["median"],
            i,
            xerr=reach,
            fmt="o",
            color=MARK,
            markersize=3,
            elinewidth=1,
            label="both, with quartiles" if first else None,
        )
        text = _ratio(row["both"]["ratio"], baseline)
        axes.annotate(
            text, (1.02, i), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7, color=MARK
        )
    axes.set_xlim(0, 1e3 * right * 1.03)
    _style(axes, [r["activation"] for r in rows], baseline)
    axes.set_title(comparison.title, loc="left", fontsize=9.5, fontweight="bold", parse_math=False)
    axes.set_xlabel("time per call (ms)", fontsize=8)
    axes.annotate(
        f"both / {baseline}  [95 %]",
        (1.02, 1.0),
        xycoords="axes fraction",
        va="bottom",
        fontsize=7,
        color="#555555",
    )


def _draw_training(axes: Axes, comparison: Comparison, baseline: str) -> None:
    rows = sorted(comparison.rows, key=lambda r: r["train"]["seconds"]["median"])
    for what, color, marker, shift in (("train", FORWARD, "o", -0.17), ("inference", BASE, "s", 0.17)):
        for i, row in enumerate(rows):
            ratio = row[what]["ratio"]
            reach = (
                None
                if ratio["low"] is None
                else [[ratio["value"] - ratio["low"]], [ratio["high"] - ratio["value"]]]
            )
            label = {"train": "training step", "inference": "inference"}[what] if i == 0 else None
            axes.errorbar(
                ratio["value"], i + shift, xerr=reach, fmt=marker, color=color, markersize=3.5, elinewidth=1.2,
                capsize=1.5, label=label,
            )  # fmt: skip
    for i, row in enumerate(rows):
        rates = (row[p]["images_per_second"] for p in ("train", "inference"))
        axes.annotate(
            "  ".join(f"{r:>8,.4g}" for r in rates),
            (1.02, i),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
            family="monospace",
            color=MARK,
        )
    axes.axvline(1.0, color="#999999", linewidth=0.8, zorder=0)
    _style(axes, [r["activation"] for r in rows], baseline)
    axes.set_title(comparison.title, loc="left", fontsize=9.5, fontweight="bold", parse_math=False)
    axes.set_xlabel(f"time / {baseline}, 95 % interval (right is slower)", fontsize=8)
    axes.annotate(
        "   train  inference\n  images/s",
        (1.02, 1.0),
        xycoords="axes fraction",
        va="bottom",
        fontsize=7,
        family="monospace",
        color="#555555",
    )


DRAW = {"activations": _draw_activations, "training": _draw_training}


def footer(record: Mapping[str, Any]) -> str:
    """Device, versions, date, rounds; and whether the device was shared."""
    env = record["env"]
    parts = [
        env["device"],
        f"torch {env['torch']}",
        *([f"CUDA {env['cuda']}"] if env["cuda"] else []),
        f"{record['asked']['rounds']} rounds",
        str(record["started"])[:10],
    ]
    if record["exclusive"] is False:
        parts.append("DEVICE SHARED: not for publication")
    return ", ".join(parts)


def bench_figure(comparisons: Sequence[Comparison], record: Mapping[str, Any], baseline: str) -> Figure:
    """Draw all comparisons of a benchmark; eager and compiled code never share a panel."""
    modes = {c.labels["mode"] for c in comparisons}
    columns = 2 if len(comparisons) > 1 and (len(modes) > 1 or len(comparisons) > 2) else 1
    figure, panels = _figure(comparisons, columns)
    for axes, comparison in zip(panels, comparisons, strict=False):
        DRAW[record["kind"]](axes, comparison, baseline)
    heading = {
        "activations": "Activations on the hidden tensor of a ViT's MLP",
        "training": "A ViT with each activation",
    }[record["kind"]]
    figure.suptitle(heading, x=0.01, ha="left", fontsize=12)
    # The fastest stand on top, so this corner is empty.
    panels[0].legend(loc="upper right", fontsize=8, frameon=False)
    figure.supxlabel(footer(record), x=0.01, ha="left", fontsize=7.5, color="#555555", parse_math=False)
    return figure


def save_pictures(
    folder: Path, comparisons: Sequence[Comparison], record: Mapping[str, Any], baseline: str
) -> None:
    """Write the picture as PNG and as SVG with real text."""
    with rc_context({"svg.fonttype": "none"}):
        figure = bench_figure(comparisons, record, baseline)
        for name in PICTURES:
            with whole_file(folder / name, "wb") as file:
                figure.savefig(file, format=name.rpartition(".")[2])
