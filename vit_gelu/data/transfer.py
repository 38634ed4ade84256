"""Small tensors to the device, without waiting for it."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; on a GPU the copy runs when its turn comes, and the CPU goes on at once.

    It goes through page-locked memory: from other memory the driver may wait for all work before it.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
