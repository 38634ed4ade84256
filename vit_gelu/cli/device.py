"""Where and how exactly a trained network is run: ``--device`` and ``--precision``."""

import contextlib
import re
from contextlib import AbstractContextManager

import torch

from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown
from vit_gelu.training.memory import keep_freed_memory

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def choose_device(name: str) -> torch.device:
    """The device behind ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``; the process is readied.

    Raises:
        UsageError: no such word, a GPU where torch finds none, or a number that no GPU has.
    """
    number = re.fullmatch(r"cuda:(\d+)", name)
    if name not in DEVICES and not number:
        raise UsageError("--device: " + unknown("device", name, (*DEVICES, "cuda:N")))
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no GPU here; `vit-gelu doctor` says why")
    if number and int(number[1]) >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise UsageError(f"--device {name}: not there. Choices: cpu, {there}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What the forward pass runs under: as the trainer's precision of the same name."""
    if precision == "32-true":
        return contextlib.nullcontext()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype)
