"""Same arithmetic in every test process: one thread, whatever the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import torch

torch.set_num_threads(1)
