"""A hundred malformed configurations and files, over all scripts: each ends in one sentence, exit code 2, and touches nothing."""

import concurrent.futures
import logging
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from varlab import checks

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
LAKE = "env=frozenlake policy=softmax_table n=60 pilot=50 'phi=[total_return,gae]' figures=false"
#: (script and words, what the sentence says). An earlier run lies in ``earlier``, a damaged one in ``damaged``, files in ``bad``.
TABLE = [
    # names that nobody knows
    ("measure env=cartpol", "No choice of env is called 'cartpol'; the nearest names are cartpole"),
    ("measure env.id=CartPol-v1", "No environment is called 'CartPol-v1'; the nearest ids are CartPole-v1"),
    ("measure policy=mpl", "No choice of policy is called 'mpl'; the nearest names are mlp"),
    ("measure policy.kind=mpl", "No policy is called 'mpl'; the nearest names are mlp"),
    ("measure +policy.width=3", "No setting of policy is called 'width'"),
    ("measure 'phi=[total_return,gea]'", "No choice of phi is called 'gea'; the nearest names are gae"),
    ("measure +phi.gea={}", "No Φ is called 'gea'; the nearest names are gae"),
    ("measure phi=gae +phi.gae.lamda=1", "Φ gae takes the arguments lam, but lamda=1 was given"),
    ("measure values.source=exct", "No source of values is called 'exct'; the nearest names are exact"),
    ("measure at_cut=bootstrp", "No rule at_cut is called 'bootstrp'; the nearest names are bootstrap"),
    ("measure critic.activation=tan", "No critic.activation is called 'tan'"),
    ("measure dtype=float31", "No dtype is called 'float31'"),
    ("measure device=abacus", "A usable torch device was expected, but 'abacus' is not one"),
    ("measure gama=0.9", "No setting is called 'gama'; the nearest names are gamma"),
    ("measure +gama=0.9", "No setting is called 'gama'; the nearest names are gamma"),
    ("measure +values.errror=0.1", "No setting is called 'values.errror'; the nearest names are values.error"),
    ("measure +theta.fil=x.npz", "No setting is called 'theta.fil'; the nearest names are theta.file"),
    ("train +episode=4", "No setting is called 'episode'; the nearest names are episodes"),
    ("measure hydra/launcher=slurmm", "slurmm"),
    ("measure +env.kwargs.colour=red", "CartPole-v1 could not be made with {'colour': 'red'}"),
    ("train optimizer=sgd", "No optimizer is called 'sgd'"),
    ("train epoch=3", "No setting is called 'epoch'; the nearest names are epochs"),
    ("figures style=nature", "No choice of style is called 'nature'"),
    ("figures 'runs=[earlier]' 'also=[tail]'", "No analysis is called 'tail'; the nearest names are tails"),
    ("figures study=nothing", "'nothing'"),
    ("plan pilot=earlier target=speed", "'speed'"),
    ("claims 'claims=[XX-1]'", "'XX-1'"),
    ("calibrate 'worlds=[mars]'", "No world is called 'mars'"),
    ("benchmark size=huge", "No size is called 'huge'"),
    # values of the wrong kind
    ("measure env=null", "A choice by its name, or a list of names, was expected for every group"),
    ("measure env.id=7", "env.id must be a name or a path, but it is 7"),
    ("measure env.horizon=abc", "horizon must be a whole number of at least 1, but it is 'abc'"),
    ("measure policy.hidden=64", "policy.hidden must be a list, but it is 64"),
    ("measure policy.scale=x", "policy.scale must be a finite number, but it is 'x'"),
    ("measure theta=file theta.file=7", "theta.file must be a name or a path, but it is 7"),
    ("measure phi=gae phi.gae=0.5", "Arguments in braces were expected for phi.gae, but it is 0.5"),
    ("measure n=x", "n must be a whole number of at least 1, but it is 'x'"),
    ("measure discount_weighting=3", "discount_weighting must be true or false, but it is 3"),
    ("measure critic.lr=x", "critic.lr must be a finite number, but it is 'x'"),
    ("measure cache=null", "cache must be a name or a path, but it is None"),
    ("measure nonsense", "A setting written as key=value was expected, but 'nonsense' came"),
    ("measure --nonsense", "flags that --hydra-help lists were expected, but: unrecognized arguments: --nonsense"),
    ("measure '~env'", "A value was expected for every setting, but ~env takes one out"),
    ("measure 'n=${nowhere}'", "Interpolation key 'nowhere' not found"),
    ("measure repeat=7", "repeat must be a name or a path, but it is 7"),
    ("train checkpoints=3", "checkpoints must be a list, but it is 3"),
    ("train seeds=3", "A list of seeds was expected, but seeds=3"),
    ("figures runs=7", "runs must be a name or a path, but it is 7"),
    ("figures study=[]", "study must name at least one, but it is an empty list"),
    ("plan check=7", "check must be a name or a path, but it is 7"),
    ("plan pilot=earlier value=x", "value must be a finite number, but it is 'x'"),
    ("calibrate workers=x", "workers must be a whole number of at least 1, but it is 'x'"),
    ("textbook_order mdps=x", "mdps must be a whole number of at least 1, but it is 'x'"),
    ("reference n=100 shards=x", "shards must be a whole number of at least 1, but it is 'x'"),
    # out of range, NaN and infinity
    ("measure env.horizon=0", "horizon must be a whole number of at least 1, but it is 0"),
    ("measure policy.scale=nan", "policy.scale must be a finite number, but it is nan"),
    ("measure env=pendulum policy.log_std=inf", "policy.log_std must be a finite number, but it is inf"),
    ("measure policy=parameter_exploring policy.tau=-1", "Positive standard deviations τ were expected"),
    ("measure phi=gae phi.gae.lam=nan", "lam of gae must lie in [0, 1], but it is nan"),
    ("measure n=49", "At least 50 trajectories were expected"),
    ("measure gamma=nan", "gamma must be a finite number, but it is nan"),
    ("measure gamma=1.5", "gamma must lie in [0, 1], but it is 1.5"),
    ("measure draws=10", "draws must be a whole number of at least"),
    ("measure reference.n=10", "n_reference must be a whole number of at least 50"),
    ("measure style.dpi=10", "dpi must be a whole number of at least 200"),
    ("train epochs=0", "epochs must be a whole number of at least 1"),
    ("train 'checkpoints=[99]' epochs=2", "Checkpoints of at most 2 epochs were expected"),
    ("plan pilot=earlier value=nan", "value must be a finite number, but it is nan"),
    ("calibrate repeats=0", "repeats must be a whole number of at least 1"),
    ("reference n=100 shards=2 shard=2 critic.n=5", "A shard from 0 to 1 was expected"),
    # settings that contradict each other
    ("measure -m seed=0,1 out=x", "No out= was expected in a multirun"),
    ("measure env=cliffwalking policy=softmax_table", "A horizon was expected for CliffWalking-v1"),
    ("measure policy=softmax_table", "Discrete observations and actions were expected for a softmax table"),
    ("measure reference=exact", "was expected for reference=exact, but CartPole-v1 with MLP is neither"),
    ("measure cut=100000", "A cut of at most the horizon"),
    ("measure phi=leave_one_out", "Units of several trajectories were expected for leave_one_out"),
    ("measure phi=gae 'phi.gae.lam=[0.5,0.5]'", "occurs more than once"),
    ("measure phi=leave_one_out groups=2 n=200", "At least 2 trajectories in a group were expected for leave_one_out"),
    ("train phi=leave_one_out group_size=1", "At least 2 trajectories in a group were expected for leave_one_out"),
    ("train phi=leave_one_out episodes=1", "At least 2 trajectories in a group were expected for leave_one_out"),
    ("measure env=frozenlake policy=softmax_table env.horizon=1000000000000", "A horizon whose exact values fit into memory"),
    ("train episodes=4 steps=100", "A batch of episodes or a quota of steps was expected"),
    ("plan", "A pilot or a run to check was expected, but neither came"),
    ("plan pilot=earlier check=earlier", "A run of its own was expected for the check, but it is the pilot"),
    ("reference n=100 reference=exact env=frozenlake policy=softmax_table", "A sampled reference of a stated size was expected"),
    ("reference n=100 repeat=earlier", "No repeat was expected here, because another script reads it, but it is 'earlier'"),
    ("measure repeat=earlier seed=1", "were expected beside repeat=, because the run itself says the rest, but seed=1 came"),
    # files: missing, damaged, of another kind
    ("measure theta=file theta.file=null", "A file of θ was expected, but theta.file=null"),
    ("measure theta=file theta.file=nowhere.npz", "A file of parameters was expected at nowhere.npz, but there is none"),
    ("measure theta=file theta.file=bad/object.npz", "pickled code, which is never run"),
    ("measure theta=file theta.file=bad/pickle.pt", "pickled code, which is never run"),
    ("measure theta=file theta.file=bad/wrong.npz", "A parameter 'net.0.weight' of shape (64, 4) was expected in bad/wrong.npz"),
    ("measure env=frozenlake policy=softmax_table theta=file theta.file=bad/nan.npz", "Finite real numbers were expected"),
    ("measure theta=checkpoint theta.run=nowhere", "A folder of a finished training run was expected at nowhere"),
    ("measure theta=sb3 theta.path=nowhere.zip", "A file of a Stable-Baselines3 agent was expected at nowhere.zip"),
    ("measure repeat=nowhere", "Settings of a run were expected in nowhere/config.yaml, but they could not be read"),
    ("measure critic.init=bad/pickle.pt", "pickled code, which is never run"),
    ("measure out=foreign", "holds summary.csv of unknown origin"),
    ("measure out=earlier", "it holds run"),
    ("measure out=bad/text/below", "A folder was expected at bad/text, but it is a file"),
    ("measure --config-dir bad --config-name broken", "Configuration files in YAML were expected"),
    ("figures runs=nowhere", "A folder of runs was expected at nowhere, but there is none"),
    ("figures 'runs=[earlier]' out=bad/text", "A folder was expected at bad/text, but it is a file"),
    ("plan pilot=damaged", "A complete run was expected in damaged, but moments.npz has "),
    ("reference n=100 shards=3 critic.n=5", "0 (missing), 1 (missing), 2 (missing); make them with shard=0,1,2"),
    # code that would get in
    ("measure +env.kwargs._target_=os.system", "a configuration may not name code to run"),
    ("measure hydra.launcher._target_=os.system", "a configuration may not name code to run"),
    ("measure --experimental-rerun bad/pickle.pt", "which reads pickled code"),
    ("train +hydra.callbacks.x._target_=os.system", "a configuration may not name code to run"),
    ("figures +x._target_=os.system", "a configuration may not name code to run"),
    ("measure theta=sb3 theta.path=bad/text", "Trust in bad/text was expected"),
    ("measure user_module=nowhere.py", "A Python file was expected for user_module, but nowhere.py is not one"),
    ("measure user_module=bad/raises.py", "bad/raises.py failed at line 1 (ZeroDivisionError"),
]  # fmt: skip
#: These end before torch is loaded, or nearly so, and are run as a user runs them.
PROCESSES = [
    "measure env=cartpol", "measure nonsense", "measure --nonsense", "measure +env.kwargs._target_=os.system", "measure n=x",
    "train epoch=3", "figures runs=7", "plan check=7", "calibrate repeats=0", "measure -m seed=0,1 out=x",
]  # fmt: skip


def made_bad(folder):
    """Files that cannot be used."""
    folder.mkdir()
    (folder / "empty.npz").write_bytes(b"")
    (folder / "text").write_text("text")
    (folder / "raises.py").write_text("1 / 0")
    (folder / "broken.yaml").write_text("a: [1\nb: }")
    torch.save({"a": np.random.default_rng(0)}, folder / "pickle.pt")
    np.savez(folder / "object.npz", a=np.array([{}], dtype=object))
    np.savez(folder / "wrong.npz", a=np.ones(3))
    np.savez(folder / "nan.npz", **{"logits.weight": np.full((16, 4), np.nan)})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an earlier run and what is malformed."""
    folder = tmp_path_factory.mktemp("place")
    made_bad(folder / "bad")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "summary.csv").write_text("mine")
    here, patch = os.getcwd(), pytest.MonkeyPatch()
    patch.syspath_prepend(str(SCRIPTS))
    patch.setenv("HYDRA_FULL_ERROR", "1")
    os.chdir(folder)
    root = logging.getLogger()
    handlers, level, threads = root.handlers[:], root.level, torch.get_num_threads()
    try:
        assert entered(f"measure {LAKE} out=earlier") == 0
        shutil.copytree("earlier", "damaged")
        moments = Path("damaged/moments.npz")
        moments.write_bytes(moments.read_bytes()[:-100])
        yield folder
    finally:
        os.chdir(here)
        patch.undo()
        root.handlers[:] = handlers
        root.setLevel(level)
        torch.set_num_threads(threads)


def entered(line):
    """Run a script in this process, by the entry function that a user's command goes through; return the exit code."""
    name, *words = shlex.split(line)
    argv = sys.argv
    sys.argv = [f"scripts/{name}.py", *words]
    try:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = argv
    return 0


def content(folder):
    """Every path, with size and time of its last change."""
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {path: (state.st_mtime_ns, state.st_size) for path, state in found if "__pycache__" not in path.parts}


def one_sentence(said, expected):
    """One line that says what was expected (or not known), without a traceback."""
    assert said.count("\n") == 1 and said.endswith("\n") and "Traceback" not in said, said
    assert expected in said, said
    assert len(said) < 800 and said.strip()[0].isalpha() and said.strip().endswith("."), said


def test_the_table_is_long_enough_and_holds_each_case_once():
    lines = [line for line, _ in TABLE]
    assert len(lines) == len(set(lines)) >= 100 and set(PROCESSES) <= set(lines) and len(PROCESSES) == 10
    assert {line.split()[0] for line in lines} == {
        "measure", "train", "figures", "plan", "claims", "calibrate", "textbook_order", "benchmark", "reference",
    }  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), TABLE, ids=[line for line, _ in TABLE])
def test_bad_input_is_one_sentence_and_touches_nothing(place, capfd, line, expected):
    before = content(place)
    capfd.readouterr()
    code = entered(line)
    out, err = capfd.readouterr()
    assert code == 2 and not out, (code, out)
    one_sentence(err, expected)
    assert content(place) == before


def test_the_same_as_processes(place):
    before, expected = content(place), dict(TABLE)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent), "OMP_NUM_THREADS": "1"}

    def run(line):
        name, *words = shlex.split(line)
        command = [sys.executable, str(SCRIPTS / f"{name}.py"), *words]
        return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for line, done in zip(PROCESSES, pool.map(run, PROCESSES), strict=True):
            assert done.returncode == 2 and not done.stdout, (line, done)
            one_sentence(done.stderr, expected[line])
    assert content(place) == before


def test_good_input_would_be_noticed(place, capfd):
    """The negative control: the same checks fail where a script runs through."""
    before = content(place)
    capfd.readouterr()
    assert entered(f"measure {LAKE} seed=1 out=other") == 0
    assert content(place) != before
    with pytest.raises(AssertionError):
        one_sentence(capfd.readouterr().err, "expected")
    shutil.rmtree(place / "other")


def test_what_does_not_fit_into_memory_is_one_sentence(place):
    import _entry

    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises(checks.InputError, match=r"^Settings that fit into memory were expected, but .*(bytes|GiB|TiB|PiB)"):
            with _entry._room_in_memory():
                ask()
    with pytest.raises(RuntimeError, match="another"), _entry._room_in_memory():
        raise RuntimeError("another")
