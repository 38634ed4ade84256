"""torch.compile in a run: can it work here, what did it compile, and where did it break the graph."""

import os
import shlex
import shutil
import sys
from typing import Any

import torch
from einops import rearrange

from vit_gelu.activations.compiled import cpu_options
from vit_gelu.compile_cache import key_cache

AUTOTUNE = "max-autotune"
# torch.compile's, by (products chosen by timing, network replayed from CUDA graphs).
MODES = {
    (False, False): "default",
    (False, True): "reduce-overhead",
    (True, False): "max-autotune-no-cudagraphs",
    (True, True): AUTOTUNE,
}


def _counters() -> Any:
    # Its import takes a second: who has not compiled has not imported it.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo.counters if dynamo else {}


def compiled_graphs() -> int:
    """How many graphs torch.compile has compiled in this process."""
    return int(_counters().get("stats", {}).get("unique_graphs", 0))


def graph_breaks() -> dict[str, int]:
    """Why torch.compile left Python code between two graphs in this process: reason (one line) and how often."""
    return {reason_line(str(r)): int(n) for r, n in _counters().get("graph_break", {}).items()}


def reason_line(reason: str) -> str:
    """The first line of a reason, short.

    >>> reason_line("call to print\\n  Explanation: ...")
    'call to print'
    """
    return (reason.strip().splitlines() or ["unknown"])[0][:160]


def check_compiler(device: torch.device) -> None:
    """Compile a small function, so that a missing or broken compiler shows before the training starts.

    Raises:
        ValueError: it cannot be compiled; says what is missing.
    """
    advice = "train with --model.compile false, or see vit-gelu doctor --compile"
    command = shlex.split(os.environ.get("CXX", "")) or ["clang++" if sys.platform == "darwin" else "g++"]
    if device.type == "cpu" and os.name != "nt" and shutil.which(command[0]) is None:
        raise ValueError(
            f"--model.compile true: torch.compile needs a C++ compiler, and there is no {command[0]}; "
            f"install one (apt install g++), name another in CXX, or {advice}"
        )

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1).sum()

    try:
        # As the network will be: for other options torch would prepare its headers again, which takes ten seconds.
        result = torch.compile(function, options=cpu_options())(torch.ones(16, device=device))
    except Exception as error:  # dynamo, inductor, triton and the compiler each have their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next((line for line in lines if "rror" in line), (lines or [type(error).__name__])[0])
        raise ValueError(
            f"--model.compile true: torch.compile does not work here: {reason[:160]}; {advice}"
        ) from None
    if float(result) != 48.0:
        raise ValueError(f"--model.compile true: torch.compile gives wrong results here; {advice}")


def check_cuda_graphs(trainer: Any) -> None:
    """Refuse CUDA graphs where they cannot work.

    Raises:
        ValueError: no CUDA GPU, or gradients that are accumulated over several passes.
    """
    device = trainer.strategy.root_device
    if device.type != "cuda":
        raise ValueError(f"--model.cuda_graphs true: needs a CUDA GPU; this run is on {device.type}")
    if trainer.accumulate_grad_batches > 1:
        raise ValueError(
            "--model.cuda_graphs true: not with --trainer.accumulate_grad_batches "
            f"{trainer.accumulate_grad_batches}, as gradients live in the graph's memory; set it to 1"
        )


def check_autotuning(device: torch.device, option: str = "--model.compile") -> None:
    """Refuse to tune products where there is nothing to choose from: on a CPU they are our own kernels or a library's.

    Raises:
        ValueError: no CUDA GPU; names the option.
    """
    if device.type != "cuda":
        raise ValueError(
            f"{option} {AUTOTUNE}: needs a CUDA GPU; this run is on {device.type}: take {option} true"
        )


def compile_options(device_type: str, *, cuda_graphs: bool = False, autotune: bool = False) -> dict[str, Any]:
    """What torch.compile is told about a whole network, by training and by benchmarks: ``options``."""
    if device_type == "cpu":
        assert not autotune, "check_autotuning was not asked"
        return cpu_options()
    if device_type != "cuda":
        return {}
    from torch._inductor import list_mode_options

    from vit_gelu.training.casts import GroupedCasts

    mode = list_mode_options()[MODES[autotune, cuda_graphs]]
    return {**mode, "post_grad_custom_post_pass": GroupedCasts()}


def compile_network(
    net: torch.nn.Module, device: torch.device, *, cuda_graphs: bool, autotune: bool = False
) -> None:
    """Compile a network in place: checkpoint keys stay clean, and what wraps it stays out of the graph.

    Args:
        net: the network; ``net(x)`` is compiled at its first call, ``net.forward(x)`` stays eager.
        device: where it runs.
        cuda_graphs: replay kernels from CUDA graphs (mode reduce-overhead): for small models, whose kernels
            take less time than their launches.
        autotune: choose each product among a library's and generated ones by timing them, on a GPU; a generated one
            can hold the bias and the activation that follow it. It takes minutes the first time.

    Raises:
        ValueError: no compiler.
    """
    check_compiler(device)
    # einops notes each type at its first sight; were that while tracing, the second step would compile anew.
    for value in (torch.zeros(1), torch.nn.Parameter(torch.zeros(1))):
        rearrange(value, "one -> one")
    key_cache(net)
    net.compile(options=compile_options(device.type, cuda_graphs=cuda_graphs, autotune=autotune))
