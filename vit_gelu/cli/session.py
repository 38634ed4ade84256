"""Several trainings in one process, each as if it were the first: imports, data and compiled code are paid once."""

import functools
import gc
import os
import random
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch

import vit_gelu.data.module as data_module
import vit_gelu.training.peak as peak
from vit_gelu.cli import train
from vit_gelu.cli.errors import USAGE, lines_of
from vit_gelu.cli.out_of_memory import OutOfMemory


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        status: exit status that ``vit-gelu train`` would have had.
        reason: what went wrong, in a line; empty when nothing did.
        reusable: whether the process is still good for another training.
    """

    status: int
    reason: str = ""
    reusable: bool = True


class Session:
    """Runs ``vit-gelu train`` again and again in this process.

    What a run changes for its whole process is put back before the next one: torch's settings and generators,
    environment variables, warning filters, the state of torch.compile (its code stays in the cache on disk). Data
    sets are kept in memory, and the device's matmul peak is measured once.
    """

    def __init__(self) -> None:
        data_module.load_source = _kept(data_module.load_source)
        peak.matmul_peak = functools.lru_cache(maxsize=None)(peak.matmul_peak)
        # Hundreds of thousands of objects of imported modules, which each collection would walk through in vain.
        gc.collect()
        gc.freeze()

    def train(self, argv: list[str]) -> Outcome:
        """One training.

        Args:
            argv: arguments of ``vit-gelu train``.

        Returns:
            How it ended; its messages and a traceback, if there is one, went to the standard streams.
        """
        with _ProcessState():
            try:
                outcome = Outcome(train.run(argv))
            except (ValueError, OSError) as error:
                lines = lines_of(error)
                print(f"vit-gelu train: error: {lines[0]}", *lines[1:], sep="\n", file=sys.stderr)
                outcome = Outcome(USAGE, lines[0], reusable=not isinstance(error, OutOfMemory))
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines() or [""]
                outcome = Outcome(1, f"{type(error).__name__}: {lines[0]}"[:300], reusable=False)
        return outcome


def _kept(load: Any) -> Any:
    kept: dict[str, Any] = {}

    @functools.wraps(load)
    def load_once(*args: Any, **kwargs: Any) -> Any:
        asked = repr((args, sorted((k, v) for k, v in kwargs.items() if k != "download")))
        if asked not in kept:
            kept[asked] = load(*args, **kwargs)
        return kept[asked]

    return load_once


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(values: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = values


def _deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


# Settings of torch for the whole process: how to read one, and how to set it.
SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, lambda v: torch.use_deterministic_algorithms(v[0], warn_only=v[1])),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (_cudnn, _set_cudnn),
]


class _ProcessState(AbstractContextManager[None]):
    """Puts back what belongs to the whole process."""

    def __enter__(self) -> None:
        self.environment = dict(os.environ)
        self.path = list(sys.path)
        self.folder = os.getcwd()
        self.filters = list(warnings.filters)
        self.show = warnings.showwarning
        arrays = np.random.get_state()  # noqa: NPY002
        self.random = random.getstate(), arrays, torch.get_rng_state()
        self.settings = [setting() for setting, _ in SETTINGS]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        sys.path[:] = self.path
        os.chdir(self.folder)
        warnings.filters[:] = self.filters  # type: ignore[index]
        warnings.showwarning = self.show
        python, arrays, tensors = self.random
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002
        torch.set_rng_state(tensors)
        for (current, put), before in zip(SETTINGS, self.settings, strict=True):
            # Even a setting that is set to what it was can count as another one for what has been compiled.
            if current() != before:
                put(before)
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
