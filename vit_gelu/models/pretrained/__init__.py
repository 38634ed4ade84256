"""Other people's checkpoints: read safely, understood, loaded strictly, adapted to the images at hand."""

from vit_gelu.models.pretrained.build import build_pretrained
from vit_gelu.models.pretrained.change import Change
from vit_gelu.models.pretrained.checkpoint import Pretrained
from vit_gelu.models.pretrained.source import read_pretrained

__all__ = ["Change", "Pretrained", "build_pretrained", "read_pretrained"]
