"""Randomness as a pure function: every draw is fixed by (run seed, purpose, epoch or step, sample).

Nothing here keeps state, so a run resumes exactly from any step, and what one purpose draws (say a
stochastic activation's noise) never shifts what another draws (say the order of the images).

Keys come from BLAKE2b; draws per sample from the SplitMix64 finaliser (Steele, Lea & Flood 2014, "Fast
splittable pseudorandom number generators", OOPSLA), evaluated as integer tensor arithmetic, so CPU and
GPU agree to the bit.
"""

import functools
import hashlib

import torch
from torch import Tensor

PURPOSES = ("init", "split", "order", "augment", "noise")

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)  # int64 has no unsigned literal: the same 64 bits, negative
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit key for one purpose of one run, and for any epoch, step or name under it.

    Args:
        seed: the run's seed, any integer.
        purpose: one of ``PURPOSES``.
        counters: what the draw belongs to: an epoch, a step, a parameter's name.

    Returns:
        An integer in [0, 2**63). Different arguments give independent keys.

    Raises:
        ValueError: the purpose is not one of ``PURPOSES``.

    >>> key(0, "order", 3) == key(0, "order", 3), key(0, "order", 3) == key(1, "order", 3)
    (True, False)
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose {purpose!r} is not one of {', '.join(PURPOSES)}")
    text = repr((int(seed), purpose, *counters)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int, purpose: str, *counters: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh ``torch.Generator`` seeded with ``key(seed, purpose, *counters)``.

    >>> torch.equal(torch.rand(2, generator=generator(0, "init", "head.weight")),
    ...             torch.rand(2, generator=generator(0, "init", "head.weight")))
    True
    """
    return torch.Generator(device=device).manual_seed(key(seed, purpose, *counters))


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of int64; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(draw_key: int, samples: Tensor, draws: int) -> Tensor:
    """Uniform numbers that depend on the key, the sample's index and the draw's position alone.

    A sample gets the same numbers in whatever batch, order, process or device it turns up.

    Args:
        draw_key: from ``key``.
        samples: indices of the samples in their data set, int64, shape (n,).
        draws: how many numbers each sample needs.

    Returns:
        float32 of shape (n, draws) in [0, 1), multiples of 2**-24, on the device of ``samples``.

    >>> both = uniform(key(0, "augment", 1), torch.tensor([7, 9]), 3)
    >>> torch.equal(both[1:], uniform(key(0, "augment", 1), torch.tensor([9]), 3))
    True
    """
    # Two rounds: the first makes a stream per sample, the second walks it.
    stream = _splitmix64(samples.to(torch.int64) * _GOLDEN_GAMMA + draw_key)
    position = torch.arange(1, draws + 1, device=samples.device, dtype=torch.int64) * _GOLDEN_GAMMA
    mixed = _splitmix64(stream[:, None] + position[None, :])
    return _shift_right(mixed, 40).to(torch.float32) * 2.0**-24


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's GPUs do not."""
    return device.type != "mps"


@functools.cache
def _other_accelerator() -> bool:
    """Whether torch was built for an accelerator that is not CUDA's."""
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type != "cuda"


def seed_noise(seed: int, step: int, rank: int = 0) -> None:
    """Fix torch's global generators (CPU and every GPU in use) for one training step of one process.

    What draws from them (dropout, drop-path, stochastic activations) then depends on (seed, step, rank)
    alone, so a run resumed at this step draws what the uninterrupted run drew.
    """
    draw_key = key(seed, "noise", step, rank)
    if _other_accelerator():
        torch.manual_seed(draw_key)
        return
    # torch.manual_seed also walks through every backend, and writes down a stack trace per call for GPUs that
    # nobody uses: a hundred times the cost, at every step.
    torch.default_generator.manual_seed(draw_key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(draw_key)
