"""A confusion matrix as a picture, readable with ten classes and with a hundred."""

from collections.abc import Sequence
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Up to here the count stands in the cell.
MOST_CELLS_WITH_NUMBERS = 25
LONGEST_SIDE_INCHES = 14.0
LONGEST_NAME = 22


def confusion_figure(confusion: NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: rows true, columns predicted, colour the share of the true class.

    The colour scale is a square root, so that a confusion of 1 % shows beside a diagonal of 99 %. With up
    to 25 classes the counts are written into the cells.

    Args:
        confusion: counts, shape (num_classes, num_classes).
        class_names: one per class.
        title: above the matrix.
    """
    k = len(class_names)
    numbers = k <= MOST_CELLS_WITH_NUMBERS
    totals = confusion.sum(axis=1, keepdims=True)
    share = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)

    cell = min(0.56 if numbers else 0.125, LONGEST_SIDE_INCHES / k)
    side = max(cell * k, 3.0)
    # Text as high as 70 % of a cell, thinned out where that would be too small to read in print.
    font = min(10.0, 0.7 * 72 * side / k)
    every = max(1, int(np.ceil(5.0 / font)))
    font = max(font, 5.0)
    names = [n if len(n) <= LONGEST_NAME else n[: LONGEST_NAME - 1] + "…" for n in class_names]
    margin = 0.6 + max(len(n) for n in names[::every]) * font * 0.62 / 72

    width, height = margin + side + 1.1, margin + side + 0.6
    figure = Figure(figsize=(width, height), dpi=200, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    shown_share = np.ma.masked_where(confusion == 0, share)
    image = axes.imshow(shown_share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")

    ticks = np.arange(0, k, every)
    shown = names[::every]
    flat = max(len(n) for n in shown) * font * 0.62 / 72 < 0.9 * side / k * every
    axes.set_xticks(ticks, shown, rotation=0 if flat else 90, fontsize=font, parse_math=False)
    axes.set_yticks(ticks, shown, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_title(title, loc="left", fontsize=12, pad=10, parse_math=False)
    axes.tick_params(length=2, width=0.5, colors="#333333")
    for spine in axes.spines.values():
        spine.set_linewidth(0.5)
    if numbers:
        _write_counts(axes, confusion, share, min(font, 0.3 * 72 * side / k))
    elif every == 1:
        axes.set_xticks(np.arange(-0.5, k, 10), minor=True)
        axes.set_yticks(np.arange(-0.5, k, 10), minor=True)
        axes.grid(which="minor", color="#bbbbbb", linewidth=0.3)
        axes.tick_params(which="minor", length=0)

    bar_axes = figure.add_axes(((margin + side + 0.25) / width, margin / height, 0.16 / width, side / height))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0", "1", "5", "10", "25", "50", "75", "100"], fontsize=8)
    bar.set_label("share of the true class (%), square-root scale", fontsize=9)
    bar.outline.set_linewidth(0.5)
    return figure


def _write_counts(axes: Axes, confusion: NDArray[np.int64], share: NDArray[np.float64], font: float) -> None:
    for row, column in zip(*np.nonzero(confusion), strict=True):
        axes.text(
            column,
            row,
            str(confusion[row, column]),
            ha="center",
            va="center",
            fontsize=font,
            color="white" if share[row, column] > 0.35 else "#222222",
        )


def save_confusion(
    file: IO[bytes], confusion: NDArray[np.int64], class_names: Sequence[str], title: str
) -> None:
    """Write the picture to an open file as PNG; see ``confusion_figure``."""
    figure = confusion_figure(confusion, class_names, title)
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15)
