"""The sweep of twelve jobs on a Ray cluster of this machine: one of its own, and one that runs already."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sweeps

PATIENCE = 900  # seconds, for a machine that has much else to do
#: Two cores whatever the machine has; no page, no port, no word to anybody outside.
LOCAL = ("hydra/launcher=ray", "hydra.launcher.ray.init.address=local", "+hydra.launcher.ray.init.num_cpus=2",
         "+hydra.launcher.ray.init.include_dashboard=false")  # fmt: skip
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # no token in the home folder


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The sweep, one job after the other in one process."""
    folder = tmp_path_factory.mktemp("serial") / "local"
    done = sweeps.sweep(folder, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cluster(tmp_path_factory):
    """A running cluster of one node, stopped again by the processes that its start names."""
    program = str(Path(sys.executable).with_name("ray"))
    words = [program, "start", "--head", "--port=0", "--num-cpus=2", "--include-dashboard=false", "--block"]
    where = {"env": {**os.environ, **QUIET}, "cwd": tmp_path_factory.mktemp("elsewhere")}  # not where the sweep begins
    with subprocess.Popen(words, **where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as head:
        try:
            address = next((found[1] for line in head.stdout if (found := re.search(r"--address='([\d.:]+)'", line))), None)
            assert address, "an address of the cluster was expected"
            yield address
        finally:
            head.terminate()  # --block ends its node with itself
            head.wait(120)


def test_a_local_cluster_gives_the_same_bits(serial, tmp_path):
    done = sweeps.sweep(tmp_path / "ray", *LOCAL, env=QUIET, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    sweeps.same_table(serial, tmp_path / "ray")


def test_a_cluster_that_runs_already_gives_the_same_bits(serial, cluster, tmp_path):
    words = ("hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={cluster}")
    done = sweeps.sweep(tmp_path / "joined", *words, env=QUIET, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    sweeps.same_table(serial, tmp_path / "joined")
