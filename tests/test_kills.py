"""Five kills of a small sweep in the ordinary suite; tests/faults has fifty of a large one."""

import json
import shutil

import kills
import pandas as pd
import pytest

from varlab import storage

SWEEP = ("-m", "env=frozenlake", "policy=softmax_table", "phi=[total_return,reward_to_go]", "n=50", "pilot=50", "figures=false",
         "seed=range(5)", "reference=sampled", "reference.n=50")  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An undisturbed sweep and one that was killed five times and finished."""
    calm, disturbed = (tmp_path_factory.mktemp(name) for name in ("calm", "disturbed"))
    seconds = kills.complete(calm, SWEEP)
    hits = kills.disturb(disturbed, SWEEP, kills=5, seed=1, job_seconds=seconds / 10)  # half goes into starting
    assert sum(hits.values()) == 5 and min(hits.values()) >= 1, hits
    kills.complete(disturbed, SWEEP)
    return calm, disturbed


def test_a_sweep_killed_five_times_ends_as_an_undisturbed_one(folders):
    assert len(kills.table(folders[1])) == 5 * 2
    kills.assert_alike(*folders)


def test_its_status_says_that_all_is_done(folders):
    for folder in folders:
        (sweep,) = storage.read_sweeps(folder / "results" / "runs" / "measure")
        assert len(sweep.of("done")) == 5 == len(sweep.jobs)


@pytest.mark.parametrize("wrong", ["missing", "doubled", "number", "unfinished"])
def test_the_comparison_can_fail(folders, tmp_path, wrong):
    calm, other = folders[0], tmp_path / "other"
    shutil.copytree(calm, other)
    runs = storage.find_runs(other / "results")
    if wrong == "missing":
        shutil.rmtree(runs[0])
    elif wrong == "unfinished":
        (runs[0] / "done.json").unlink()
    else:
        rows = pd.read_parquet(runs[0] / "summary.parquet")
        rows = pd.concat([rows, rows]) if wrong == "doubled" else rows.assign(variance=rows["variance"] * (1 + 1e-15))
        rows.to_parquet(runs[0] / "summary.parquet", index=False)
        done = json.loads((runs[0] / "done.json").read_text())
        done.pop("checksums")  # the comparison itself must see it
        storage.write_json(runs[0] / "done.json", done)
    with pytest.raises(AssertionError):
        kills.assert_alike(calm, other)
