"""torch.compile under observation: code of its own for each competitor, and what was compiled when."""

import importlib.util
import shutil
import time
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from vit_gelu.activations.compiled import cpu_options
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.findings import OK
from vit_gelu.cli.machine import check_compiler
from vit_gelu.compile_cache import key_cache
from vit_gelu.training.compilation import AUTOTUNE

EAGER, COMPILED = "eager", "compiled"
MODES = {"false": (EAGER,), "true": (COMPILED,), "both": (EAGER, COMPILED), AUTOTUNE: (COMPILED,)}


class Compilation(NamedTuple):
    """What torch.compile did during the first call.

    Attributes:
        seconds: of the first call, which is compiling almost wholly.
        graphs: compiled graphs.
        graph_breaks: places where compiled code ends because something could not be compiled.
        cached: whether code came from the disk cache, so that ``seconds`` is not a compile time.
    """

    seconds: float
    graphs: int
    graph_breaks: int
    cached: bool


def compile_alone(
    function: Callable[..., Any], backend: str = "inductor", *, options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """``torch.compile`` of ``function`` with a code object of its own, for one static shape.

    Dynamo keeps what it compiled per code object, up to a limit, and beyond the limit runs eagerly without a
    word: twenty activations in one model class would pass it. Here each call gets a new code object.
    ``options`` are inductor's; None: those of a training on a CPU, which do not reach a GPU's code.
    """

    def entry(*args: Any) -> Any:
        return function(*args)

    own = types.FunctionType(
        entry.__code__.replace(), entry.__globals__, entry.__name__, None, entry.__closure__
    )
    key_cache(function if isinstance(function, torch.nn.Module) else None)
    if backend == "inductor" and options is None:
        options = cpu_options()
    return torch.compile(own, dynamic=False, backend=backend, options=options)


def counted() -> tuple[int, int, int]:
    """Graphs, graph breaks and disk cache hits in this process so far."""
    from torch._dynamo.utils import counters

    inductor, autograd = counters["inductor"], counters["aot_autograd"]
    hits = inductor["fxgraph_cache_hit"] + autograd["autograd_cache_hit"]
    return int(counters["stats"]["unique_graphs"]), sum(counters["graph_break"].values()), int(hits)


def first_call(call: Callable[[], object], synchronise: Callable[[], object]) -> Compilation:
    """Run what compiles, and tell what was compiled."""
    before = counted()
    start = time.perf_counter()
    call()
    synchronise()
    seconds = time.perf_counter() - start
    graphs, breaks, hits = (after - b for after, b in zip(counted(), before, strict=True))
    return Compilation(seconds, graphs, breaks, hits > 0)


def require_compiler(option: str, device_type: str) -> None:
    """Refuse where torch.compile cannot work.

    Args:
        option: as the user gave it, for the message.
        device_type: cpu or cuda.

    Raises:
        UsageError: no compiler, or none that works, and how to get one or do without.
    """
    without = "or --compile false for eager code alone"
    if device_type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise UsageError(
                f"{option}: no triton, which compiles for GPUs: python -m pip install triton; {without}"
            )
        if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
            raise UsageError(f"{option}: no C compiler, which triton needs: apt install gcc; {without}")
        return
    finding = check_compiler(otherwise="--compile false for eager code alone")
    if finding.status != OK:
        raise UsageError(f"{option}: {finding.found}. {finding.advice}")
