"""Data for the benchmarks."""

from pathlib import Path

import numpy as np


def small_cifar10(folder: Path, n: int = 400) -> Path:
    """A ``cifar10.npz`` of random images; returns its folder."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": n, "test": 50}.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 10
    np.savez(folder / "cifar10.npz", **arrays)
    return folder
