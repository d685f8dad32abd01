"""scripts/train.py from the command line: its files, its sentences, repeated and interrupted runs, θ handed to measure.py."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from varlab import configure, envs, policies, storage, training
from varlab.training import CriticUpdates

ROOT = Path(__file__).resolve().parents[1]
FILES = {"config.yaml", "curve.csv", "curve.parquet", "theta_init.npz", "theta_mid.npz", "theta_late.npz", "provenance.json",
         "done.json"}  # fmt: skip
SMALL = ("env=frozenlake", "policy=softmax_table", "phi=reward_to_go", "episodes=10", "epochs=4", "env.horizon=20")




def one_sentence(done):
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err, done.err
    return done.err


def same_numbers(a, b):
    names = sorted(path.name for path in a.iterdir() if path.suffix == ".npz" or path.name == "curve.csv")
    assert len(names) > 3
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_run_writes_its_files_done_last(script, tmp_path):
    words = (*SMALL, "checkpoints=[1]", "seed=3", "out=run")
    done = script("train", *words)
    assert done.code == 0 and "Written: run" in done.out, done.err
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {*FILES, "theta_1.npz"}
    assert max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns).name == "done.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]  # Hydra leaves nothing
    curve = pd.read_csv(folder / "curve.csv")
    assert tuple(curve.columns) == training.COLUMNS and len(curve) == 4
    assert set(curve["env"]) == {"FrozenLake-v1"} and set(curve["policy"]) == {"softmax_table"} and set(curve["seed"]) == {3}
    record, said = (json.loads((folder / f"{name}.json").read_text()) for name in ("provenance", "done"))
    assert record["command"] == ["scripts/train.py", *words] and record["seeds"] == {"train": 3}
    assert record["digest"] == said["digest"] == curve["digest"][0] and set(said["files"]) == {*FILES, "theta_1.npz"} - {
        "done.json"
    }
    assert record["steps"]["train"] == curve["steps"].iloc[-1]
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 4


def test_the_files_hold_what_python_gives(script, tmp_path):
    script("train", *SMALL, "seed=3", "out=run")
    env = envs.make("FrozenLake-v1", horizon=20, map_name="4x4", is_slippery=True)
    policy = policies.make("softmax_table", env, theta_seed=3)
    made = training.train(env, policy, "reward_to_go", episodes=10, epochs=4, seed=3, policy_label="softmax_table")
    curve, record = storage.read_training(tmp_path / "run")
    assert record["digest"] == made.digest
    pd.testing.assert_frame_equal(curve, made.curve, check_exact=True)
    for name, state in made.checkpoints.items():
        storage.load_theta(storage.checkpoint(tmp_path / "run", name), policy)
        assert torch.equal(policy.logits.weight, state["logits.weight"]), name


def test_a_finished_run_returns_at_once(script, tmp_path):
    script("train", *SMALL, "out=run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    again = script("train", *SMALL, "threads=1", "out=run")
    assert again.code == 0 and "Trained before: run" in again.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_an_interrupted_run_starts_over_and_ends_alike(script, tmp_path):
    for out in ("a", "b"):
        script("train", *SMALL, f"out={out}")
    (tmp_path / "b" / "done.json").unlink()
    (tmp_path / "b" / "theta_mid.npz").write_bytes(b"half")
    done = script("train", *SMALL, "out=b")
    assert done.code == 0 and "Written: b" in done.out
    same_numbers(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "theta_late.npz").unlink()  # a finished folder that lost a file is not finished
    assert "Written: b" in script("train", *SMALL, "out=b").out
    same_numbers(tmp_path / "a", tmp_path / "b")


def test_foreign_files_and_other_runs_are_left_alone(script, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "theta_late.npz").write_text("mine")
    assert "holds theta_late.npz of unknown origin" in one_sentence(script("train", *SMALL, "out=mine"))
    script("train", *SMALL, "out=run")
    assert "holds run" in one_sentence(script("train", *SMALL, "lr=0.1", "out=run"))
    assert (tmp_path / "mine" / "theta_late.npz").read_text() == "mine"


def test_seeds_in_one_job_and_over_a_multirun_are_the_same_runs(script, tmp_path):
    assert script("train", *SMALL, "seeds=[0,1]").code == 0
    runs = storage.find_runs(tmp_path / "results", training=True)
    assert len(runs) == 2 and [json.loads((f / "done.json").read_text())["digest"] for f in runs] == [f.name for f in runs]
    again = script("train", "-m", *SMALL, "seed=0,1,2")
    assert again.out.count("Trained before: ") == 2 and again.out.count("Written: ") == 1
    assert script("train", *SMALL, "seeds=[0,1]", "out=both").code == 0
    for seed in (0, 1):
        curve, _ = storage.read_training(tmp_path / "both" / f"seed_{seed}")
        same_numbers(tmp_path / "results" / "runs" / "train" / curve["digest"][0], tmp_path / "both" / f"seed_{seed}")
        assert yaml.safe_load((tmp_path / "both" / f"seed_{seed}" / "config.yaml").read_text())["seed"] == seed
    assert "No out= was expected in a multirun" in one_sentence(script("train", "-m", *SMALL, "seed=0,1", "out=run"))


def test_each_seed_draws_its_own_theta_unless_told_otherwise(script, tmp_path):
    script("train", *SMALL, "seeds=[0,1]", "out=own")
    script("train", *SMALL, "seeds=[0,1]", "vary_theta=false", "out=one")
    for out, same in (("own", False), ("one", True)):
        a, b = (np.load(tmp_path / out / f"seed_{s}" / "theta_init.npz")["logits.weight"] for s in (0, 1))
        assert np.array_equal(a, b) is same


def test_a_checkpoint_is_measured_at_its_theta(script, tmp_path):
    script("train", *SMALL, "checkpoints=[1]", "out=run")
    words = ("env=frozenlake", "policy=softmax_table", "env.horizon=20", "phi=reward_to_go", "n=100", "pilot=50", "figures=false")
    for at in ("late", "init", "1"):
        done = script("measure", *words, "theta=checkpoint", "theta.run=run", f"theta.at={at}", f"out=at_{at}")
        assert done.code == 0, done.err
        file = script("measure", *words, "theta=file", f"theta.file=run/theta_{at}.npz", f"out=file_{at}")
        a, b = (pd.read_csv(tmp_path / f"{kind}_{at}" / "summary.csv") for kind in ("at", "file"))
        assert a["digest"][0] == b["digest"][0] and a["theta"][0] == f"{at}:{b['theta'][0].removeprefix('file:')}", file.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["theta.run=run", "theta.at=lat"], "No checkpoint is called 'lat'; the nearest names are late"),
        (["theta.run=run", "theta.at=7"], "No checkpoint is called '7'; the nearest names are init, late, mid"),
        (["theta.run=nowhere"], "A folder of a finished training run was expected at nowhere, but it does not exist"),
        (["theta.run=half"], "A folder of a finished training run was expected at half, but it is unfinished"),
        (["theta.run=other"], "Checkpoints theta_….npz were expected in other, but it holds none"),
        ([], "A value was expected for theta.run, but none came"),
        (["theta.run=run", "env.kwargs.map_name=8x8"], "A parameter|Parameter 'logits.weight' of shape"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_sentence(script, tmp_path, words, sentence):
    script("train", *SMALL, "out=run")
    for name in ("half", "other"):
        storage.begin(tmp_path / name, "0" * 16, "")
    storage.finish(tmp_path / "other", "0" * 16, 1)
    said = one_sentence(script("measure", "env=frozenlake", "policy=softmax_table", "theta=checkpoint", *words, "out=m"))
    assert any(said.startswith(s) for s in sentence.split("|"))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["env=cartpol"], "No choice of env is called 'cartpol'"),
        (["gama=0.9"], "No setting is called 'gama'; the nearest names are gamma"),
        (["phi=[reward_to_go,gae]"], "One Φ was expected to train with"),
        (["seeds=3"], "A list of seeds was expected, but seeds=3"),
        (["seeds=[]"], r"A list of seeds was expected, but seeds=[]"),
        (["seeds=[0,-1]"], "seeds must be a whole number of at least 0"),
        (["steps=100", "episodes=10"], "A batch of episodes or a quota of steps was expected"),
        (["normalise=3"], "normalise must be true or false"),
        (["optimizer=sgd"], "No optimizer is called 'sgd'"),
        (["critic.init=nowhere.pt"], "A file of parameters was expected at nowhere.pt"),
        (["checkpoints=[9]"], "Checkpoints of at most 4 epochs"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(script, tmp_path, words, sentence):
    base = [w for w in SMALL if w.split("=")[0] not in {x.split("=")[0] for x in words}]
    assert one_sentence(script("train", *base, *words, "out=run")).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_quota_says_that_it_is_biased_and_keeps_its_critic(script, tmp_path):
    words = ("env=cartpole", "env.horizon=20", "policy=mlp", "policy.hidden=[8]", "phi=gae", "steps=50", "epochs=2")
    done = script("train", *words, "critic.hidden=[8]", "out=a")
    assert done.code == 0 and "Note: Every batch is a quota of 50 steps" in done.out and "biased" in done.out
    assert all(isinstance(v, torch.Tensor) for v in torch.load(tmp_path / "a" / "critic.pt", weights_only=True).values())
    again = script("train", *words, "critic.hidden=[8]", "critic.init=a/critic.pt", "out=b")
    assert again.code == 0
    a, b = (pd.read_csv(tmp_path / f / "curve.csv") for f in "ab")
    assert a["mean_return"][0] == b["mean_return"][0] and a["critic_loss"][0] != b["critic_loss"][0]


def test_defaults_of_configuration_and_python_are_the_same():
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("train", ["policy.hidden=[4]"])
    ours = configure.training_arguments(cfg, 0)
    env, policy, phi = (ours.pop(name) for name in ("env", "policy", "phi"))
    assert ours.pop("critic").__dict__ | {"hidden": (64, 64)} == CriticUpdates().__dict__
    assert training.plan(env, policy, phi, **ours).digest == training.plan(env, policy, phi).digest
    assert len(phi) == 1 and phi[0].label == "gae(lam=0.95)" and ours["env_label"] == "CartPole-v1"


def test_figures_draw_learning_curves_from_training_runs(script, tmp_path):
    assert script("train", *SMALL, "seeds=[0,1,2]", "out=runs").code == 0
    done = script("figures", "runs=runs", "out=drawn")
    assert done.code == 0 and "Gathered 3 training runs from runs" in done.out, done.err
    named = {f"learning_curves.{kind}" for kind in ("png", "pdf", "md", "tex", "csv")}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == named
    table = pd.read_csv(tmp_path / "drawn" / "learning_curves.csv")
    assert set(table["seeds"]) == {3} and (table["iqm_low"] <= table["iqm"]).all() and (table["iqm"] <= table["iqm_high"]).all()

    words = ("env=frozenlake", "policy=softmax_table", "phi=reward_to_go", "n=100", "pilot=50", "figures=false", "out=runs/m")
    assert script("measure", *words).code == 0
    both = script("figures", "runs=runs", "out=both")
    assert both.code == 0 and "Gathered 3 training runs" in both.out and "Gathered 1 runs" in both.out
    assert named < {path.name for path in (tmp_path / "both").iterdir()}


def test_a_fresh_process_gives_the_same_bits(script, tmp_path):
    script("train", *SMALL, "phi=value_baseline", "critic.hidden=[8]", "out=here")
    words = [sys.executable, str(ROOT / "scripts" / "train.py"), *SMALL, "phi=value_baseline", "critic.hidden=[8]", "out=there"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same_numbers(tmp_path / "here", tmp_path / "there")


def test_help_reads_well(script):
    done = script("train", "--help")
    assert done.code in (0, None)
    for word in ("python scripts/train.py env=cartpole", "theta=checkpoint theta.run=DIR", "conf/train.yaml", "optimizer: adam"):
        assert word in done.out
