"""Who else used the device."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from vit_gelu.training.exclusivity import Exclusivity, seconds_of_trees, summed_up

BURN = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
BY_A_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", sys.argv[1]], stdin=0)
input()"""


def test_a_shared_device_is_admitted(monkeypatch):
    assert Exclusivity(torch.device("cpu"), shared=True).check() is False
    alone = Exclusivity(torch.device("cpu"))
    monkeypatch.setattr(Exclusivity, "_busy", staticmethod(lambda: alone.busy + 1000.0))
    assert alone.check() is False


def test_where_the_system_does_not_tell_nothing_is_claimed(monkeypatch):
    alone = Exclusivity(torch.device("cpu"))

    def hidden(*_):
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", hidden)
    assert alone.check() is None
    assert Exclusivity(torch.device("cpu")).check() is None
    monkeypatch.setattr(psutil, "Process", hidden)
    assert seconds_of_trees([os.getpid()]) == 0


def test_of_other_devices_nothing_is_claimed():
    assert Exclusivity(torch.device("mps")).check() is None
    assert Exclusivity(torch.device("mps"), shared=True).check() is False


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_the_machine_is_as_busy_as_the_kernel_says():
    def by_hand():
        user, nice, system, _, _, irq, softirq, steal, *_ = map(
            int, Path("/proc/stat").read_text().split()[1:11]
        )
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    before = by_hand()
    between = Exclusivity(torch.device("cpu")).busy
    assert before - 0.02 <= between <= by_hand() + 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="what has ended is only counted by Linux")
def test_the_work_of_our_workers_is_ours(monkeypatch):
    """A worker, or a worker's worker, that is still there; and after it has gone."""
    mine = Exclusivity(torch.device("cpu"))
    before = seconds_of_trees([os.getpid()])
    for command in ([sys.executable, "-c", BURN], [sys.executable, "-c", BY_A_CHILD, BURN]):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        worker.stdout.readline()
        there = seconds_of_trees([os.getpid()])
        assert there - before > 0.45
        assert seconds_of_trees([os.getpid(), worker.pid]) - there < 0.2  # counted once
        assert 0.45 < seconds_of_trees([worker.pid]) < there - before + 0.05
        worker.communicate(b"\n\n")
        assert seconds_of_trees([os.getpid()]) >= there
        assert seconds_of_trees([worker.pid]) == 0
        before = seconds_of_trees([os.getpid()])
    # What the machine did is what the workers did: nobody else was there.
    monkeypatch.setattr(
        Exclusivity, "_busy", staticmethod(lambda: mine.busy + seconds_of_trees([os.getpid()]) - mine.own)
    )
    assert mine.check() is True


def test_one_verdict_of_many():
    assert summed_up([True, None, False]) is False
    assert summed_up([True, None]) is None
    assert summed_up([True, True]) is True
    assert summed_up([]) is None
