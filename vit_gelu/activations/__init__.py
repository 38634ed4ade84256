"""Activations: pure functions and derivatives, modules, and the table of names."""

from vit_gelu.activations.modules import (
    CDFLinearUnit,
    GatedLinearUnit,
    GELULearnable,
    GELUSigmoid,
    GELUStochastic,
    Mish,
    PReLU,
    ReLUSquared,
    Softplus,
)
from vit_gelu.activations.registry import (
    ACTIVATIONS,
    ActivationSpec,
    build_activation,
    register_activation,
    resolve_activation,
)

__all__ = [
    "ACTIVATIONS",
    "ActivationSpec",
    "CDFLinearUnit",
    "GELULearnable",
    "GELUSigmoid",
    "GELUStochastic",
    "GatedLinearUnit",
    "Mish",
    "PReLU",
    "ReLUSquared",
    "Softplus",
    "build_activation",
    "register_activation",
    "resolve_activation",
]
