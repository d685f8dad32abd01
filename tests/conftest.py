"""What every test shares: torch threads that do not fight for cores with other workers or programs."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; read once, when torch is loaded

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu are taken wherever there is one, and are no part of the suite elsewhere."""
    if not torch.cuda.is_available():
        left = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)
