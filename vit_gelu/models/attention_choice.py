"""Which attention kernel is fastest for a shape on this device: measured once, remembered on disk.

A choice must not change between two runs that are to be compared, nor when a run goes on: it is made by one
process at a time under a lock, kept in the user's cache folder, and whoever uses it writes it down beside the
run. Where it cannot be kept, nothing is measured and the rule of ``attention.resolve_attention`` holds.
"""

import functools
import hashlib
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from vit_gelu.activations.compiled import cpu_options
from vit_gelu.compile_cache import key_cache
from vit_gelu.cpu_kernels.build import instructions
from vit_gelu.models.attention import resolve_attention
from vit_gelu.models.attention_kernels import KERNELS, WITHOUT_DROPOUT
from vit_gelu.models.triton_shapes import fits_on_chip
from vit_gelu.user_cache import cache_file
from vit_gelu.whole_file import write_text

CANDIDATES = {
    "cpu": ("explicit", "matmul", "strided", "amx", "avx512", "flash"),
    "cuda": ("explicit", "matmul", "triton", "sdpa", "flash", "efficient", "cudnn"),
}
COMPILED = {
    "cpu": (
        "explicit",
        "amx",
        "avx512",
        "flash",
    ),  # strided compiles to what explicit does, and takes seconds to
    "cuda": ("explicit", "triton", "sdpa", "flash", "efficient", "cudnn"),
}
CLEARLY = 0.95  # share of the default's time that a candidate must stay below
ROUNDS = 9
GPU_CALLS = 10  # in a row
QUEUE_CYCLES = 20_000_000  # a pause of some 10 ms, in which they are all launched; doubled until they are
DOUBLINGS = 5
METHOD = 3  # of measuring: what another one has chosen is not remembered
LARGEST = {"cpu": 2**20, "cuda": 2**27}  # attention weights of the batch that is measured


@dataclass(frozen=True)
class Shape:
    """What a choice depends on, besides the machine.

    Attributes:
        batch: images per step and device; rounded up to a power of two for the comparison.
        tokens, heads, head_dim: of the model.
        dtype: that the qkv projection gives, without ``torch.``.
        autocast: whether that is under autocast.
        dropout: whether attention weights are dropped.
        compiled: whether the network is compiled.
        training: forward and backward, or forward without gradients.
        device: ``cpu`` or ``cuda``.
        longest: tokens that the chosen kernel must be able to do as well: a training sees all patches once patch
            dropout ends.
    """

    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: str = "float32"
    autocast: bool = False
    dropout: bool = False
    compiled: bool = False
    training: bool = True
    device: str = "cpu"
    longest: int = 0

    @property
    def default(self) -> str:
        """The kernel without a measurement."""
        return resolve_attention("auto", self.tokens, self.device)

    @property
    def measured_batch(self) -> int:
        """The batch as a power of two, or less where its attention weights would be very many."""
        each = self.heads * self.tokens**2
        return max(1, min(1 << (self.batch - 1).bit_length(), LARGEST.get(self.device, 2**20) // each))

    def candidates(self) -> list[str]:
        """The default first, then what may beat it."""
        names = (COMPILED if self.compiled else CANDIDATES).get(self.device, ())
        out = set(WITHOUT_DROPOUT) if self.dropout else set()
        out |= {"amx", "avx512"} - ({instructions()} if self.dtype == "bfloat16" else set())
        if not fits_on_chip(max(self.tokens, self.longest), self.head_dim, getattr(torch, self.dtype)):
            out.add("triton")
        return [self.default, *(n for n in names if n != self.default and n not in out)]


@dataclass(frozen=True)
class Choice:
    """A kernel, and the milliseconds that each candidate took; None: not measured, the rule holds."""

    kernel: str
    measured_ms: dict[str, float] | None = None


def machine(device: torch.device) -> dict[str, str | int]:
    """What else a choice depends on: the device, torch, and on a CPU the number of threads."""
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    return {"device": _processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Flags as well: a virtual machine's processor may have a name without a model.
    kept = sorted(
        {line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))}
    )
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()[:8]
    return f"{platform.machine()} {platform.processor()} {digest}".replace("  ", " ")


_remembered: dict[str, Choice] = {}


def choose_attention(shape: Shape, device: torch.device, *, folder: Path | None = None) -> Choice:
    """The kernel for a shape: remembered, or measured now (a second; more if compiled) and remembered.

    Args:
        shape: see ``Shape``.
        device: on which it is measured.
        folder: where choices are kept; by default ``attention`` in the user's cache.

    Returns:
        The choice; of the default kernel, without figures, where there is nothing to choose from or it cannot be
        kept: a measurement that is not remembered could come out otherwise for the next run.
    """
    if len(shape.candidates()) == 1:
        return Choice(shape.default)
    content = {**asdict(shape), "batch": shape.measured_batch, "machine": machine(device)}
    content |= {"candidates": shape.candidates(), "method": METHOD}
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    try:
        file = cache_file("attention", f"{name}.json") if folder is None else folder / f"{name}.json"
        if str(file) in _remembered:
            return _remembered[str(file)]
        choice = read_choice(file, content)
        if choice is None:
            file.parent.mkdir(parents=True, exist_ok=True)
            # The second of two runs that start together waits, and reads.
            with FileLock(file.with_suffix(".lock")):
                choice = read_choice(file, content)
                if choice is None:
                    choice = measure(shape, device)
                    write_text(file, json.dumps({"for": content, **asdict(choice)}, indent=1) + "\n")
    except OSError:
        return Choice(shape.default)
    _remembered[str(file)] = choice
    return choice


def read_choice(file: Path, content: dict[str, object]) -> Choice | None:
    """The choice in a file; None if there is none, or it is broken, or made for something else."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["for"] != content or kept["kernel"] not in KERNELS:
            return None
        return Choice(kept["kernel"], {str(k): float(v) for k, v in kept["measured_ms"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def usable(kernel: str, shape: Shape, device: torch.device) -> bool:
    """Whether a kernel computes one small batch of this shape on this device."""
    try:
        with _undisturbed(device):
            _call(kernel, replace(shape, compiled=False), device, batch=2)()
    except RuntimeError:
        return False
    return True


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Leaves the random state as it is, and torch's reasons why a back end is not for this device unsaid."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure(shape: Shape, device: torch.device) -> Choice:
    """Time all candidates in turns, and take the fastest if it is clearly faster than the default.

    The default stays unless the median over the rounds of (candidate's time / default's time) is below
    ``CLEARLY`` and the candidate won nearly every round: one busy moment of the machine decides nothing.
    """
    calls: dict[str, Callable[[], None]] = {}
    with _undisturbed(device):
        for name in shape.candidates():
            try:
                call = _call(name, shape, device, batch=shape.measured_batch)
                call()
                call()
            except Exception:  # a back end that this device has not, out of memory, a compiler that fails
                if name == shape.default:
                    return Choice(name)
                continue
            calls[name] = call
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                seconds[name].append(_seconds(call, device, queued=shape.compiled))
    measured = {name: round(1e3 * statistics.median(times), 4) for name, times in seconds.items()}
    return Choice(pick(seconds, shape.default), measured)


def pick(seconds: dict[str, list[float]], default: str) -> str:
    """The candidate that is clearly the fastest, round against round, or the default.

    >>> pick({"a": [1.0, 1.0, 9.0], "b": [0.8, 0.8, 7.0], "c": [0.97, 0.97, 2.0]}, default="a")
    'b'
    """
    best, lowest = default, CLEARLY
    for name, times in seconds.items():
        ratios = [t / d for t, d in zip(times, seconds[default], strict=True)]
        won = sum(ratio < 1 for ratio in ratios) / len(ratios)
        if statistics.median(ratios) < lowest and won >= 0.75:
            best, lowest = name, statistics.median(ratios)
    return best


def _seconds(call: Callable[[], None], device: torch.device, *, queued: bool) -> float:
    """Time of one call. ``queued``, on a GPU: of its kernels alone, as in a network whose launches run ahead."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for doubling in range(DOUBLINGS + 1):
        torch.cuda.synchronize(device)
        if queued:
            torch.cuda._sleep(QUEUE_CYCLES << doubling)
        begin.record()
        for _ in range(GPU_CALLS):
            call()
        end.record()
        if not queued or not begin.query():
            break
        # A slow processor: the GPU woke up before all was launched, and the launches would be timed.
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / GPU_CALLS


def _call(name: str, shape: Shape, device: torch.device, *, batch: int) -> Callable[[], None]:
    """One pass of a kernel on random numbers: forward, and backward if training."""
    dtype, size = getattr(torch, shape.dtype), (batch, shape.tokens, 3, shape.heads, shape.head_dim)
    qkv = torch.randn(size, device=device).to(dtype).requires_grad_(shape.training)
    grad = torch.randn(*size[:2], shape.heads * shape.head_dim, device=device).to(dtype)
    dropout = 0.1 if shape.dropout and shape.training else 0.0

    def attention(qkv: Tensor) -> Tensor:
        # Copies on both sides, as the projections make or spare them, belong to the kernel's cost.
        return KERNELS[name](qkv, dropout)

    run: Callable[[Tensor], Tensor] = attention
    if shape.compiled:
        key_cache()
        run = torch.compile(attention, dynamic=False, options=cpu_options())

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(device.type, dtype=dtype, enabled=shape.autocast)

    def once() -> None:
        with torch.set_grad_enabled(shape.training), autocast():
            out = run(qkv)
        if shape.training:
            torch.autograd.grad(out, qkv, grad.to(out.dtype))

    return once
