"""What every test shares: torch threads that do not fight for cores with other workers or programs."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; read once, when torch is loaded

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
