"""Probes: how much a frozen network's features say about the classes, as pure functions of feature tensors."""

from vit_gelu.probes.features import Features, Hits
from vit_gelu.probes.fewshot import FewShot, fewshot_probe
from vit_gelu.probes.knn import knn_probe
from vit_gelu.probes.linear import LinearProbe, linear_probe

__all__ = [
    "Features",
    "FewShot",
    "Hits",
    "LinearProbe",
    "fewshot_probe",
    "knn_probe",
    "linear_probe",
]
