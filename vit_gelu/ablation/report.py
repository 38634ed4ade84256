"""A report's folder: page, Markdown, LaTeX, CSV, figures, and ``report.json`` that says which files are ours."""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit_gelu.ablation.comparison import Analysis, Comparison
from vit_gelu.ablation.costs import Cost, Costs
from vit_gelu.ablation.document import Document, compose
from vit_gelu.ablation.latex import to_latex
from vit_gelu.ablation.markdown import to_markdown
from vit_gelu.ablation.page import to_html
from vit_gelu.ablation.plots import FIGURES, draw_all
from vit_gelu.ablation.tables import write_results
from vit_gelu.cli.errors import UsageError
from vit_gelu.whole_file import write_text

SCHEMA = 1
GENERATOR = "vit-gelu report"
PAGE, MARKDOWN, LATEX, RESULTS, MANIFEST = (
    "report.html",
    "report.md",
    "table.tex",
    "results.csv",
    "report.json",
)
FIGURE_FOLDER = "figures"
TEXTS = (PAGE, MARKDOWN, LATEX, RESULTS)
FILES = (*TEXTS, *(f"{FIGURE_FOLDER}/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")))


def refuse_foreign(out: Path) -> dict[str, list[str]]:
    """Make sure that only files of an earlier report would be replaced.

    Returns:
        Hashes of the earlier report's files, by name.

    Raises:
        UsageError: ``out`` or a file in it is not ours, or was changed since.
    """
    for folder in (out, out / FIGURE_FOLDER):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {out}: {folder} is a file, not a folder")
    advice = "nothing is overwritten: choose another --out, or move it away"
    known: dict[str, list[str]] = {}
    if (out / MANIFEST).exists():
        try:
            manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
            ours = manifest["generator"] == GENERATOR
            known = {str(k): [str(h) for h in v] for k, v in manifest["files"].items()} if ours else {}
        except (ValueError, KeyError, TypeError, AttributeError):
            ours = False
        if not ours:
            raise UsageError(f"--out {out}: {MANIFEST} is not the file of a report; {advice}")
    for name in FILES:
        path = out / name
        if (path.exists() or path.is_symlink()) and (
            not path.is_file() or _digest(path) not in known.get(name, [])
        ):
            what = "was changed since the report was made" if name in known else "is not of a report"
            raise UsageError(f"--out {out}: {name} {what}; {advice}")
    return known


def write_report(analysis: Analysis, costs: Costs, out: Path, command: str = "") -> Document:
    """Write the report; every file whole or not at all, an earlier report's replaced.

    Args:
        analysis, costs: what it says.
        out: its folder, made if need be.
        command: how it is made again.

    Returns:
        What was written, in its parts.

    Raises:
        UsageError: a file in ``out`` is not ours (``refuse_foreign``).
    """
    known = refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as name:
        partial = Path(name)
        (partial / FIGURE_FOLDER).mkdir()
        pictures = draw_all(analysis, costs, partial / FIGURE_FOLDER)
        document = compose(analysis, costs, pictures)
        write_text(partial / PAGE, to_html(document))
        write_text(partial / MARKDOWN, to_markdown(document, FIGURE_FOLDER))
        write_text(partial / LATEX, to_latex(document))
        write_results(partial / RESULTS, analysis)
        made = {f: [_digest(partial / f)] for f in FILES if (partial / f).exists()}
        record = summary(analysis, costs, document) | {"command": command}
        # Both generations are ours until the last file is in place.
        both = {f: [*known.get(f, []), *made.get(f, [])] for f in {*known, *made}}
        _write_manifest(out, record, both)
        (out / FIGURE_FOLDER).mkdir(exist_ok=True)
        for file in FILES:
            if file in made:
                os.replace(partial / file, out / file)
            else:
                (out / file).unlink(missing_ok=True)
    _write_manifest(out, record, made)
    return document


def summary(analysis: Analysis, costs: Costs, document: Document) -> dict[str, Any]:
    """The numbers for programs; differences in the metric's unit, speed changes as shares."""
    return {
        "schema": SCHEMA,
        "generator": GENERATOR,
        "answer": document.answer,
        "metric": analysis.metric.name,
        "unit": analysis.metric.unit,
        "baseline": analysis.baseline,
        "margin": analysis.margin,
        "arms": [
            {"arm": s.arm, "n": s.n, "mean": s.mean, "sd": s.sd, "interval": s.interval}
            for s in analysis.summaries
        ],
        "against_baseline": [_plain(c) for c in analysis.against_baseline],
        "among_others": [_plain(c) for c in analysis.among_others],
        "speed": {arm: _cost(cost) for arm, cost in costs.speed.items()},
        "memory": {arm: _cost(cost) for arm, cost in costs.memory.items()},
        "conditions": costs.conditions,
        "notes": document.notes,
        "runs": [
            {"folder": str(r.folder), "arm": r.arm, "seed": r.seed, "order_hash": r.order_hash}
            for r in analysis.experiment.runs
        ],
        "left_out": [{"folder": str(x.folder), "reason": x.reason} for x in analysis.experiment.left_out],
    }


def _plain(comparison: Comparison) -> dict[str, Any]:
    return asdict(comparison) | {
        "verdict": comparison.verdict.value,
        "sign_flip": comparison.sign_flip._asdict(),
    }


def _cost(cost: Cost) -> dict[str, Any]:
    kept = {k: getattr(cost, k) for k in ("mean", "interval", "change", "change_interval", "pairs")}
    return {"runs": len(cost.runs), **kept}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_manifest(out: Path, record: dict[str, Any], files: dict[str, list[str]]) -> None:
    text = json.dumps(
        record | {"files": dict(sorted(files.items()))}, indent=1, allow_nan=False, ensure_ascii=False
    )
    write_text(out / MANIFEST, text + "\n")
