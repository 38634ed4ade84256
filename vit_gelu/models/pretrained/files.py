"""Reading weights from files without ever running what is in them."""

import argparse
import hashlib
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", ".npz", *PICKLED)

# Where training scripts keep a network's weights in a checkpoint, the averaged ones first; encoder is I-JEPA's.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "encoder")
PREFIXES = ("module.", "_orig_mod.")


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file, on the CPU.

    Raises:
        ValueError: truncated, or another kind of file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{OPTION} {path}: cannot be read as safetensors (truncated, or another kind of file): "
            f"{_first_line(error)}"
        ) from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``.npz`` file, floats as float32.

    Raises:
        ValueError: truncated, another kind of file, or with arrays of Python objects, which are never loaded.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen words for a broken archive
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{OPTION} {path}: holds Python objects (or is no .npz at all), and such arrays are not loaded, "
                "because unpickling runs code"
            ) from None
        raise ValueError(
            f"{OPTION} {path}: cannot be read as .npz (truncated, or another kind of file): {_first_line(error)}"
        ) from None
    return {name: _float32(array) for name, array in arrays.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, which numpy cannot name
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def read_pickled(path: Path) -> Any:
    """Content of a file that ``torch.save`` wrote, tensors and plain types only, on the CPU.

    Raises:
        ValueError: truncated, another kind of file, or one that wants anything else than tensors and plain
            types, such as to run code; nothing of it has run then.
    """
    try:
        # Scripts save their parsed arguments beside the weights: names and values, nothing that runs.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes are a stranger's, and so are the ways in which they are wrong
        wanted = re.search(r"(?:GLOBAL|function|global)\s+(?:<[^>]*>\s*)?`?([\w.]+\.[\w.]+)", str(error))
        calls = wanted[1] if wanted else _called_by(path)
        if calls:
            raise ValueError(
                f"{OPTION} {path}: refused, because unpickling it would call {calls}; only tensors and "
                "plain types are loaded. Ask its author for .safetensors, or save its state dict anew"
            ) from None
        if "TorchScript" in str(error):
            raise ValueError(
                f"{OPTION} {path}: is a TorchScript program, which holds code; give its state dict instead"
            ) from None
        # torch's own words are a page long, or a number.
        raise ValueError(
            f"{OPTION} {path}: cannot be read as a checkpoint: truncated, damaged, or another kind of file"
        ) from None


def _called_by(path: Path) -> str | None:
    """The first name from outside that a plain pickle asks for, by its opcodes alone; None: none, or no pickle."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # not a pickle, or a broken one
        pass
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


def read_state(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict in a ``.safetensors`` or pickled file, unwrapped, prefixes of wrapping modules removed.

    Returns:
        Tensors by name, floats as float32, and notes: which of several state dicts was taken.

    Raises:
        ValueError: see ``read_safetensors``, ``read_pickled``, or no state dict in it.
    """
    if path.suffix == ".safetensors":
        content: Any = read_safetensors(path)
    else:
        content = read_pickled(path)
    notes = []
    while isinstance(content, Mapping) and not _is_state(content):
        present = [w for w in WRAPPERS if isinstance(content.get(w), Mapping)]
        if not present:
            break
        if len(present) > 1:
            notes.append(f"weights: {present[0]} of the file, not {' or '.join(present[1:])}")
        content = content[present[0]]
    if not isinstance(content, Mapping) or not _is_state(content):
        keys = list(content)[:5] if isinstance(content, Mapping) else [type(content).__name__]
        raise ValueError(
            f"{OPTION} {path}: holds no state dict (found: {', '.join(map(str, keys))}); "
            f"looked for tensors at the top, and in {', '.join(WRAPPERS)}"
        )
    state = {str(name): value for name, value in content.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    narrow = sorted({str(v.dtype) for v in state.values() if v.is_floating_point()} - {"torch.float32"})
    if narrow:
        notes.append(
            f"weights: {', '.join(d.removeprefix('torch.') for d in narrow)} in the file, float32 here"
        )
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}, notes


def _is_state(content: Mapping) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())
