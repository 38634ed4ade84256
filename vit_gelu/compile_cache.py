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
    compiler.cache_key_tag = f"{theirs} vit_gelu {_digest(_own_sources() | _sources_of(net))}".lstrip()
    if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        functorch.autograd_cache_allow_custom_autograd_functions = True


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _own_sources() -> frozenset[Path]:
    found: set[Path] = set()
    for source in SOURCES:
        path = PACKAGE / source
        found |= (
            {path} if path.is_file() else {p for p in path.rglob("*") if p.suffix in (".py", ".cpp", ".h")}
        )
    return frozenset(found)


def _sources_of(net: torch.nn.Module | None) -> frozenset[Path]:
    """Files of the classes of a network's modules, without torch's and ours."""
    found = set()
    for kind in {type(module) for module in net.modules()} if net is not None else ():
        if kind.__module__.split(".")[0] not in ("torch", "vit_gelu"):
            try:
                file = inspect.getsourcefile(kind)
            except TypeError:  # made in a notebook
                continue
            if file is not None and Path(file).is_file():
                found.add(Path(file))
    return frozenset(found)
