"""The rate of large products, whatever the processor."""

import time

import pytest
import torch

from vit_gelu.training.peak import device_peak, matmul_peak


def test_emulated_dtypes_do_not_lower_the_peak(monkeypatch):
    rates = {torch.float32: 3.0, torch.bfloat16: 1.0, torch.float16: 5.0}
    monkeypatch.setattr("vit_gelu.training.peak.matmul_peak", lambda device, dtype: rates[dtype])
    cpu = torch.device("cpu")
    assert [device_peak(cpu, dtype) for dtype in rates] == [3.0, 3.0, 5.0]


def test_matmul_peak_is_a_rate():
    peak = matmul_peak(torch.device("cpu"), torch.float32)
    a = torch.randn(1024, 1024)
    start = time.perf_counter()
    a @ a
    slow = 2 * 1024**3 / (time.perf_counter() - start)
    assert peak > slow / 20
    assert peak < 1e15


@pytest.mark.parametrize("kind", ["cpu", "mps"])
@pytest.mark.parametrize("rate", [3e8, 1e9, 4e10, 1e12])
def test_matmul_peak_of_a_slow_processor_is_found_in_seconds(monkeypatch, rate, kind):
    """2048×2048 matrices would take an emulated dtype a minute each. An accelerator computes when it is waited for."""
    clock, queued, sides = [0.0], [0.0], []

    class Matrix:
        def __init__(self, n, columns, device):
            self.n = n

        def to(self, dtype):
            return self

        def __matmul__(self, other):
            queued[0] += 2 * self.n**3 / rate
            sides.append(self.n)
            if kind == "cpu":
                synchronize()

    def synchronize():
        clock[0], queued[0] = clock[0] + queued[0], 0.0

    monkeypatch.setattr(torch, "randn", Matrix)
    monkeypatch.setattr(torch.mps, "synchronize", synchronize)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert matmul_peak(torch.device(kind), torch.bfloat16) == pytest.approx(rate)
    assert clock[0] < 3
    assert max(sides) == 2048 or rate < 1e11
