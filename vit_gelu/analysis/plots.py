"""The pictures of an analysis: activations, attention, position embeddings, patch filters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vit_gelu.analysis.activations import BIN, EDGE, ActivationRow
from vit_gelu.analysis.names import short_names
from vit_gelu.analysis.observe import Analysis
from vit_gelu.figure_style import INK, LINE, PALETTE, SETTINGS, grid, new_figure
from vit_gelu.whole_file import whole_file

PER_POINT = 8  # bins of the histogram that are drawn as one point
MOST_TILES = 16  # position embeddings shown along a side
FLAT, CURVED, LINEAR = LINE, PALETTE[1], PALETTE[0]


class Title(NamedTuple):
    """Above the pictures: of what network they are, and of what images."""

    network: str
    images: str


def save_figures(folder: Path, analysis: Analysis, title: Title) -> list[str]:
    """Draw what there is, as PNG files.

    Returns:
        Their names.
    """
    written = []
    for name, draw in FIGURES.items():
        with mpl.rc_context(SETTINGS):
            figure = draw(analysis, title)
            if figure is None:
                continue
            with whole_file(folder / f"{name}.png", "wb") as file:
                figure.savefig(
                    file, format="png", dpi=160, facecolor="white", metadata={"Software": "vit_gelu"}
                )
        written.append(f"{name}.png")
    return written


def _figure(width: float, height: float, title: str) -> Figure:
    figure = new_figure(width, height)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def activations(analysis: Analysis, title: Title) -> Figure:
    """Left what goes in, right where on the curve it lies."""
    rows = analysis.activations
    names = short_names([row.name for row in rows])
    figure = _figure(7.4, 1.5 + 0.3 * len(rows), f"{title.network}: activations on {title.images}")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    _ridges(left, rows)
    _places(right, rows)
    left.set_yticks(range(len(rows)), names)
    left.set_ylim(len(rows) - 0.45, -1.0)
    left.tick_params(length=0)
    return figure


def _ridges(axes: Axes, rows: tuple[ActivationRow, ...]) -> None:
    edges = np.linspace(-EDGE, EDGE, round(2 * EDGE / BIN) + 1)[::PER_POINT]
    centres = (edges[1:] + edges[:-1]) / 2
    low, high = min(r.quantiles[0] for r in rows), max(r.quantiles[-1] for r in rows)
    margin = 0.1 * (high - low) + BIN * PER_POINT
    shown = (centres >= low - margin) & (centres <= high + margin)
    for i, row in enumerate(rows):
        counts = row.histogram.numpy().reshape(-1, PER_POINT).sum(axis=1)[shown]
        heights = 0.88 * counts / max(1, counts.max())
        x = centres[shown]
        axes.fill_between(x, i, i - heights, color=PALETTE[4], alpha=0.55, linewidth=0, zorder=2 + i)
        axes.plot(x, i - heights, color=INK, linewidth=0.6, zorder=2 + i)
        axes.plot([row.quantiles[3]] * 2, [i, i - 0.22], color=INK, linewidth=1.2, zorder=2 + i)
    axes.axvline(0, color=INK, linewidth=0.6, zorder=1)
    axes.set_title("pre-activations (density; mark: median)")
    grid(axes, "x")


def _places(axes: Axes, rows: tuple[ActivationRow, ...]) -> None:
    axes.set_title("share at a flat, curved, linear place")
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of pre-activations")
    axes.tick_params(length=0)
    for i, row in enumerate(rows):
        if row.flat is None or row.curved is None or row.linear is None:
            axes.text(2, i, "several inputs a unit: no slope", va="center", fontsize=7.5)
            continue
        start = 0.0
        for share, color in ((row.flat, FLAT), (row.curved, CURVED), (row.linear, LINEAR)):
            axes.barh(i, 100 * share, height=0.62, left=start, color=color, alpha=0.85, linewidth=0)
            start += 100 * share
        if row.flat_units:
            text = f"dead units {100 * row.flat_units:.1f} %"
            axes.text(1.5, i, text, va="center", fontsize=7, color=INK)
    handles = [mpl.patches.Patch(color=c, alpha=0.85) for c in (FLAT, CURVED, LINEAR)]
    names = ["flat: |f′| ≤ 0.01", "curved", "linear: |f′ − 1| ≤ 0.01"]
    axes.figure.legend(handles, names, loc="outside lower right", ncols=3, handlelength=1.0, fontsize=8)


def attention_distance(analysis: Analysis, title: Title) -> Figure | None:
    """One dot a head: ViT paper, Figure 7, right."""
    if analysis.uniform_distance is None:
        return None
    figure = _figure(6.2, 3.8, f"{title.network}: attention of each head on {title.images}")
    axes = figure.add_subplot()
    blocks = [head.block for head in analysis.heads]
    axes.scatter(
        blocks, [head.distance for head in analysis.heads], s=20, color=PALETTE[0], alpha=0.8, linewidths=0
    )
    axes.axhline(analysis.uniform_distance, color=PALETTE[1], linewidth=1, linestyle=(0, (4, 2)))
    axes.annotate(
        "attention that makes no difference", (1, analysis.uniform_distance), (-2, 3),
        xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right", fontsize=8, color=PALETTE[1],
    )  # fmt: skip
    axes.set_xlabel("block")
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_ylim(0, 1.12 * max(analysis.uniform_distance, *(head.distance for head in analysis.heads)))
    axes.locator_params(axis="x", integer=True)
    grid(axes, "y")
    return figure


def attention_rollout(analysis: Analysis, title: Title) -> Figure | None:
    """Images, and from where in them attention could carry something to the output."""
    if analysis.rollout is None:
        return None
    images, shares = analysis.rollout.images.numpy(), analysis.rollout.shares.numpy()
    count, _, height, width = images.shape
    figure = _figure(
        1.05 * count + 1.1, 2.2 * height / width + 0.45, f"{title.network}: attention rolled out"
    )
    axes = figure.subplots(2, count, squeeze=False)
    times = shares * shares[0].size
    for j in range(count):
        axes[0][j].imshow(_picture(images[j]), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        shown = axes[1][j].imshow(
            times[j], cmap="viridis", vmin=0, vmax=float(times.max()), interpolation="nearest"
        )
        for row in axes:
            row[j].set_axis_off()
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("times a uniform share", fontsize=8)
    bar.outline.set_linewidth(0.5)
    return figure


def position_embedding(analysis: Analysis, title: Title) -> Figure | None:
    """One tile a patch, its similarity to every patch: ViT paper, Figure 7, centre."""
    if analysis.positions is None:
        return None
    cosine = analysis.positions.cosine.numpy()
    rows, columns = cosine.shape[:2]
    every = max(1, -(-max(rows, columns) // MOST_TILES))
    tiles = _tiled(cosine[::every, ::every])
    high, wide = tiles.shape
    side = 5.0 / max(high, wide)
    figure = _figure(side * wide + 1.3, side * high + 0.7, f"{title.network}: position embeddings")
    axes = figure.add_subplot()
    shown = axes.imshow(tiles, cmap="viridis", vmax=1, interpolation="nearest")
    step_y, step_x = rows + 1, columns + 1
    axes.set_xticks(
        [(columns - 1) / 2 + step_x * j for j in range(wide // step_x + 1)], _thin(columns, every)
    )
    axes.set_yticks([(rows - 1) / 2 + step_y * i for i in range(high // step_y + 1)], _thin(rows, every))
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.02)
    bar.set_label("cosine similarity", fontsize=8)
    bar.outline.set_linewidth(0.5)
    return figure


def _thin(count: int, every: int) -> list[str]:
    return [str(i + 1) for i in range(0, count, every)]


def _tiled(tiles: NDArray[Any]) -> NDArray[Any]:
    """(a, b, c, d) -> one picture of a × b tiles of c × d, a line of nothing between them."""
    a, b, c, d = tiles.shape
    picture = np.full((a * (c + 1) - 1, b * (d + 1) - 1), np.nan)
    for i in range(a):
        for j in range(b):
            picture[i * (c + 1) : i * (c + 1) + c, j * (d + 1) : j * (d + 1) + d] = tiles[i, j]
    return picture


def patch_filters(analysis: Analysis, title: Title) -> Figure | None:
    """The main patterns, with their shares of the variance: ViT paper, Figure 7, left."""
    if analysis.filters is None:
        return None
    components, explained = analysis.filters.components.numpy(), analysis.filters.explained
    columns = min(7, len(components))
    rows = -(-len(components) // columns)
    figure = _figure(
        0.95 * columns + 0.3, 1.15 * rows + 0.6, f"{title.network}: patch filters, principal components"
    )
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, component, share in zip(panels, components, explained, strict=False):
        scaled = 0.5 + 0.5 * component / max(1e-12, float(np.abs(component).max()))
        axes.imshow(_picture(scaled), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{100 * share:.1f} %", fontsize=7.5, loc="center", pad=2)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """(channels, height, width) as ``imshow`` takes it: RGB, or of other numbers of channels their mean."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)


FIGURES: dict[str, Callable[[Analysis, Title], Figure | None]] = {
    "activations": activations,
    "attention_distance": attention_distance,
    "attention_rollout": attention_rollout,
    "position_embedding": position_embedding,
    "patch_filters": patch_filters,
}
