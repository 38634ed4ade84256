"""Training: the Lightning module, its callbacks, and the run from start to record."""

from vit_gelu.training.checkpoint import find_checkpoint, load_network
from vit_gelu.training.metrics import ExactScore, Score
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.record import read_record
from vit_gelu.training.run import run_callbacks, train

__all__ = [
    "ClassificationModule",
    "ExactScore",
    "Score",
    "find_checkpoint",
    "load_network",
    "read_record",
    "run_callbacks",
    "train",
]
