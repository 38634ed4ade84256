"""Training: the Lightning module, its callbacks, and the run from start to record.

Names load on first use: reading a checkpoint does not need Lightning.
"""

import importlib
from typing import Any

_PUBLIC = {
    "ClassificationModule": "module",
    "ExactScore": "metrics",
    "MaskedModule": "masked",
    "Score": "metrics",
    "find_checkpoint": "checkpoint",
    "load_network": "checkpoint",
    "read_record": "record",
    "run_callbacks": "run",
    "train": "run",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"vit_gelu.training.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'vit_gelu.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
