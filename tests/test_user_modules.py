"""A file of the user's own: run where it is named, part of the digest, and unable to replace what is varlab's."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pandas as pd
import pytest

from varlab import envs, estimators, policies, repetition, storage, user_modules
from varlab.checks import InputError
from varlab.plans import plan
from varlab.training import plan as plan_training

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
OWN = """
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from varlab import estimators, policies


@estimators.register
@dataclass(frozen=True)
class Halved(estimators.make("total_return").__class__):
    \"\"\"Half the return.\"\"\"

    name = "halved"

    def phi(self, batch):
        return super().phi(batch) / 2


class Coin(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), float(action), False, False, {}


gymnasium.register("mine/Coin-v0", Coin, max_episode_steps=3)


class Flat(torch.nn.Module):
    def __init__(self, env, bias):
        super().__init__()
        self.net = torch.nn.Linear(1, env.action_space.n)
        with torch.no_grad():
            self.net.weight.fill_(bias)
            self.net.bias.zero_()

    def forward(self, obs):
        return torch.distributions.Categorical(logits=self.net(obs))


policies.register("flat", lambda env, theta_seed, bias=0.0: Flat(env, bias))
"""
WORDS = ("env=cartpole", "env.id=mine/Coin-v0", "policy=user", "policy.kind=flat", "n=60", "phi=[total_return]", "+phi.halved={}",
         "pilot=50", "reference=sampled", "reference.n=60", "critic.n=20", "critic.epochs=1", "critic.hidden=[4]",
         "figures=false")  # fmt: skip


@pytest.fixture(autouse=True)
def registries():
    """What a test registers is gone after it."""
    held = (estimators.REGISTRY, policies.USER, gymnasium.registry, user_modules._LOADED)
    before = [dict(h) for h in held]
    yield
    for registry, was in zip(held, before, strict=True):
        registry.clear()
        registry.update(was)


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path




def test_a_run_with_an_environment_a_policy_and_a_phi_of_ones_own(script, own, tmp_path):
    done = script("measure", *WORDS, "user_module=own.py", "out=run")
    assert done.code == 0, done.err
    rows = pd.read_csv(tmp_path / "run" / "summary.csv").set_index("phi")
    assert set(rows["env"]) == {"mine/Coin-v0"} and set(rows["policy"]) == {"flat"}
    assert rows.loc["halved", "variance"] == pytest.approx(rows.loc["total_return", "variance"] / 4, rel=1e-5)
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert record["settings"]["user_module"] == user_modules.load(own) and "user_module: own.py" in (
        tmp_path / "run" / "config.yaml"
    ).read_text()
    # A multirun, whose jobs share one process, runs the file once and finds everything in every job.
    again = script("measure", "-m", *WORDS, "user_module=own.py", "seed=0,1", "+policy.settings.bias=0.5")
    assert again.code == 0, again.err
    assert len(storage.find_runs(tmp_path / "results" / "runs")) == 2


def test_a_run_is_repeated_with_its_file_only_where_the_command_names_it(script, own, tmp_path):
    mark = tmp_path / "ran"
    assert script("measure", *WORDS, "user_module=own.py", "out=run").code == 0
    closed = script("measure", "repeat=run", "out=again")
    assert closed.code == 2 and closed.err.startswith("The word user_module= was expected beside repeat=")
    assert "own.py" in closed.err
    own.write_text(own.read_text() + f"\nopen({str(mark)!r}, 'w').close()\n")
    for words in (("user_module=own.py",), ("user_module=absent.py",)):  # another file, or none: refused before anything runs
        changed = script("measure", "repeat=run", *words, "out=again")
        assert changed.code == 2 and changed.err.count("\n") == 1 and not mark.exists() and not (tmp_path / "again").exists()
    user_modules._LOADED.clear()
    assert "it was not run" in script("measure", "repeat=run", "user_module=own.py", "out=again").err


def test_a_run_that_unpickled_an_agent_is_repeated_only_with_the_word(tmp_path):
    (tmp_path / "config.yaml").write_text("# digest: 0123456789abcdef\ntheta: {path: agent.zip, trust: true}\n")
    ours = {"repeat": str(tmp_path), "theta": {"seed": 0, "file": None}, "user_module": None, "out": None}
    with pytest.raises(InputError, match=r"The word \+theta.trust=true was expected beside repeat=.*unpickled agent.zip"):
        repetition.settings(ours, [])
    ours["theta"] = {**ours["theta"], "trust": True}
    assert repetition.settings(ours, ["+theta.trust=true"])["theta"] == {"path": "agent.zip", "trust": True}


def test_without_the_word_there_is_one_sentence(script, own):
    for words, sentence in (
        (WORDS, "No environment is called 'mine/Coin-v0'"),
        (("policy=user", "policy.kind=flat"), "No policy is called 'flat'"),
        (("+phi.halved={}",), "No Φ is called 'halved'"),
        (("env.id=own:Coin-v0",), "No environment is called 'own:Coin-v0'"),  # Gymnasium alone would import a module here
        (("policy=user", "policy.kind=own.py:Flat"), "No policy is called 'own.py:Flat'"),
        (("policy=user",), "A value was expected for policy.kind"),
    ):
        done = script("measure", *words, "out=run")
        assert done.code == 2 and done.err.startswith(sentence) and done.err.count("\n") == 1, done.err
    assert "own" not in sys.modules


def test_the_content_counts_in_every_digest_and_its_absence_in_none(own, tmp_path):
    lake = envs.make("FrozenLake-v1", horizon=5)
    table = policies.make("softmax_table", lake)
    settings = {"n": 50, "reference": "sampled", "n_reference": 50}
    bare, one, other = (plan(lake, table, user_module=m, **settings) for m in (None, "a", "b"))
    assert len({bare.digest, one.digest, other.digest}) == 3 and "user_module" not in bare.settings
    from varlab.preparation import Preparation

    assert len({Preparation(p).references.digest("J_1", 50) for p in (bare, one, other)}) == 3
    assert len({plan_training(lake, table, "gae", user_module=m).digest for m in (None, "a", "b")}) == 3
    content = user_modules.load(own)
    copied = tmp_path / "elsewhere.py"
    copied.write_text("x = 1\n")
    assert user_modules.load(own) == content != user_modules.load(copied)


def test_a_file_is_run_once_and_may_not_change_while_it_is_used(tmp_path):
    path, log = tmp_path / "count.py", tmp_path / "log"
    path.write_text(f"open({str(log)!r}, 'a').write('x')\n")
    assert user_modules.load(path) == user_modules.load(str(path)) and log.read_text() == "x"
    path.write_text("y = 2\n")
    with pytest.raises(InputError, match="expected to stay what it was"):
        user_modules.load(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = (", "failed at line 1 [(]SyntaxError"),
        ("\n\n1 / 0", "failed at line 3 [(]ZeroDivisionError: division by zero"),
        ("import no_such_module_at_all", "failed at line 1 [(]ModuleNotFoundError"),
        ("raise SystemExit(0)", "failed at line 1 [(]SystemExit"),
        ("from varlab import policies\npolicies.register('mlp', None)", "'mlp' is varlab's own"),
        (
            "from varlab import estimators\nestimators.REGISTRY['gae'] = estimators.REGISTRY['advantage']",
            "New names alone were expected of .*, but it replaces or removes gae",
        ),
        ("import gymnasium\ngymnasium.register('CartPole-v1', object)", "replaces or removes CartPole-v1"),
        ("import gymnasium\ndel gymnasium.registry['CartPole-v1']", "replaces or removes CartPole-v1"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_a_file_that_fails_or_replaces_is_one_sentence_and_leaves_nothing(tmp_path, text, sentence):
    path = tmp_path / "own.py"
    path.write_text(text)
    before = (dict(estimators.REGISTRY), dict(policies.USER), dict(gymnasium.registry), set(sys.modules))
    with pytest.raises(InputError, match=sentence) as caught:
        user_modules.load(path)
    assert "\n" not in str(caught.value)
    after = (dict(estimators.REGISTRY), dict(policies.USER), dict(gymnasium.registry), set(sys.modules))
    assert before == after


@pytest.mark.parametrize("path", ("nowhere.py", ".", 7, "own.txt"))
def test_what_is_no_python_file_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("x = 1")
    with pytest.raises(InputError, match="A Python file was expected for user_module"):
        user_modules.load(path)


def test_settings_of_a_registered_policy(own):
    user_modules.load(own)
    coin = envs.make("mine/Coin-v0")
    made = policies.make("flat", coin, settings={"bias": 0.5})
    assert np.all(made.net.weight.detach().numpy() == 0.5)
    with pytest.raises(InputError, match="A factory .* was expected for the policy 'flat', but {'colour': 1} gave"):
        policies.make("flat", coin, settings={"colour": 1})
