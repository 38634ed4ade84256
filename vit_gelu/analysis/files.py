"""What ``vit-gelu analyze`` leaves behind: a record, two tables, the arrays behind the pictures, and the pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_gelu.analysis.activations import BIN, EDGE, QUANTILES
from vit_gelu.analysis.observe import Analysis
from vit_gelu.analysis.plots import FIGURES, Title, save_figures
from vit_gelu.training.record import write_json
from vit_gelu.whole_file import whole_file

SCHEMA = 1
RECORD, ACTIVATIONS, ATTENTION, ARRAYS = "analysis.json", "activations.csv", "attention.csv", "arrays.npz"
FILES = (RECORD, ACTIVATIONS, ATTENTION, ARRAYS, *(f"{name}.png" for name in FIGURES))


def activation_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per activation, plain numbers; shares are fractions."""
    rows = []
    for row in analysis.activations:
        values = {k: v for k, v in vars(row).items() if k not in ("quantiles", "histogram")}
        rows.append(values | {f"q{100 * q:02.0f}": v for q, v in zip(QUANTILES, row.quantiles, strict=True)})
    return rows


def record_of(analysis: Analysis) -> dict[str, Any]:
    """The numbers for ``analysis.json``."""
    positions, filters = analysis.positions, analysis.filters
    return {
        "images": analysis.n,
        "activations": activation_rows(analysis),
        "attention": None
        if analysis.uniform_distance is None
        else {
            "uniform_distance_pixels": analysis.uniform_distance,
            "heads": [vars(head) for head in analysis.heads],
        },
        "position_embedding": None
        if positions is None
        else {name: getattr(positions, name) for name in ("neighbours", "same_row", "same_column", "others")},
        "patch_filters": None if filters is None else {"explained_variance": list(filters.explained)},
        "missing": analysis.missing,
    }


def write_analysis(folder: Path, record: dict[str, Any], analysis: Analysis, title: Title) -> list[str]:
    """Write everything, the record last: where it is, all of it is there.

    Args:
        folder: made if need be.
        record: for ``analysis.json``.
        analysis: what was found.
        title: of the pictures.

    Returns:
        The names of the files.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # of an analysis that is replaced: what the new one lacks must not stay
        (folder / name).unlink(missing_ok=True)
    written = [ACTIVATIONS]
    _write_csv(folder / ACTIVATIONS, [_flat(row) for row in activation_rows(analysis)])
    if analysis.heads:
        _write_csv(folder / ATTENTION, [vars(head) for head in analysis.heads])
        written.append(ATTENTION)
    with whole_file(folder / ARRAYS, "wb") as file:
        np.savez_compressed(file, **_arrays(analysis))
    written += [ARRAYS, *save_figures(folder, analysis, title)]
    write_json(folder / RECORD, record)
    return [RECORD, *written]


def _arrays(analysis: Analysis) -> dict[str, Any]:
    counts = np.stack([row.histogram.numpy() for row in analysis.activations])
    arrays: dict[str, Any] = {
        "histogram_edges": np.linspace(-EDGE, EDGE, round(2 * EDGE / BIN) + 1),
        "histograms": counts,
    }
    if analysis.rollout is not None:
        arrays["rollout"] = analysis.rollout.shares.numpy()
        arrays["rollout_indices"] = np.array(analysis.rollout.indices)
    if analysis.filters is not None:
        arrays["patch_filters"] = analysis.filters.components.numpy()
    if analysis.positions is not None:
        arrays["position_similarity"] = analysis.positions.cosine.numpy()
    return arrays


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """``learned`` as columns of its own."""
    learned = {f"learned_{name}": value for name, value in row["learned"].items()}
    return {name: value for name, value in row.items() if name != "learned"} | learned


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole_file(path, newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
