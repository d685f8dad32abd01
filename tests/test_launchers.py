"""One sweep under several launchers: the same bits, one thread for each job, and a sentence where something is missing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sweeps
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from varlab import complaints, launchers, storage

CONF = sweeps.ROOT / "conf"


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The sweep, one job after the other, where two threads are offered to all that asks for threads."""
    folder = tmp_path_factory.mktemp("serial") / "local"
    done = sweeps.sweep(folder, "hydra/launcher=local", env={"OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    assert len(storage.find_runs(folder)) == sweeps.JOBS
    return folder


def test_two_processes_give_the_same_bits_as_one(serial, tmp_path):
    done = sweeps.sweep(tmp_path / "joblib", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    sweeps.same_table(serial, tmp_path / "joblib")


def test_a_process_that_submitit_starts_gives_the_same_bits(serial, tmp_path):
    """It knows nothing of the one that asked for it, as on a node of SLURM; all twelve are in tests/slurm.

    With a limit of time the job has a process of its own there, made by what the scripts share.
    """
    alone, one = ("seed=3", "gamma=0.9"), {"OMP_NUM_THREADS": "1"}
    done = sweeps.sweep(tmp_path / "submitit", "hydra/launcher=submitit_local", "time_limit=100", axes=alone, env=one)
    assert done.returncode == 0, done.stderr
    (run,) = storage.find_runs(tmp_path / "submitit")
    for file in ("summary.csv", "moments.npz"):
        assert (run / file).read_bytes() == (serial / run.name / file).read_bytes()
    assert sweeps.record(run)["threads"] == 1
    # The recorded command is that of the job alone, without a word of the process or the folder that it ran in.
    words = [word.replace("=false", "=False") for word in sweeps.SETTINGS]
    for folder, more in ((run, ["time_limit=100"]), (serial / run.name, [])):
        assert sweeps.record(folder)["command"] == ["scripts/measure.py", *words, "seed=3", "gamma=0.9", *more]


def test_the_check_of_equal_tables_can_fail(serial, tmp_path):
    other = Path(shutil.copytree(serial, tmp_path / "other"))
    sweeps.same_table(serial, other)
    file = storage.find_runs(other)[7] / "moments.npz"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(AssertionError, match="moments"):
        sweeps.same_table(serial, other)
    shutil.rmtree(file.parent)
    with pytest.raises(AssertionError):
        sweeps.same_table(serial, other)


# ---- sentences


def test_a_launcher_that_is_not_there_is_one_sentence():
    """Ray is not among what the tests install."""
    for choice in ("ray", "ray_cluster"):
        error = configuration_error(f"hydra/launcher={choice}")
        said = complaints.explain(error, [], CONF, "measure")
        assert said == (
            "The launcher 'ray' was expected to be installed, but it is not; install the extra that brings it: "
            "pip install -e '.[ray]'."
        )
    said = complaints.explain(configuration_error("hydra/launcher=joblob"), [], CONF, "measure")
    assert said.startswith("No choice of hydra/launcher is called 'joblob'; the nearest names are joblib")


def configuration_error(*words):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)), pytest.raises(HydraException) as caught:
        compose("measure", list(words))
    return caught.value


def test_every_launcher_that_the_tests_install_composes():
    for choice in (set(launchers.EXTRAS) | {"local"}) - {"ray", "ray_cluster"}:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            assert compose("measure", [f"hydra/launcher={choice}"], return_hydra_config=True).hydra.launcher


def test_a_job_that_gave_nothing_back_is_one_sentence():
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    from submitit.core.utils import UncompletedJobError

    for kind in (UncompletedJobError, TerminatedWorkerError):
        error = kind("Job 7_0 has no output.\n\nTraceback")
        said = launchers.lost_job(error)
        assert f"({kind.__name__}: Job 7_0 has no output)" in said
        assert said.startswith("A result of every job was expected, but at least one ended without any") and "\n" not in said
        assert said.endswith("so repeat the same command to finish the multirun.") and "Traceback" not in said
    assert launchers.lost_job(RuntimeError("a bug of ours")) is None


def test_a_cluster_that_is_not_there_is_one_sentence():
    said = launchers.lost_job(ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to."))
    assert said.startswith("A running Ray cluster was expected, but there is none where the launcher looked (Could not find any")
    assert "ray start --head" in said and "\n" not in said
    assert launchers.lost_job(ConnectionError("reset by peer")) is None


def test_a_multirun_that_is_interrupted_is_one_sentence(tmp_path):
    """Ctrl-C reaches the sweep and its job: what was finished stays, and no traceback is shown."""
    words = ["-m", *sweeps.SETTINGS, "n=3000000", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    command = [sys.executable, str(sweeps.ROOT / "scripts" / "measure.py"), *words]
    given = {"cwd": tmp_path, "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **given) as job:
        while not list((tmp_path / "sweep").rglob("config.yaml")):
            assert job.poll() is None
            time.sleep(0.05)
        os.kill(job.pid, signal.SIGINT)
        said = job.stderr.read()
        assert job.wait(30) == 130
    assert said.strip().endswith("so repeat the same command to finish it.") and "Traceback" not in said, said
