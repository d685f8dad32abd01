"""A SLURM of one node for the tests of this folder."""

import tempfile
from pathlib import Path

import one_node
import pytest


@pytest.fixture(scope="session")
def slurm():
    """Folder of a running one-node SLURM, stopped again whatever happens; its path is short, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="varlab-slurm-") as folder:
        one_node.start(Path(folder), cores=2)
        try:
            yield Path(folder)
        finally:
            one_node.stop(Path(folder))
