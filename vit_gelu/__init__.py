"""vit_gelu: train Vision Transformers, and find out which activation they should use.

Public names load on first use, so that ``import vit_gelu`` costs no more than it must.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ACTIVATIONS": "vit_gelu.activations",
    "build_activation": "vit_gelu.activations",
    "register_activation": "vit_gelu.activations",
    "VisionTransformer": "vit_gelu.models",
    "build_vit": "vit_gelu.models",
    "swap_activations": "vit_gelu.models.swap",
    "anneal_activations": "vit_gelu.models.swap",
    "compare_logits": "vit_gelu.models.swap",
    "load_source": "vit_gelu.data",
    "ImageData": "vit_gelu.data",
    "ClassificationModule": "vit_gelu.training",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vit_gelu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
