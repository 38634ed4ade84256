"""From the C++ files here to a loaded library: compiled once per machine, kept in the user's cache folder."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

from vit_gelu.user_cache import cache_file

# What a processor must have, in Linux's names, and the files for it end in; the better first.
VECTORS = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"}
KINDS = {"amx": VECTORS | {"amx_tile", "amx_bf16"}, "avx512": VECTORS}
# Where compilers have other names.
OPTIONS = {"avx512_bf16": "avx512bf16", "amx_tile": "amx-tile", "amx_bf16": "amx-bf16"}
FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mfma"]
SECONDS = 120  # that a compiler gets; it takes one or two


@cache
def cpp_compiler() -> str | None:
    """Path of the C++ compiler that torch.compile would use for a CPU; None if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    return shutil.which((named or ["clang++" if sys.platform == "darwin" else "g++"])[0])


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, in Linux's names; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def kind(flags: frozenset[str]) -> str | None:
    """Which of the files here are for a processor with these flags: ``amx``, ``avx512``, none."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    return next((name for name, needs in KINDS.items() if flags >= needs), None)


@cache
def kind_here() -> str | None:
    """Which are for this processor; asked at every activation."""
    return kind(processor_flags())


@cache
def library() -> ctypes.CDLL | None:
    """The functions of the C++ files, or None where the processor does not suit or nothing can compile them.

    The latter is said in a warning, once.
    """
    compiler, wanted = cpp_compiler(), kind_here()
    if wanted is None or compiler is None:
        return None
    try:
        loaded = ctypes.CDLL(str(_compiled(compiler, wanted)))
        if wanted == "amx" and loaded.prepare() != 0:
            raise OSError("the operating system does not grant the registers of AMX")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in said.splitlines() if line.strip()), type(error).__name__)
        warnings.warn(
            f"the kernels for this processor could not be compiled, so bfloat16 is slower: {reason[:200]}",
            stacklevel=2,
        )
        return None
    pointer, whole, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    flag = threads = ctypes.c_int
    loaded.product.argtypes = [pointer] * 3 + [whole] * 3 + [flag, pointer, threads]
    loaded.weight_gradient.argtypes = [pointer] * 2 + [whole] * 3 + [pointer] * 2 + [threads]
    if wanted == "amx":
        tensors = [pointer] * 2 + [whole] + [pointer] * 2
        loaded.activation.argtypes = [flag, flag, number, number, *tensors, threads]
        loaded.activation.restype = None
    loaded.attention.argtypes = [pointer] + [whole] * 4 + [number] + [pointer] * 2 + [threads]
    loaded.attention_backward.argtypes = [pointer] * 3 + [whole] * 4 + [number, pointer, threads]
    for function in (loaded.product, loaded.weight_gradient, loaded.attention, loaded.attention_backward):
        function.restype = None
    return loaded


def instructions() -> str | None:
    """What computes bfloat16 here by the files of this folder: ``amx``, ``avx512``, or None if they cannot."""
    return kind_here() if library() is not None else None


def _compiled(compiler: str, wanted: str) -> Path:
    """The file in the cache folder for these sources, flags and compiler; made if it is not there."""
    here = Path(__file__).parent
    sources = {
        path.name: path.read_bytes()
        for pattern in ("*.h", f"*_{wanted}.cpp")
        for path in sorted(here.glob(pattern))
    }
    flags = [*FLAGS, *(f"-m{OPTIONS.get(name, name)}" for name in sorted(KINDS[wanted]))]
    made_from = [*sources.values(), compiler.encode(), *(flag.encode() for flag in flags)]
    digest = hashlib.sha256(chr(0).encode().join(made_from)).hexdigest()
    file = cache_file("kernels", f"{digest[:24]}.so")
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=file.parent) as work:
            partial = Path(work, file.name)
            code = [str(here / name) for name in sources if name.endswith(".cpp")]
            command = [compiler, *flags, *code, "-o", str(partial)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            os.replace(partial, file)  # when whole: another process may be at it, too
    return file
