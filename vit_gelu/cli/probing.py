"""``vit-gelu evaluate --probe``: which images a probe learns from, chooses by and is judged by."""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from vit_gelu.cli.evaluation_data import Split
from vit_gelu.cli.features import extract
from vit_gelu.data.split import stratified_split
from vit_gelu.probes import Features, fewshot_probe, knn_probe, linear_probe
from vit_gelu.probes.fewshot import L2, SEEDS
from vit_gelu.probes.knn import TEMPERATURE
from vit_gelu.probes.linear import GRID

HELD_OUT = 0.1  # of the training images, where validation is what judges


@dataclass(frozen=True)
class Found:
    """What a probe came to.

    Attributes:
        record: for ``probe.json``: shares are fractions 0-1.
        lines: for people.
    """

    record: dict[str, Any]
    lines: list[str]


def run_probe(
    probe: str, net: Any, split: Split, *, shots: list[int], neighbours: int, **passes: Any
) -> Found:
    """Probe a frozen network on a data set.

    Args:
        probe: ``linear``, ``fewshot`` or ``knn``.
        net: see ``extract``.
        split: test or val: what judges; the probe learns from the training images of the same source.
        shots: images per class, of fewshot.
        neighbours: of knn.
        passes: options of ``extract``.

    Raises:
        ValueError: options that the data do not allow, or features that are not finite.
    """
    source = split.source

    @functools.cache
    def features(part: str) -> Features:
        return extract(net, getattr(source, part), what=f"{source.name} {part}", **passes)

    train, judges = features("train"), features(split.name)
    common = {"features": {"what": "pooled, before the head", "width": train.values.shape[1]}}
    n = f"{len(judges):,} images"
    if probe == "knn":
        hits = knn_probe(train, judges, source.num_classes, neighbours=neighbours)
        settings: dict[str, Any] = {
            "neighbours": neighbours,
            "temperature": TEMPERATURE,
            "train_n": len(train),
        }
        line = (
            f"knn probe: top-1 {100 * hits.top1:.2f} %  ({hits.correct:,} of {n}; {neighbours} of "
            f"{len(train):,} neighbours by cosine, temperature {TEMPERATURE})"
        )
        return Found(common | {"settings": settings, "result": hits._asdict()}, [line])
    if probe == "fewshot":
        results = fewshot_probe(train, judges, source.class_names, shots)
        settings = {"shots": shots, "seeds": list(SEEDS), "l2": L2, "standardised": "by the few images"}
        rows = [
            {"shots": r.shots, "top1_mean": r.mean, "top1_sd": r.sd, "top1": [h.top1 for h in r.hits],
             "draws": len(r.hits), "n": len(judges)}
            for r in results
        ]  # fmt: skip
        lines = [
            f"few-shot probe, {r.shots} image{'s' if r.shots > 1 else ''} per class: top-1 {100 * r.mean:.2f} ± "
            f"{100 * (r.sd or 0):.2f} %  (mean ± sd of {len(r.hits)} draws, {n})"
            for r in results
        ]
        return Found(common | {"settings": settings, "result": rows}, lines)
    if split.name == "val" or not len(source.val):
        kept, aside = (i.to(train.labels.device) for i in _held_out(train.labels))
        train, chooses, chosen_by = train.take(kept), train.take(aside), "a tenth of train, held out"
    else:
        chooses, chosen_by = features("val"), "val"
    result = linear_probe(train, chooses, judges, source.num_classes)
    settings = {
        "objective": "mean cross-entropy + l2 / 2 * |weight|^2, features standardised by train",
        "grid": sorted(GRID),
        "chosen_by": chosen_by,
        "chosen_by_n": len(chooses),
        "train_n": len(train),
    }
    best = next(row for row in result.grid if row["l2"] == result.l2)
    lines = [
        f"linear probe: top-1 {100 * result.hits.top1:.2f} %  loss {result.loss:.4f}  ({result.hits.correct:,} "
        f"of {n})",
        f"l2 {result.l2:g} of {min(GRID):g} to {max(GRID):g}, chosen by {chosen_by} (top-1 "
        f"{100 * best['top1']:.2f} % of {len(chooses):,}); fitted on {len(train):,} images",
    ]
    if result.at_edge:
        lines.append("note: the best l2 is at the edge of the grid; one beyond might be better")
    if not result.converged:
        lines.append("note: the fit of the best l2 stopped before it converged")
    record = {
        "settings": settings,
        "result": result.hits._asdict()
        | {"loss": result.loss, "l2": result.l2, "converged": result.converged, "at_edge": result.at_edge},
        "grid": result.grid,
    }
    return Found(common | record, lines)


def _held_out(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return stratified_split(labels.cpu(), HELD_OUT, 0, "probe")
