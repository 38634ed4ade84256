"""What torch.compile keeps on disk serves again only the source that it was made from.

Compiled code is found by its graph. An operator of our own stands in a graph by its name, so code made with an older
backward pass or an older shape rule of it would be found too, and would compute with them without a word.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
# Rooms that register operators, or that an operator's backward pass is made of.
SOURCES = ("activations", "cpu_kernels", "models", "training/casts.py")

_foreign: set[Path] = set()  # a user's files that count, from when they were met: compiling happens later


def key_cache(net: torch.nn.Module | None = None) -> None:
    """Mark what torch.compile keeps from now on by our source, and keep graphs with autograd functions too.

    The mark stands beside ``TORCH_COMPILE_CACHE_KEY_TAG``, where somebody has set one. Graphs with an
    ``autograd.Function``, such as an activation's, are traced whole: they are as safe to keep as any other, which
    torch leaves for its callers to switch on. Found again, they are not differentiated anew.

    Args:
        net: what is to be compiled. Its own classes may come from a user's files, which count as well.
    """
    import torch._functorch.config as functorch
    import torch.compiler.config as compiler

    theirs = re.sub(r" ?vit_gelu [0-9a-f]{16}$", "", compiler.cache_key_tag)
    _foreign.update(_sources_of(net))
    mark = hashlib.sha256(_own_digest() + _digest(_foreign)).hexdigest()[:16]
    compiler.cache_key_tag = f"{theirs} vit_gelu {mark}".lstrip()
    if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        functorch.autograd_cache_allow_custom_autograd_functions = True


def _digest(files: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.digest()


@functools.cache
def _own_digest() -> bytes:
    return _digest(_own_sources())


def _own_sources() -> set[Path]:
    inside = {path for source in SOURCES for path in (PACKAGE / source).rglob("*")}
    return {p for p in inside | {PACKAGE / s for s in SOURCES} if p.suffix in (".py", ".cpp", ".h")}


def _sources_of(net: torch.nn.Module | None) -> set[Path]:
    """Files of the classes of a network's modules, without torch's and ours."""
    found = set()
    for kind in {type(module) for module in net.modules()} if net is not None else ():
        if kind.__module__.split(".")[0] not in ("torch", "vit_gelu"):
            try:
                file = inspect.getsourcefile(kind)
            except TypeError:  # made in a notebook
                continue
            if file is not None:
                found.add(Path(file))
    return found
