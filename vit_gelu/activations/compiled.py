"""Where code is being compiled, so that it may take the form that the compiler does best with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cpu_options() -> dict[str, str | int | bool | Callable[..., Any]]:
    """Options of ``torch.compile`` for a CPU: products and sums in one instruction, rounded once instead of twice."""
    from torch._inductor import config

    name = "cpp.enable_floating_point_contract_flag"
    return {name: "fast"} if name in config.get_config_copy() else {}


def compiled_for_cpu(x: Tensor) -> bool:
    """Whether torch.compile is tracing this call for a CPU; False for ``torch.export``, which is to see the plain form.

    >>> compiled_for_cpu(torch.zeros(1))
    False
    """
    return x.device.type == "cpu" and torch.compiler.is_dynamo_compiling()
