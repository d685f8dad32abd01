"""One sweep of twelve short jobs, and when two of its folders hold the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd

from varlab import storage

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "measure.py"
#: Float32 scores, a fitted critic, and a reference that every job finds in the cache or makes: what processes could disturb.
SETTINGS = ("env=frozenlake", "env.horizon=20", "policy=softmax_table", "phi=[total_return,value_baseline]", "n=200", "pilot=100",
            "values=critic", "critic.n=50", "critic.hidden=[8]", "critic.epochs=1", "reference=sampled", "reference.n=300",
            "figures=false")  # fmt: skip
#: The same with jobs long enough to be caught at work.
LONG = (*(word.replace("horizon=20", "horizon=100") for word in SETTINGS), "part_size=1")
AXES = ("seed=0,1,2,3,4,5", "gamma=0.9,1")
JOBS = 12


def sweep(folder, *words, settings=SETTINGS, axes=AXES, **given):
    """Run the sweep as a command of its own in ``folder.parent``, its jobs below ``folder``; gives the finished process."""
    command = [sys.executable, str(SCRIPT), "-m", *settings, *axes, f"hydra.sweep.dir={folder.name}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **given.pop("env", {})}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, **given)


def same_table(a, b, jobs=JOBS):
    """Below both folders lie the same runs, bit for bit: summaries, moments and per-trajectory scalars."""
    runs = [{run.name: run for run in storage.find_runs(folder)} for folder in (a, b)]
    assert len(runs[0]) == len(runs[1]) == jobs and runs[0].keys() == runs[1].keys()
    for name, run in runs[0].items():
        other = runs[1][name]
        for file in ("summary.csv", "moments.npz"):
            assert (run / file).read_bytes() == (other / file).read_bytes(), (name, file)
        frames = [pd.read_parquet(folder / "trajectories.parquet") for folder in (run, other)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)


def record(run):
    """What a run says of its making."""
    return json.loads((run / "provenance.json").read_text(encoding="utf-8"))
