"""The peak of a training in a process that has trained before."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_gelu.training import memory

MIB = 2**20
CPU = torch.device("cpu")


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak can be lowered on Linux only"
)
def test_an_earlier_peak_is_forgotten():
    big = np.ones(300 * MIB, np.uint8)
    before = memory.peak_memory(CPU)
    del big
    memory.restart_peak_memory(CPU)
    after = memory.peak_memory(CPU)
    assert before - after > 200 * MIB
    small = np.ones(100 * MIB, np.uint8)
    assert memory.peak_memory(CPU) - after > 50 * MIB
    del small


def test_where_it_cannot_be_lowered_only_the_first_training_has_one(monkeypatch):
    monkeypatch.setattr(memory, "_first", True)
    monkeypatch.setattr(memory, "_known", True)
    monkeypatch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(PermissionError()))
    memory.restart_peak_memory(CPU)
    assert memory.peak_memory(CPU) > 10 * MIB
    memory.restart_peak_memory(CPU)
    assert memory.peak_memory(CPU) is None


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_a_system_without_proc_tells_kibibytes_and_apples_bytes(monkeypatch, system, unit):
    monkeypatch.setattr(memory, "_known", True)
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    told = memory.resource.getrusage(memory.resource.RUSAGE_SELF).ru_maxrss
    assert told * unit <= memory.peak_memory(CPU) <= (told + 10_000) * unit


def test_without_a_module_for_it_the_peak_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "_known", True)
    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    assert memory.peak_memory(CPU) is None


COUNT_FAULTS = """
import resource, sys
import torch
from vit_gelu.training.memory import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16_000_000)  # 64 MB: 15,625 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_steps()
given_back = faults_of_steps()
assert keep_freed_memory()
faults_of_steps()
print(given_back, faults_of_steps())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told to keep memory")
def test_memory_of_a_step_is_kept_for_the_next():
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 100_000  # each step asked the system for its pages again
    assert kept < 1_000
