"""Where and how exactly a trained network is run: ``--device`` and ``--precision``."""

import contextlib
from contextlib import AbstractContextManager

import torch

from vit_gelu.cli.errors import UsageError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def choose_device(name: str) -> torch.device:
    """The device behind ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        UsageError: ``cuda`` where torch finds no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; `vit-gelu doctor` says why")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What the forward pass runs under: as the trainer's precision of the same name."""
    if precision == "32-true":
        return contextlib.nullcontext()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype)
