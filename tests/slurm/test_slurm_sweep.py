"""The sweep of twelve jobs through a real SLURM, one job killed in the middle, finished by repeating the command."""

import os
import re
import signal
import subprocess
import sys
import time

import one_node
import pytest
import sweeps

from varlab import storage

SLURM = "hydra/launcher=submitit_slurm"
PATIENCE = 900  # seconds, for a machine that has much else to do


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The sweep, one job after the other in one process."""
    folder = tmp_path_factory.mktemp("serial") / "local"
    done = sweeps.sweep(folder, settings=sweeps.LONG, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder


def ask(slurm, *words):
    """What a program of SLURM prints."""
    variables = {**os.environ, **one_node.environment(slurm)}
    return subprocess.run(words, env=variables, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def wait_for(what, condition, pause=0.05):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} was expected within {PATIENCE} seconds"
        time.sleep(pause)
    return found


def unfinished(folder):
    """Run folders that hold a beginning and no end."""
    return [path.parent for path in folder.glob("*/config.yaml") if not (path.parent / "done.json").exists()]


def stamps(folder):
    return {run.name: (run / "done.json").stat().st_mtime_ns for run in storage.find_runs(folder)}


def kill_one(slurm, folder):
    """Kill the job of a run that has begun, as the kernel does where memory runs out; gives the run's folder."""

    def caught():
        for run in unfinished(folder):
            settings = (run / "config.yaml").read_text()
            seed, gamma = (re.search(rf"^{key}: (.*)$", settings, re.M)[1] for key in ("seed", "gamma"))
            number = 2 * int(seed) + ["0.9", "1"].index(gamma)  # the last axis is the fastest
            job = next((j for j in ask(slurm, "squeue", "-h", "-t", "R", "-o", "%i").split() if j.endswith(f"_{number}")), None)
            if job is not None:
                ask(slurm, "scancel", "--signal=KILL", "--full", job)
                wait_for("the end of a killed job", lambda job=job: job not in ask(slurm, "squeue", "-h", "-o", "%i").split())
                if run in unfinished(folder):
                    return run
        return None

    return wait_for("a job in the middle of its run", caught, pause=0.01)


def test_a_sweep_on_slurm_survives_the_kill_of_a_job(slurm, serial, tmp_path):
    folder = tmp_path / "slurm"
    variables = {**os.environ, **one_node.environment(slurm), "PYTHONPATH": str(sweeps.ROOT)}
    command = [sys.executable, str(sweeps.SCRIPT), "-m", *sweeps.LONG, *sweeps.AXES, SLURM, f"hydra.sweep.dir={folder}"]
    with open(tmp_path / "said.txt", "w", encoding="utf-8") as said:
        first = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=said, stderr=said)
        try:
            killed = kill_one(slurm, folder)
            wait_for("an empty queue", lambda: not ask(slurm, "squeue", "-h"), pause=0.5)
            # This SLURM keeps no accounts, so nobody tells the launcher that a job died without a word: as a user would, it is
            # interrupted once the queue is empty.
            time.sleep(2)
            assert first.poll() != 0
            first.send_signal(signal.SIGINT)
            assert first.wait(60) != 0
        finally:
            first.kill()
            first.wait()
    assert unfinished(folder) == [killed] and len(storage.find_runs(folder)) == sweeps.JOBS - 1
    before = stamps(folder)
    with pytest.raises(AssertionError):
        sweeps.same_table(serial, folder)

    again = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert again.returncode == 0, again.stderr
    sweeps.same_table(serial, folder)
    assert before == {name: stamp for name, stamp in stamps(folder).items() if name != killed.name}  # the others were left alone
    assert {sweeps.record(run)["threads"] for run in storage.find_runs(folder)} == {1}
    assert ask(slurm, "squeue", "-h") == ""


def test_twelve_jobs_as_processes_of_submitit_give_the_same_bits(serial, tmp_path):
    done = sweeps.sweep(
        tmp_path / "submitit", "hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=4", settings=sweeps.LONG,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    sweeps.same_table(serial, tmp_path / "submitit")


def test_a_cluster_that_cannot_be_started_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(one_node, "PROGRAMS", ("munged", "slurmctl"))
    with pytest.raises(RuntimeError, match=r"^SLURM and munge were expected, but slurmctl are missing; on Debian: apt install"):
        one_node.start(tmp_path)
    assert list(tmp_path.iterdir()) == []
