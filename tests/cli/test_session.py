"""Several trainings in one process: each finds it as the first did."""

import gc
import os
import random
import warnings

import numpy as np
import pytest
import torch

import vit_gelu.data.module as data_module
import vit_gelu.training.peak as peak
from vit_gelu.cli import session as sessions


@pytest.fixture
def session(monkeypatch):
    # The session replaces them for good, in a process of its own.
    monkeypatch.setattr(data_module, "load_source", data_module.load_source)
    monkeypatch.setattr(peak, "matmul_peak", lambda device, dtype: random.random())
    yield sessions.Session()
    gc.unfreeze()


def process():
    """What belongs to the whole process and a run may change."""
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "filters": list(warnings.filters),
        "random": random.getstate(),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
    }


def test_what_a_run_changes_is_put_back(session, monkeypatch, tmp_path):
    def run(argv):
        os.environ["VIT_GELU_RUN_FOLDER"] = "somewhere"
        os.chdir(tmp_path)
        warnings.simplefilter("ignore")
        random.seed(3)
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(True)
        torch.backends.cudnn.benchmark = True
        assert argv == ["--seed", "1"]
        return 0

    before = process()
    monkeypatch.setattr(sessions.train, "run", run)
    assert session.train(["--seed", "1"]) == sessions.Outcome(0)
    assert process() == before


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("--model.lr: too large\nsecond line"), (2, "--model.lr: too large", True)),
        (FileNotFoundError("no such file"), (2, "no such file", True)),
        (
            RuntimeError("CUDA error: device-side assert"),
            (1, "RuntimeError: CUDA error: device-side assert", False),
        ),
        (MemoryError(), (1, "MemoryError: ", False)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_it_ended(session, monkeypatch, capfd, error, outcome):
    def run(argv):
        raise error

    monkeypatch.setattr(sessions.train, "run", run)
    ended = session.train([])
    assert (ended.status, ended.reason, ended.reusable) == outcome
    assert type(error).__name__ in capfd.readouterr().err or outcome[2]


def test_data_and_peak_are_had_once(session):
    one, other = (data_module.load_source("digits", None, val_fraction=v) for v in (0.1, 0.2))
    assert data_module.load_source("digits", None, val_fraction=0.1, download=False) is one
    assert len(other.val) == 2 * len(one.val)
    cpu = torch.device("cpu")
    assert peak.matmul_peak(cpu, torch.float32) == peak.matmul_peak(cpu, torch.float32)
    assert peak.matmul_peak(cpu, torch.float32) != peak.matmul_peak(cpu, torch.bfloat16)


def test_a_setting_that_did_not_change_is_not_set(session, monkeypatch):
    """Compiled code is found again by the state it was made in, and setting a precision makes another one."""

    def put(value):
        raise AssertionError("set again")

    monkeypatch.setattr(sessions, "SETTINGS", [(current, put) for current, _ in sessions.SETTINGS])
    monkeypatch.setattr(sessions.train, "run", lambda argv: 0)
    assert session.train([]) == sessions.Outcome(0)
