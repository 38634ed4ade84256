"""Same arithmetic in every test process: one thread, whatever the machine."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# What tests measure on this machine stays out of the user's cache; processes that they start inherit it.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vit_gelu_test_cache_")

import torch

torch.set_num_threads(1)
