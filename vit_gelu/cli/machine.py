"""Processor, compiler and disk: what ``vit-gelu doctor`` sees without torch."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from vit_gelu.cli.findings import OK, PROBLEM, WARNING, Finding

GIB = 2**30
ROOM_WANTED = 1 * GIB
SHARED_MEMORY_WANTED = GIB // 4

# What torch.compile's C++ code needs: Python's headers and OpenMP.
PROGRAM = """
#include <Python.h>
#include <omp.h>
extern "C" int answer() { return omp_get_max_threads(); }
"""


def usable_cores() -> int:
    """CPU cores that this process may use: affinity and container quota considered."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, -(-int(quota) // int(period))))


def bfloat16_instructions() -> str | None:
    """The processor's own bfloat16 arithmetic, or None where it has none or does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    words = set(text.split())
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in words), None)


def lacks_bfloat16() -> bool:
    """Whether the processor is known to have no bfloat16 arithmetic; False where the system does not tell."""
    return Path("/proc/cpuinfo").is_file() and bfloat16_instructions() is None


def check_processor(threads: int | None, has_gpu: bool) -> Finding:
    """Cores, threads and bfloat16.

    Args:
        threads: that torch uses; None where torch could not be asked.
        has_gpu: whether training will happen elsewhere.
    """
    cores = usable_cores()
    bf16 = bfloat16_instructions()
    found = f"{cores} cores" + (f", torch uses {threads} threads" if threads else "")
    found += f", bfloat16 in hardware: {bf16 or ('no' if lacks_bfloat16() else 'not known')}"
    if threads is not None and threads > cores:
        return Finding(
            "processor", WARNING, found, f"more threads than cores: export OMP_NUM_THREADS={cores}"
        )
    if threads == 1 and cores > 2 and not has_gpu:
        return Finding("processor", WARNING, found, f"use them all: export OMP_NUM_THREADS={cores}")
    if lacks_bfloat16() and not has_gpu:
        return Finding(
            "processor", WARNING, found, "train with --trainer.precision 32-true on this processor"
        )
    return Finding("processor", OK, found)


def check_compiler(otherwise: str = "train with --model.compile false") -> Finding:
    """Whether a C++ compiler can build what torch.compile generates: by building a small library.

    Args:
        otherwise: how to do without, for the advice.
    """
    command = shlex.split(os.environ.get("CXX", "")) or ["clang++" if sys.platform == "darwin" else "g++"]
    if os.name == "nt":
        return Finding("compiler", OK, "not looked at on Windows")
    without = f"; or {otherwise}"
    path = shutil.which(command[0])
    if path is None:
        advice = (
            "xcode-select --install" if sys.platform == "darwin" else "apt install g++ (or your system's)"
        )
        return Finding("compiler", WARNING, f"no {command[0]}: torch.compile cannot work", advice + without)
    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    program = (
        PROGRAM if openmp else PROGRAM.replace("#include <omp.h>", "").replace("omp_get_max_threads()", "1")
    )
    undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "check.cpp")
        source.write_text(program)
        flags = ["-shared", "-fPIC", *openmp, *undefined, f"-I{sysconfig.get_paths()['include']}"]
        built = [*command, *flags, str(source), "-o", str(Path(folder, "check.so"))]
        try:
            done = subprocess.run(built, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Finding("compiler", WARNING, f"{path}: {error}", "repair or replace it" + without)
    if done.returncode == 0:
        return Finding("compiler", OK, f"{path} builds what torch.compile needs")
    lines = [line for line in done.stderr.splitlines() if "error" in line] or [
        f"exit status {done.returncode}"
    ]
    reason = lines[0].strip()[:160]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if "Python.h" in done.stderr:
        advice = f"Python's headers are missing: apt install python{version}-dev (or your system's)"
    elif any(word in done.stderr for word in ("omp.h", "fopenmp", "gomp", "lomp")):
        advice = "OpenMP is missing: install libomp-dev or gcc"
    else:
        advice = "repair or replace it"
    return Finding(
        "compiler", WARNING, f"{path} cannot build what torch.compile needs: {reason}", advice + without
    )


def check_room(name: str, folder: Path, needed: bool) -> Finding:
    """Whether a folder can be written, and has room.

    Args:
        name: of the finding.
        folder: need not exist yet.
        needed: whether it is a problem if it cannot be written.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{folder}: {free / GIB:.1f} GiB free"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{folder}: cannot be written ({error.strerror})"
        advice = "choose a folder that can be written" if needed else ""
        return Finding(name, PROBLEM if needed else OK, found, advice)
    if free < ROOM_WANTED:
        return Finding(name, WARNING, found, "make room: CIFAR takes 0.5 GiB, a run some checkpoints")
    return Finding(name, OK, found)


def check_shared_memory() -> list[Finding]:
    """Whether worker processes can hand over images; containers often give them 64 MiB."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return []
    total = shutil.disk_usage(place).total
    if total >= SHARED_MEMORY_WANTED:
        return []
    advice = (
        "only for image folders with --data.num_workers: docker run --shm-size 1g, or --data.num_workers 0"
    )
    return [Finding("shared memory", WARNING, f"{place}: {total / 2**20:.0f} MiB", advice)]


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver where it runs and sees a GPU, else None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else None


def nvidia_hardware() -> bool:
    """Whether the machine has an NVIDIA GPU, with a driver or without."""
    if list(Path("/dev").glob("nvidia[0-9]*")):
        return True
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(
        v.read_text().strip() == "0x10de" and (v.parent / "class").read_text().startswith("0x03")
        for v in vendors
    )


def system() -> Finding:
    """The operating system and the processor's kind."""
    return Finding("system", OK, f"{platform.system()} {platform.release()}, {platform.machine()}")
