"""Small tensors to the device and back, without waiting for it."""

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """The values on the device; on a GPU of CUDA the copy runs when its turn comes, and the CPU goes on at once.

    It goes through page-locked memory: from other memory the driver may wait for all work before it. Other
    accelerators may copy what has been overwritten meanwhile (MPS: PyTorch issue 189690), and are waited for.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


class Fetch:
    """A small tensor on its way from the device, whose work goes on meanwhile.

    Args:
        values: any shape and dtype; on a GPU they are copied when their turn comes.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._copied = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._copied = torch.cuda.current_stream(values.device).record_event()

    def is_there(self) -> bool:
        """Whether ``values`` would not wait."""
        return self._copied is None or self._copied.query()

    def values(self) -> Tensor:
        """The tensor, on the CPU; waits for it if need be."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values
