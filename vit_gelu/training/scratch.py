"""What a ViT from scratch is."""

from typing import Any

# What a ViT from scratch is where nothing else is asked for. A checkpoint, or a model of timm, has its own.
SCRATCH: dict[str, Any] = {
    "name": "vit_tiny",
    "activation": "gelu",
    "patch_size": 4,
    "mlp_ratio": 4.0,
    "pooling": "cls",
    "class_token": True,
    "position_embedding": "learned",
    "qk_norm": False,
    "register_tokens": 0,
    "stem": "patch",
    "zero_init_head": False,
}
