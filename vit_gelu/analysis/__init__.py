"""What a trained ViT does: attention, position embeddings, patch filters, statistics of its activations."""

from vit_gelu.analysis.activations import ActivationRow, watching_activations
from vit_gelu.analysis.attention import (
    AttentionStatistics,
    attention_rollout,
    patch_distances,
    watching_attention,
)
from vit_gelu.analysis.observe import Analysis, analyse
from vit_gelu.analysis.weights import patch_filters, position_similarity

__all__ = [
    "ActivationRow",
    "Analysis",
    "AttentionStatistics",
    "analyse",
    "attention_rollout",
    "patch_distances",
    "patch_filters",
    "position_similarity",
    "watching_activations",
    "watching_attention",
]
