"""Floating-point operations of a network, counted."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit_gelu.models.attention import Attention


def count_flops(
    net: Any, image_shape: tuple[int, int, int], patch_dropout: float = 0.0, *, backward: bool = True
) -> int:
    """Floating-point operations of one image's forward and backward pass (a multiply-add is two).

    Counted from the operations that run, by torch's counter, on a batch of one in training mode with eager
    code and written-out attention: what a fused or compiled kernel saves in memory it does not save in
    arithmetic that counts.

    Args:
        net: a network; its gradients and its mode are left as they were.
        image_shape: (channels, height, width).
        patch_dropout: share of the patches that the step leaves out.
        backward: False counts the forward pass alone.
    """
    parameter = next(net.parameters())
    image = torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype)
    if not hasattr(getattr(net, "patch_drop", None), "p"):
        # One image has no batch statistics; evaluation does the same arithmetic.
        training = net.training
        net.eval()
        try:
            return flops_of(net, lambda: net.forward(image), backward=backward)
        finally:
            net.train(training)
    net.patch_drop.p, rate = patch_dropout, net.patch_drop.p
    try:
        return flops_of(net, lambda: net.forward(image), backward=backward)
    finally:
        net.patch_drop.p = rate


def flops_of(net: torch.nn.Module, call: Callable[[], torch.Tensor], *, backward: bool = True) -> int:
    """Floating-point operations of ``call`` with written-out attention, and of its backward pass.

    Args:
        net: what ``call`` runs through; its kernels of attention, its gradients and the random state are left as
            they were.
        call: gives a tensor.
        backward: count the backward pass from its sum too.
    """
    layers = [m for m in net.modules() if isinstance(m, Attention)]
    kernels = [(m.kernel_training, m.kernel_evaluation) for m in layers]
    gradients = {p: p.grad for p in net.parameters()}
    random_state = torch.get_rng_state()
    for layer in layers:
        layer.set_kernels("explicit", "explicit")
    try:
        # Other people's attention is written out, too: the counter does not know every fused kernel.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.enable_grad():
            total = call().sum()
            if backward:
                total.backward()
    finally:
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.set_kernels(*kernel)
        torch.set_rng_state(random_state)
        for p, gradient in gradients.items():
            p.grad = gradient
    return counter.get_total_flops()
