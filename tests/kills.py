"""Sweeps that are killed at random moments and finished, beside an undisturbed one.

A forkserver, which has imported everything and computed nothing, forks each command in milliseconds; what is killed are real
processes by a real SIGKILL: the sweep's own, or that of the job that it is running.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from varlab import storage
from varlab.analysis import tables
from varlab.storage import locks

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "measure.py"
#: A tenth of the kills come while the sweep is still being composed, the others while a job is at work.
EARLY, EARLY_SECONDS = 0.1, 1.0
#: Longest wait between the moment that a job is seen at work and its kill, in durations of an undisturbed job.
LONGEST = 1.5


def context():
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["kills", "varlab.configure", "varlab.sweeps", "varlab.experiment", "varlab.analysis.run_page"])
    return server


def command(folder, words, locking, largest):
    """What a process of the forkserver does: the script, in a folder, what it says in a log."""
    os.chdir(folder)
    if not locking:
        locks.fcntl = None
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    with open("log.txt", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.path.insert(0, str(SCRIPT.parent))
    sys.argv = [str(SCRIPT), *words]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def start(folder, words, locking=True, largest=None):
    """Start a command in a process of its own.

    Args:
        folder: where it runs.
        words: of its command line.
        locking: whether its file system has locks.
        largest: most bytes of a file that it may write.
    """
    process = context().Process(target=command, args=(str(folder), tuple(words), locking, largest))
    process.start()
    return process


def complete(folder, words):
    """Run a command to its end; return how many seconds that took."""
    began = time.monotonic()
    process = start(folder, words)
    process.join()
    assert process.exitcode == 0, (folder / "log.txt").read_text()[-2000:]
    return time.monotonic() - began


def at_work(process):
    """The process of the job that a sweep is running, or None."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def disturb(folder, words, kills, seed, job_seconds):
    """Start a sweep again and again and kill it or its job ``kills`` times while work is left.

    Args:
        folder: where it runs.
        words: of its command line.
        kills: how many.
        seed: of their moments.
        job_seconds: what an undisturbed job takes.

    Returns:
        How often the sweep, and how often a job was killed.
    """
    draw, hits = np.random.default_rng(seed), {"sweep": 0, "job": 0}
    while sum(hits.values()) < kills:
        process = start(folder, words)
        while process.is_alive() and sum(hits.values()) < kills:
            if hits["sweep"] and draw.random() < EARLY:
                time.sleep(draw.uniform(0, EARLY_SECONDS))
                victim = "sweep"
            else:
                while process.is_alive() and at_work(process) is None:
                    time.sleep(0.005)
                time.sleep(draw.uniform(0, LONGEST * job_seconds))
                victim = "sweep" if hits["sweep"] <= hits["job"] else "job"
            target = process.pid if victim == "sweep" else at_work(process)
            if not process.is_alive() or target is None:
                continue
            try:
                os.kill(target, signal.SIGKILL)
            except ProcessLookupError:
                continue
            hits[victim] += 1
            if victim == "sweep":
                process.join()
        process.join()
        runs = folder / "results" / "runs" / "measure"
        assert not runs.exists() or any(sweep.of("missing") + sweep.of("failed") for sweep in storage.read_sweeps(runs)), hits
    return hits


def table(folder):
    """Rows of every complete run, as figures.py gathers them."""
    rows = tables.gather(storage.find_runs(folder / "results" / "runs")).drop(columns="run")
    return rows.sort_values(["seed", "gamma", "phi", "objective"], ignore_index=True)


def assert_alike(a, b):
    """Two sweeps left the same bits: rows, moments and per-trajectory scalars, none missing, wrong or doubled."""
    pd.testing.assert_frame_equal(table(a), table(b), check_exact=True)
    runs = [{path.name: path for path in storage.find_runs(each / "results" / "runs")} for each in (a, b)]
    assert runs[0].keys() == runs[1].keys()
    for name in runs[0]:
        left, right = runs[0][name], runs[1][name]
        assert (left / "moments.npz").read_bytes() == (right / "moments.npz").read_bytes(), name
        pd.testing.assert_frame_equal(*(pd.read_parquet(f / "trajectories.parquet") for f in (left, right)), check_exact=True)
        assert storage.folder_state(left, name) == storage.folder_state(right, name) == "done"
        assert not list(left.glob(".*.part"))
