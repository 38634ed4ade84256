"""What a device can do at best: the rate of large matrix products, measured."""

import time

import torch

from vit_gelu.training.clock import wait_for

LONGEST_PRODUCT = 0.2  # seconds, of those that are tried outside CUDA


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """What this device can do for a training in ``dtype``, in FLOP/s: the faster of ``dtype`` and float32.

    A processor that emulates bfloat16 is no better than its float32 units, which autocast uses as well.
    """
    return max(matmul_peak(device, d) for d in {dtype, torch.float32})


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of a large square matrix product seen on this device now, in FLOP/s.

    On a GPU of CUDA the product of two 8192×8192 matrices. Elsewhere the sides have 2048 elements, or half, a quarter
    or an eighth of that where one product would take longer than ``LONGEST_PRODUCT`` seconds: emulated bfloat16 may be
    100 times slower than float32.
    """
    n = 8192 if device.type == "cuda" else 256
    # A product of twice the side has 8 times the arithmetic.
    while n < 2048 and 8 * _fastest_product(n, device, dtype, tries=2) <= LONGEST_PRODUCT:
        n *= 2
    return 2 * n**3 / _fastest_product(n, device, dtype, tries=8)


def _fastest_product(n: int, device: torch.device, dtype: torch.dtype, tries: int) -> float:
    """Seconds of the fastest of some products of two n×n matrices; the first is slower than the rest."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(tries):
        wait_for(device)
        start = time.perf_counter()
        a @ b
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return best
