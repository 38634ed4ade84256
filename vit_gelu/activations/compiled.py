"""Where code is being compiled, so that it may take the form that the compiler does best with."""

import torch
from torch import Tensor


def compiled_for_cpu(x: Tensor) -> bool:
    """Whether torch.compile is tracing this call for a CPU; False for ``torch.export``, which is to see the plain form.

    >>> compiled_for_cpu(torch.zeros(1))
    False
    """
    return x.device.type == "cpu" and torch.compiler.is_dynamo_compiling()
