"""scripts/measure.py from the command line: its files, its sentences, and what it leaves alone."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from varlab import envs, policies, storage
from varlab.analysis import figures

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "measure.py"
#: The contract of other programs, written out here so that a change in the package cannot change it too.
COLUMNS = """
    env policy theta phi gamma discount_weighting horizon n n_reference reference_kind objective grad_norm variance
    variance_low variance_high variance_ratio variance_ratio_low variance_ratio_high bias_sq bias_sq_low bias_sq_high
    bias_p_value mse nsr kurtosis steps efficiency exact_variance seed values_source batch_size cut at_cut dtype device
    mse_low mse_high nsr_low nsr_high cosine cosine_low cosine_high grad_norm_low grad_norm_high exact_bias_sq exact_nsr
    flag reference_digest digest
""".split()
FILES = {"config.yaml", "summary.csv", "summary.parquet", "trajectories.parquet", "moments.npz", "provenance.json", "report.html",
         "done.json"}  # fmt: skip
#: FrozenLake with the text's first three Φ, no figures: about a second.
SMALL = ("env=frozenlake", "policy=softmax_table", "phi=[total_return,reward_to_go,value_baseline]", "n=200", "pilot=100",
         "figures=false")  # fmt: skip


@pytest.fixture
def measure(script):
    return functools.partial(script, "measure")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("shelf") / "run"


@pytest.fixture
def finished(measure, shelf, tmp_path):
    """A folder ``run`` that holds the finished run SMALL (measured once, then copied)."""
    if not shelf.exists():
        assert measure(*SMALL, f"out={shelf}").code == 0
    return Path(shutil.copytree(shelf, tmp_path / "run"))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def one_sentence(done):
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
    return done.err


def same_numbers(a, b):
    """Both folders hold the same bits, wherever they lie and however long they took."""
    for name in ("summary.csv", "moments.npz"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "trajectories.parquet") for f in (a, b)), check_exact=True)


def test_a_run_writes_the_files_of_the_contract(measure, tmp_path):
    words = (*SMALL[:-1], "gamma=0.9", "objectives=[J_gamma,J_1]", "seed=3", "out=run")
    done = measure(*words)
    assert done.code == 0, done.err
    folder = tmp_path / "run"
    held = {path.name for path in folder.iterdir()}
    assert held == {*FILES, "figures"}
    assert {".png", ".pdf"} <= {path.suffix for path in (folder / "figures").iterdir()}
    assert max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns).name == "done.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # an exact reference needs no cache; Hydra leaves nothing

    summary = pd.read_csv(folder / "summary.csv")
    assert list(summary.columns)[: len(COLUMNS)] == COLUMNS
    assert list(pd.read_parquet(folder / "summary.parquet").columns) == list(summary.columns)
    assert [*zip(summary["phi"], summary["objective"], strict=True)] and len(summary) == 6
    assert set(summary["env"]) == {"FrozenLake-v1"} and set(summary["theta"]) == {"seed=0"} and set(summary["n"]) == {200}

    rows = pd.read_parquet(folder / "trajectories.parquet")
    assert rows["trajectory"].tolist() == list(range(200)) and rows["block"].nunique() == 50
    assert {"return", "length", "norm_sq[value_baseline]"} <= set(rows.columns)

    record = json.loads((folder / "provenance.json").read_text())
    digest = json.loads((folder / "done.json").read_text())["digest"]
    assert set(summary["digest"]) == {digest} == {record["digest"]}
    assert record["command"] == ["scripts/measure.py", *words] and record["seeds"]["rollout"] == 3
    assert record["settings"]["gamma"] == 0.9 and record["steps"]["rollout"] == rows["length"].sum()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["n"] == 200 and config["env"]["id"] == "FrozenLake-v1" and "hydra" not in config

    _, moments, references, _ = storage.read_run(folder)
    assert moments.n == 200 and list(references) == ["J_gamma", "J_1"] and references["J_1"].exact
    for phi in summary["phi"].unique():
        assert phi in done.out
    assert "[" in done.out and "Note: " in done.out and "Written: run" in done.out


def test_a_finished_run_returns_at_once(measure, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    again = measure(*SMALL, "out=run")
    assert again.code == 0 and "Measured before: run" in again.out and "value_baseline" in again.out
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_figures_may_be_drawn_later(measure, finished, monkeypatch):
    before = content(finished)
    monkeypatch.setattr(figures, "save_all", lambda *given: storage.write_text(given[3] / "a.png", ""))
    assert measure(*SMALL[:-1], "out=run").code == 0
    after = content(finished)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {Path("figures/a.png")}


def test_a_folder_of_another_configuration_is_left_alone(measure, finished):
    before = content(finished)
    said = one_sentence(measure(*SMALL, "seed=9", "out=run"))
    assert re.search("A folder of run .* was expected at run, but it holds run .*; name another folder", said)
    assert content(finished) == before


def test_foreign_files_are_left_alone(measure, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.csv").write_text("mine")
    assert "holds summary.csv of unknown origin" in one_sentence(measure(*SMALL, "out=run"))
    assert content(tmp_path / "run") == {Path("summary.csv"): b"mine"}


def test_an_interrupted_run_starts_over_and_ends_alike(measure, finished, shelf):
    (finished / "done.json").unlink()
    (finished / "moments.npz").write_bytes(b"half")
    done = measure(*SMALL, "threads=1", "out=run")
    assert done.code == 0 and "Written: run" in done.out
    same_numbers(shelf, finished)


def test_the_check_of_equal_numbers_can_fail(measure, finished, tmp_path):
    measure(*SMALL, "seed=1", "out=other")
    with pytest.raises(AssertionError):
        same_numbers(finished, tmp_path / "other")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["env=cartpol"], "No choice of env is called 'cartpol'; the nearest names are cartpole."),
        (["phi=[total_return,gea]"], "No choice of phi is called 'gea'; the nearest names are gae."),
        (["+phi.gea={}"], "No Φ is called 'gea'; the nearest names are gae"),
        (["gama=0.9"], "No setting is called 'gama'; the nearest names are gamma"),
        (["env.id=CartPol-v1"], "No environment is called 'CartPol-v1'"),
        (["env=cliffwalking", "policy=softmax_table"], "A horizon was expected for CliffWalking-v1"),
        (["n=49"], "At least 50 trajectories were expected"),
        (["theta=file"], "A value was expected for theta.file"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(measure, tmp_path, words, sentence):
    said = one_sentence(measure(*words, "out=run"))
    assert said.startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_out_in_a_multirun_writes_nothing(measure, tmp_path):
    assert "No out= was expected in a multirun" in one_sentence(measure("-m", *SMALL, "seed=0,1", "out=run"))
    assert list(tmp_path.iterdir()) == []


def test_a_theta_of_the_wrong_shape_is_one_sentence(measure, tmp_path):
    storage.save_theta("theta.npz", policies.make("softmax_table", envs.make("FrozenLake-v1", map_name="8x8")))
    said = one_sentence(measure(*SMALL, "theta=file", "theta.file=theta.npz", "out=run"))
    assert re.search(r"of shape \(.*\) was expected in theta.npz, but it has shape \(.*\)", said)
    assert not (tmp_path / "run").exists()


def test_a_multirun_carries_on_after_a_bad_job_and_resumes(measure, tmp_path):
    sweep = ("-m", *SMALL, "seed=0,1", "n=200,20")
    done = measure(*sweep)
    assert done.code == 2 and "Traceback" not in done.err
    assert len(re.findall(r"^Job [23] \(.*n=20.*\): At least 50 trajectories", done.err, re.M)) == 2
    assert re.search(r"^2 of 4 jobs failed: n=20 seed=0; n=20 seed=1\. The others are complete", done.err, re.M)
    runs = storage.find_runs(tmp_path / "results" / "runs" / "measure")
    assert [json.loads((f / "done.json").read_text())["digest"] for f in runs] == [f.name for f in runs] and len(runs) == 2
    assert done.out.count("Written: ") == 2 and "variance" not in done.out and "it/s" not in done.err

    storage.write_text(runs[0] / "mark", "kept")
    (runs[1] / "done.json").unlink()
    again = measure("-m", *SMALL, "seed=0,1")
    assert again.code == 0 and again.out.count("Measured before: ") == 1 and again.out.count("Written: ") == 1
    assert storage.find_runs(tmp_path / "results") == runs

    seed = json.loads((runs[0] / "provenance.json").read_text())["seeds"]["rollout"]
    measure(*SMALL, f"seed={seed}", "out=single")
    same_numbers(runs[0], tmp_path / "single")


def test_a_sampled_reference_is_shared_through_the_cache(measure, tmp_path):
    words = (*SMALL, "reference=sampled", "reference.n=300")
    assert measure(*words, "out=a").code == 0
    cached = list((tmp_path / "results" / "cache").iterdir())
    assert len(cached) == 1
    assert measure(*words, "seed=5", "out=b").code == 0
    a, b = (json.loads((tmp_path / f / "provenance.json").read_text())["steps"] for f in "ab")
    assert a["reference"] > 0 and b.get("reference", 0) == 0 and list((tmp_path / "results" / "cache").iterdir()) == cached
    references = [storage.read_run(tmp_path / f)[2]["J_1"] for f in "ab"]
    assert np.array_equal(references[0].grad, references[1].grad) and references[0].n == 300

    cached[0].write_bytes(cached[0].read_bytes()[:-50])
    again = measure(*words, "seed=6", "out=c")
    assert again.code == 0 and "is damaged" in again.err and cached[0].name in again.err
    assert np.array_equal(storage.read_run(tmp_path / "c")[2]["J_1"].grad, references[0].grad)


def test_a_critic_is_kept_as_tensors_and_can_be_started_from(measure, tmp_path):
    words = ("env=cartpole", "env.horizon=20", "policy=mlp", "policy.hidden=[8]", "phi=[reward_to_go,value_baseline]", "n=100",
             "pilot=100", "critic.n=50", "reference.n=100", "figures=false")  # fmt: skip
    assert measure(*words, "out=a").code == 0
    assert all(isinstance(v, torch.Tensor) for v in torch.load(tmp_path / "a" / "critic.pt", weights_only=True).values())
    assert measure(*words, "critic.init=a/critic.pt", "out=b").code == 0
    a, b = (pd.read_csv(tmp_path / f / "summary.csv") for f in "ab")
    assert set(a["values_source"].dropna()).isdisjoint(set(b["values_source"].dropna()) - {"none"})
    assert a["variance"][0] == b["variance"][0] and a["variance"][1] != b["variance"][1]


# ---- repetition


def test_a_run_is_repeated_from_its_folder_alone(measure, finished, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    done = measure("repeat=elsewhere/moved", "out=again", "figures=false")
    assert done.code == 0, done.err
    assert "Equal bit for bit: elsewhere/moved" in done.out and "Written: again" in done.out
    same_numbers(tmp_path / "elsewhere" / "moved", tmp_path / "again")
    digests = {json.loads((tmp_path / f / "done.json").read_text())["digest"] for f in ("elsewhere/moved", "again")}
    assert len(digests) == 1
    third = measure("repeat=again", "out=third", "figures=false")  # what was repeated can be repeated
    assert third.code == 0 and "Equal bit for bit: again" in third.out


def test_every_setting_of_a_run_is_repeated(measure, tmp_path):
    """None of these is a default: group choices, their arguments, nested settings, a list that stands for several Φ."""
    words = ("env=cartpole", "env.horizon=12", "policy=linear", "theta.seed=4", "phi=[gae,reward_to_go]", "phi.gae.lam=[0.5,1]",
             "gamma=0.9", "n=150", "seed=2", "pilot=60", "values=critic", "critic.n=50", "critic.hidden=[8]", "critic.epochs=2",
             "reference=sampled", "reference.n=200", "reference.seed=3", "cut=9", "at_cut=terminal", "dtype=float64")  # fmt: skip
    assert measure(*words, "figures=false", "out=run").code == 0
    done = measure("repeat=run", "out=again", "cache=another", "figures=false")
    assert done.code == 0 and "Equal bit for bit: run" in done.out, done.err
    kept = [yaml.safe_load((tmp_path / f / "config.yaml").read_text()) for f in ("run", "again")]
    assert kept[0] | {"out": "again", "cache": "another"} == kept[1]
    same_numbers(tmp_path / "run", tmp_path / "again")


def test_a_repetition_whose_numbers_differ_says_so(measure, finished):
    summary = pd.read_parquet(finished / "summary.parquet")
    summary.loc[1, "variance"] *= 1.5
    summary.to_parquet(finished / "summary.parquet")
    done = measure("repeat=run", "out=damaged", "figures=false")
    assert done.code == 0 and "Nothing to compare with: run was not finished, or its files are damaged." in done.out
    marker = json.loads((finished / "done.json").read_text())
    storage.finish(finished, marker["digest"], marker["numerics"])  # as another machine would have left it
    done = measure("repeat=run", "out=again", "figures=false")
    assert done.code == 0 and "Equal" not in done.out
    assert re.search(r"^Differs from run in variance by up to 0\.33 of a value; versions there: python 3", done.out, re.M)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["repeat=run", "n=300"], "Only repeat, out, study, .* were expected beside repeat=, .* but n=300 came"),
        (["repeat=run", "phi.gae.lam=1", "phi=gae"], "were expected beside repeat="),
        (["repeat=nowhere"], "Settings of a run were expected in nowhere/config.yaml, but they could not be read"),
        (["repeat=run", "out=run"], "Another folder than that of the finished run was expected for its repetition"),
    ],
)
def test_what_cannot_be_repeated_is_one_sentence(measure, finished, tmp_path, words, sentence):
    before = content(finished)
    assert re.search(sentence, one_sentence(measure(*words)))
    assert content(finished) == before and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_whose_settings_mean_something_else_now_is_not_repeated(measure, finished, tmp_path):
    text = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 9\n"))
    said = one_sentence(measure("repeat=run", "out=again"))
    assert re.search("Settings of digest .* were expected of the run in run, but here", said)
    (finished / "config.yaml").write_text(text + "warp: 9\n")
    assert "but it has warp too; repeat the run with the version" in one_sentence(measure("repeat=run", "out=again"))
    (finished / "config.yaml").write_text(text.partition("\n")[2])
    assert "does not begin with a digest" in one_sentence(measure("repeat=run", "out=again"))
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_help_reads_well(measure):
    done = measure("--help")
    assert done.code in (0, None)
    for word in ("python scripts/measure.py env=frozenlake", "phi: advantage", "gamma: 1.0", "conf/measure.yaml"):
        assert word in done.out
