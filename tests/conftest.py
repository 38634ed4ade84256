"""Same arithmetic in every test process: one thread, whatever the machine."""

import functools
import os
import shutil
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# What tests measure on this machine stays out of the user's cache; processes that they start inherit it.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vit_gelu_test_cache_")

import pytest
import torch

torch.set_num_threads(1)


def pytest_unconfigure():
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def one_peak():
    """The fastest matrix product, which every run times for a second or two: of all runs in this process, one does."""
    from vit_gelu.training import peak

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "matmul_peak", functools.cache(peak.matmul_peak))
        yield
