"""Faults that a run or a sweep meets: damaged files, full disks, worlds that fail, two writers. Kills are in test_kills."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty_world
import kills
import pandas as pd
import pytest
import torch

from varlab import storage
from varlab.checks import InputError
from varlab.storage import locks
from varlab.storage.atomic import part_of

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("env=frozenlake", "policy=softmax_table", "phi=[total_return,value_baseline]", "n=50", "pilot=50",
         "figures=false")  # fmt: skip
FAULTY = (f"env.id={faulty_world.ID}", "policy=mlp", "policy.hidden=[4]", "phi=[reward_to_go]", "n=50", "pilot=50",
          "reference.n=50", "critic.n=50", "critic.epochs=1", "figures=false")  # fmt: skip
RUNS = Path("results") / "runs" / "measure"


@pytest.fixture(autouse=True)
def faulty():
    faulty_world.register()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("shelf") / "run"


@pytest.fixture
def finished(script, shelf, tmp_path):
    """A folder ``run`` that holds the finished run SMALL (measured once, then copied)."""
    if not shelf.exists():
        assert script("measure", *SMALL, f"out={shelf}").code == 0
    return Path(shutil.copytree(shelf, tmp_path / "run"))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_sentence(done):
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
    return done.err


def assert_same_numbers(a, b):
    for name in ("summary.csv", "moments.npz"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for name in ("summary.parquet", "trajectories.parquet"):
        pd.testing.assert_frame_equal(*(pd.read_parquet(f / name) for f in (a, b)), check_exact=True)


# ---- damaged files


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    """Flip one bit in the middle: the file keeps its size, and may well be readable."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", ["summary.parquet", "trajectories.parquet", "moments.npz"])
def test_a_damaged_file_of_a_finished_run_is_named_by_whoever_reads_it(finished, name, damage):
    damage(finished / name)
    with pytest.raises(InputError, match=f"complete run was expected in .*, but .*{name}.*measures it again"):
        list(storage.read_trajectories(finished)) if name.startswith("traj") else storage.read_run(finished)
    assert storage.folder_state(finished, json.loads((finished / "done.json").read_text())["digest"]) == "interrupted"


@pytest.mark.parametrize(("name", "damage"), [("summary.parquet", truncate), ("trajectories.parquet", flip)])
def test_a_damaged_run_is_named_and_measured_again(script, finished, shelf, name, damage):
    damage(finished / name)
    again = script("measure", *SMALL, "out=run")
    assert again.code == 0 and "Written: run" in again.out
    assert re.search(f"The run in run is damaged \\(.*{name}.*\\) and is made again", again.err)
    assert_same_numbers(finished, shelf)
    assert "Measured before: run" in script("measure", *SMALL, "out=run").out


def test_a_run_without_checksums_is_taken_as_it_is(script, finished):
    """Runs of earlier versions list their files alone."""
    done = json.loads((finished / "done.json").read_text())
    del done["checksums"]
    storage.write_json(finished / "done.json", done)
    assert "Measured before: run" in script("measure", *SMALL, "out=run").out
    (finished / "summary.csv").unlink()
    assert "Written: run" in script("measure", *SMALL, "out=run").out


def test_a_damaged_cache_is_named_and_computed_again(script, tmp_path):
    words = (*SMALL, "reference=sampled", "reference.n=50")
    assert script("measure", *words, "out=a").code == 0
    (cached,) = (tmp_path / "results" / "cache").iterdir()
    before = cached.read_bytes()
    for damage in (truncate, flip):
        damage(cached)
        again = script("measure", *words, f"out={damage.__name__}")
        assert again.code == 0 and f"{cached.name} is damaged" in again.err
        assert cached.read_bytes() == before
        assert_same_numbers(tmp_path / "a", tmp_path / damage.__name__)


def test_figures_that_were_half_drawn_are_drawn_again(script, finished):
    """An interrupted run leaves no folder of figures that would pass for a whole one."""
    (finished / "done.json").unlink()
    (finished / "figures").mkdir()
    (finished / "figures" / "half.png").write_bytes(b"half")
    assert script("measure", *SMALL, "out=run").code == 0
    assert not (finished / "figures").exists()


# ---- places that take no files


def test_a_full_disk_is_one_sentence_and_the_run_can_be_repeated(script, shelf, finished, tmp_path, monkeypatch):
    """/dev/full refuses every byte with the error of a full disk; here it stands where a file would be written."""
    before, new = content(finished), tmp_path / "new"
    new.mkdir()
    with monkeypatch.context() as kept:  # begin would take the link for a leftover
        kept.setattr("varlab.storage.folders.drop_abandoned", lambda folder: None)
        for name in ("trajectories.parquet", "moments.npz", "summary.csv", "summary.parquet", "done.json"):
            part_of(new / name).symlink_to("/dev/full")
            said = one_sentence(script("measure", *SMALL, "out=new"))
            assert said.startswith(f"Room for new/{name} was expected, but the disk is full; free some space and repeat the comm")
            assert not (new / "done.json").exists() and not list(new.glob(".*"))
    assert content(finished) == before
    assert script("measure", *SMALL, "out=new").code == 0  # there is room now: the link went with the failed attempt
    assert_same_numbers(new, shelf)


def test_a_limit_on_files_ends_a_process_with_one_sentence(tmp_path):
    """A process of its own under a real limit of the kernel, which the files of the run exceed."""
    process = kills.start(tmp_path, (*SMALL, "out=run"), largest=5000)
    process.join()
    said = (tmp_path / "log.txt").read_text()
    assert process.exitcode == 2 and "Traceback" not in said, said
    assert re.search("Room for run/.* was expected, but no file may grow so large here; raise the limit", said)
    assert not (tmp_path / "run" / "done.json").exists() and not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("multirun", [False, True])
def test_a_folder_that_takes_no_files_is_one_sentence(script, finished, multirun):
    """In /sys not even root may make a folder; below a file nobody may."""
    before = content(finished)
    for place in ("/sys/varlab/run", "run/summary.csv/run"):
        words = ("-m", *SMALL, "seed=0,1", f"hydra.sweep.dir={place}") if multirun else (*SMALL, f"out={place}")
        said = one_sentence(script("measure", *words))
        room = f"Room for {place.split('/run')[0]}.* was expected, but (writing|it is on|a file stands)"
        assert re.match(f"{room}|A folder was expected at run/summary.csv, but it is a file", said), said
        assert "name another folder" in said
    assert content(finished) == before


def test_errors_that_are_no_refusal_pass(tmp_path):
    with pytest.raises(FileNotFoundError), storage.atomic(tmp_path / "a"):
        open(tmp_path / "missing")


# ---- worlds and jobs that fail


def test_each_failing_job_of_a_sweep_is_kept_named_and_alone(script, tmp_path):
    faults = ["raise", "pays_nan", "exit", "kill", "none"]
    words = ("-m", *FAULTY, f"+env.kwargs.fault={','.join(faults)}", "seed=0")
    done = script("measure", *words)
    assert done.code in (1, 2)
    (sweep,) = storage.read_sweeps(RUNS)
    jobs = dict(zip(faults, sweep.jobs, strict=True))
    assert {name: job.state for name, job in jobs.items()} == {"none": "done"} | dict.fromkeys(faults[:-1], "failed")
    notes = {
        "raise": "ZeroDivisionError: the world fell over", "pays_nan": "A finite reward was expected from Faulty-v0",
        "exit": r"SystemExit\(7\)", "kill": "ended by SIGKILL",
    }  # fmt: skip
    for name, note in notes.items():
        (folder,) = jobs[name].folders
        assert re.search(note, jobs[name].note), jobs[name].note
        assert re.search(note, (folder / "error.txt").read_text()) and not (folder / "done.json").exists()
    assert "Traceback" in (jobs["raise"].folders[0] / "error.txt").read_text()
    assert "Traceback" not in (jobs["pays_nan"].folders[0] / "error.txt").read_text()
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("4 of 5 jobs failed: ") and all(f"fault={name}" in last for name in faults[:-1])
    assert storage.find_runs(RUNS) == [jobs["none"].folders[0]]

    told = script("status")
    assert told.code == 0 and "1 done, 4 failed, 0 running, 0 missing" in told.out
    assert "python scripts/measure.py -m env.id=Faulty-v0" in told.out and "once what failed is mended" in told.out

    with pytest.MonkeyPatch.context() as mended:
        mended.setattr(faulty_world, "FAULTS", dict.fromkeys(faults, faulty_world.FAULTS["none"]))
        again = script("measure", *words)
    assert again.code == 0 and again.out.count("Measured before") == 1 and again.out.count("Written") == 4
    assert not list(RUNS.rglob("error.txt")) and "All jobs are done." in script("status").out


def test_jobs_that_hang_are_stopped_one_by_one(script):
    done = script("measure", "-m", *FAULTY, "+env.kwargs.fault=spin,sleep", "time_limit=1.5")
    assert done.code == 2
    (sweep,) = storage.read_sweeps(RUNS)
    for job in sweep.jobs:
        assert job.state == "failed" and job.note.startswith("At most time_limit=1.5 seconds were expected for a job")
        assert all(storage.owner(folder) is None for folder in job.folders)
    assert "2 of 2 jobs failed: +env.kwargs.fault=spin; +env.kwargs.fault=sleep." in done.err


def test_a_single_run_that_hangs_is_stopped(script):
    said = one_sentence(script("measure", *FAULTY, "+env.kwargs.fault=spin", "time_limit=1", "out=run"))
    assert "At most time_limit=1 seconds were expected" in said and not (Path("run") / "done.json").exists()
    assert "time_limit must lie in" in one_sentence(script("measure", *FAULTY, "time_limit=-1", "out=other"))


@pytest.mark.parametrize("fault", ["spin", "sleep"])
def test_a_stuck_job_says_where_it_is(script, fault):
    import _isolation

    with pytest.raises(InputError, match=rf"time_limit=0.5 .*faulty_world.py\", line \d+ in _{fault}\)"):
        _isolation.run_apart(lambda: faulty_world.FAULTS[fault](0.0), 0.5)
    _isolation.run_apart(lambda: None, 60)  # the control: what ends in time is left alone


def test_a_job_apart_may_use_threads_after_this_process_did(script):
    import _isolation

    numbers, threads = torch.ones(500, 4000), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(2):
            numbers.logsumexp(-1)
            _isolation.run_apart(lambda: numbers.logsumexp(-1), 20)
    finally:
        torch.set_num_threads(threads)


def test_a_job_that_fails_before_its_run_is_known_is_kept_beside_its_record(script):
    done = script("measure", "-m", *SMALL, "n=50,20")
    assert done.code == 2 and "1 of 2 jobs failed: n=20." in done.err
    (error,) = RUNS.rglob("error.txt")
    assert error.parent.parent == RUNS / "sweeps" / "jobs" and "At least 50 trajectories" in error.read_text()
    assert [job.state for job in storage.read_sweeps(RUNS)[0].jobs] == ["done", "failed"]


def test_a_critic_that_diverges_is_one_sentence(script):
    words = ("env=cartpole", "env.horizon=10", "policy=mlp", "policy.hidden=[4]", "phi=[reward_to_go,value_baseline]", "n=50",
             "pilot=50", "critic.n=50", "reference.n=50", "figures=false")  # fmt: skip
    said = one_sentence(script("measure", *words, "critic.lr=1e30", "out=run"))
    assert "A finite error was expected after fitting the critic on CartPole-v1, but it is nan; lower critic.lr=1e+30" in said


def test_the_seeds_of_a_training_job_are_one_job(script):
    words = ("-m", "env=frozenlake", "policy=softmax_table", "phi=reward_to_go", "episodes=5", "epochs=1", "env.horizon=10",
             "seeds=[0,1]", "lr=0.01,-1")  # fmt: skip
    assert script("train", *words).code == 2
    sweep = storage.read_sweeps(Path("results") / "runs" / "train")[0]
    assert [job.state for job in sweep.jobs] == ["done", "failed"] and len(sweep.jobs[0].folders) == 2


# ---- status


def test_status_tells_interrupted_unstarted_and_older_jobs_apart(script, monkeypatch):
    assert script("measure", "-m", *SMALL, "seed=0,1,2,3").code == 0
    (sweep,) = storage.read_sweeps(RUNS)
    folders = [job.folders[0] for job in sweep.jobs]
    (folders[1] / "done.json").unlink()
    shutil.rmtree(folders[2])
    truncate(folders[3] / "summary.csv")
    with storage.lock(folders[1]) as ours:
        (sweep,) = storage.read_sweeps(RUNS)
        assert ours and [job.state for job in sweep.jobs] == ["done", "running", "missing", "missing"]
        assert sweep.jobs[1].note.startswith(f"process {os.getpid()} on ")
    (sweep,) = storage.read_sweeps(RUNS)
    assert [job.note for job in sweep.jobs[:3]] == ["", "interrupted", "not begun"] and "bytes" in sweep.jobs[3].note
    assert [sweep.swept(job) for job in sweep.jobs] == [f"seed={seed}" for seed in range(4)]
    told = script("status", f"sweep={RUNS}")
    assert "1 done, 0 failed, 0 running, 3 missing" in told.out
    assert shlex.split(told.out.partition("To finish it: ")[2]) == ["python", *sweep.command]
    monkeypatch.setattr("varlab.NUMERICS", 10**6)
    assert [job.state for job in storage.read_sweeps(RUNS)[0].jobs] == ["missing"] * 4


def test_status_of_a_folder_without_a_sweep_is_one_sentence(script):
    assert one_sentence(script("status", "sweep=nowhere")).startswith("A folder of a sweep was expected at nowhere, but no")


# ---- two writers


HOLD = """
import sys, time
from varlab import storage
with storage.lock(sys.argv[1]) as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder ``run``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_dies_with_its_owner(holder, tmp_path):
    assert storage.owner(tmp_path / "run") == f"process {holder.pid} on {os.uname().nodename}"
    with storage.lock(tmp_path / "run") as ours:
        assert not ours
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert storage.owner(tmp_path / "run") is None and (tmp_path / "run" / locks.NAME).exists()
    with storage.lock(tmp_path / "run") as ours:
        assert ours and storage.owner(tmp_path / "run").startswith(f"process {os.getpid()} on")
        with storage.lock(tmp_path / "run") as second:
            assert not second
    assert not (tmp_path / "run" / locks.NAME).exists()


def test_a_single_run_waits_and_a_sweep_goes_on(holder, script, tmp_path):
    runs = tmp_path / RUNS
    assert script("measure", *SMALL, "seed=0", "out=first").code == 0
    digest = json.loads((tmp_path / "first" / "done.json").read_text())["digest"]
    runs.mkdir(parents=True)
    (runs / digest).symlink_to(tmp_path / "run")  # the folder that the other process holds
    done = script("measure", "-m", *SMALL, "seed=0,1")
    assert done.code == 0 and f"Left to process {holder.pid}" in done.out and done.out.count("Written") == 1
    assert "1 of 2 jobs are being run by other processes: seed=0" in done.err

    single = kills.start(tmp_path, (*SMALL, "seed=0", "out=run"))
    while not (tmp_path / "log.txt").exists() or "Waiting" not in (tmp_path / "log.txt").read_text():
        assert single.is_alive()
        time.sleep(0.02)
    assert f"for process {holder.pid} on {os.uname().nodename}, which is making run." in (tmp_path / "log.txt").read_text()
    holder.kill()
    single.join()
    assert single.exitcode == 0 and "Written: run" in (tmp_path / "log.txt").read_text()
    assert_same_numbers(tmp_path / "run", tmp_path / "first")


@pytest.mark.parametrize("locking", [True, False])
def test_two_processes_that_write_one_folder_leave_a_whole_run(tmp_path, shelf, finished, locking):
    """Where the file system has no locks both do the work, and files still appear whole; where it has, one does it."""
    folder = tmp_path / "together"
    both = [kills.start(tmp_path, (*SMALL, "out=together"), locking) for _ in range(2)]
    for process in both:
        process.join()
    told = (tmp_path / "log.txt").read_text()
    assert [process.exitcode for process in both] == [0, 0], told
    if locking:
        assert told.count("Written") == 1 == told.count("Measured before"), told
    digest = json.loads((folder / "done.json").read_text())["digest"]
    assert storage.folder_state(folder, digest) == "done" and not list(folder.glob(".*.part"))
    assert_same_numbers(folder, shelf)
