"""Marks on the clock of a device, one that works on while the processor goes ahead above all."""

import time

import torch

from vit_gelu.training.clock import mark

APPLE = torch.device("mps")


def test_the_time_of_the_cpu():
    cpu = torch.device("cpu")
    before = time.perf_counter()
    assert before <= mark(cpu) <= mark(cpu) <= time.perf_counter()


def test_an_accelerator_without_events_is_waited_for(monkeypatch):
    """Its work takes 0.05 s, which nobody sees who does not wait."""
    pending = [True]

    def synchronize():
        if pending.pop():
            time.sleep(0.05)

    monkeypatch.setattr(torch.mps, "synchronize", synchronize)
    start = time.perf_counter()
    assert mark(APPLE) - start >= 0.05
    assert not pending
