"""A first convolution for images of another number of channels."""

import torch
from torch import Tensor


def adapt_channels(kernel: Tensor, in_channels: int) -> tuple[Tensor, str]:
    """A kernel for ``in_channels`` channels, and how it was made.

    One channel: the sum over the old ones, so that a grey image gives what it gives as equal channels. Others:
    the old channels repeated in turn, scaled by old / new, as timm's ``adapt_input_conv`` does.

    Args:
        kernel: (dim, channels, height, width).
        in_channels: at least 1, unlike the kernel's.

    Raises:
        ValueError: the kernel is neither for grey nor for RGB images: what its channels mean is not known.

    >>> adapt_channels(torch.ones(1, 3, 1, 1), 1)
    (tensor([[[[3.]]]]), 'summed')
    """
    old = kernel.shape[1]
    if old not in (1, 3):
        raise ValueError(
            f"--model.pretrained: the checkpoint's images have {old} channels, the data's {in_channels}; only "
            "checkpoints for grey (1) and RGB (3) images are adapted"
        )
    if in_channels == 1:
        return kernel.sum(dim=1, keepdim=True), "summed"
    index = torch.arange(in_channels) % old
    return kernel[:, index] * (old / in_channels), f"repeated in turn, times {old}/{in_channels}"
