"""One look for all figures: colours that colour-blind readers can tell apart, and that follow the page's theme."""

import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_gelu.whole_file import whole_file, write_text

# Written as such into files; on the page they become the reader's own text, line and shade colours.
INK, LINE, SHADE = "#1c2024", "#d4d9df", "#e9edf2"
THEMED = {INK: "currentColor", LINE: "var(--line)", SHADE: "var(--shade)"}
# Okabe & Ito's palette without its yellow, which vanishes on white paper.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osD^vPX*<>"
# Five, so that neighbours in the list of arms differ in more than colour; curves of relatives often coincide.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.2)), (0, (6, 2, 1.5, 2)), (0, (3, 1, 1, 1, 1, 1)))

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "path",
    "svg.hashsalt": "vit_gelu",
}


class Look(NamedTuple):
    """How one arm is drawn everywhere."""

    color: str
    marker: str
    dash: Any


def looks(baseline: str, others: list[str]) -> dict[str, Look]:
    """A look for every arm: the baseline in the text's colour, no two of the others alike up to 30."""
    found = {baseline: Look(INK, "o", "-")}
    for i, arm in enumerate(others):
        found[arm] = Look(PALETTE[i % len(PALETTE)], MARKERS[(i + 1) % len(MARKERS)], DASHES[i % len(DASHES)])
    return found


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, drawn by Agg."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def grid(axes: Axes, axis: Any = "both") -> None:
    """Thin lines behind the data."""
    axes.grid(True, axis=axis)
    axes.tick_params(length=0)


def save(figure: Figure, path: Path) -> str:
    """Write ``path``.png and ``path``.svg, white behind.

    Returns:
        The SVG for a page: transparent, in the page's colours.
    """
    with mpl.rc_context(SETTINGS):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not at each format anew
        with whole_file(path.with_suffix(".png"), "wb") as file:
            figure.savefig(file, format="png", dpi=160, facecolor="white", metadata={"Software": "vit_gelu"})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None, "Creator": "vit_gelu"})
    text = buffer.getvalue()
    white = re.sub(r"(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="white"/>', text, count=1)
    write_text(path.with_suffix(".svg"), white)
    return themed(text, path.name)


def themed(svg: str, name: str) -> str:
    """An SVG file's text as an element of a page: no prolog, the page's colours, ids of its own.

    Args:
        svg: written by matplotlib.
        name: prefix of the ids, so that two figures on a page do not share any.
    """
    element = svg[svg.index("<svg ") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", element)
    for color, value in THEMED.items():
        element = element.replace(color, value)
    return element
