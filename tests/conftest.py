"""What every test shares: one torch thread per worker, so that parallel workers do not fight for cores."""

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
