"""The figure of ``transfer.py``: what a swap costs and how fast training makes up for it.

python benchmarks/transfer_figure.py benchmarks/results/transfer-MACHINE.json docs/swap_recovery
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vit_gelu.figure_style import PALETTE, SETTINGS

ARMS = {"gelu kept": "#1c2024", "relu at once": PALETTE[1], "relu annealed": PALETTE[0]}


def recovery_figure(swap: list[dict[str, Any]]) -> Figure:
    """Validation top-1 over steps after the swap: mean, and the range of the seeds, per arm."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(6.4, 3.6), dpi=200, facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for arm, color in ARMS.items():
            runs = [row["val_top1"] for row in swap if row["arm"] == arm]
            steps = [step for step, _ in runs[0]]
            values = [[100 * run[i][1] for run in runs] for i in range(len(steps))]
            means = [statistics.mean(v) for v in values]
            axes.plot(steps, means, color=color, marker="o", markersize=3, linewidth=1.4, label=arm)
            axes.fill_between(
                steps, [min(v) for v in values], [max(v) for v in values], color=color, alpha=0.15, lw=0
            )
        n = len(runs)
        axes.set_xlabel("optimizer steps after the swap")
        axes.set_ylabel("CIFAR-10 validation top-1 (%)")
        axes.set_title(f"GELU → ReLU in a fine-tuned ViT (mean and range, n = {n})")
        axes.grid(axis="y")
        axes.legend(loc="lower right")
        figure.tight_layout()
    return figure


def main(argv: list[str]) -> None:
    source, target = Path(argv[0]), Path(argv[1])
    figure = recovery_figure(json.loads(source.read_text())["swap"])
    for suffix in (".png", ".svg"):
        figure.savefig(target.with_suffix(suffix), metadata={"Date": None} if suffix == ".svg" else None)
        print(target.with_suffix(suffix))


if __name__ == "__main__":
    main(sys.argv[1:])
