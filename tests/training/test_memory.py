"""The peak of a training in a process that has trained before."""

from pathlib import Path

import numpy as np
import pytest

from vit_gelu.training import memory

MIB = 2**20


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak can be lowered on Linux only"
)
def test_an_earlier_peak_is_forgotten():
    big = np.ones(300 * MIB, np.uint8)
    before = memory.peak_memory()
    del big
    memory.restart_peak_memory()
    after = memory.peak_memory()
    assert before - after > 200 * MIB
    small = np.ones(100 * MIB, np.uint8)
    assert memory.peak_memory() - after > 50 * MIB
    del small


def test_where_it_cannot_be_lowered_only_the_first_training_has_one(monkeypatch):
    monkeypatch.setattr(memory, "_first", True)
    monkeypatch.setattr(memory, "_known", True)
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
    memory.restart_peak_memory()
    assert memory.peak_memory() > 10 * MIB
    memory.restart_peak_memory()
    assert memory.peak_memory() is None
