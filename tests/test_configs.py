"""Every configuration composes, is explained, and builds; bad ones are one sentence."""

import copy
import functools
import inspect
import logging
import re
from dataclasses import MISSING, fields
from pathlib import Path

import gymnasium
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from varlab import complaints, configure, envs, estimators, policies, storage
from varlab.checks import InputError
from varlab.plans import plan
from varlab.values import CriticSettings

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
CHOICES = [(path.parent.name, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
PRIMARY = sorted(path.stem for path in CONF.glob("*.yaml"))


@functools.cache
def from_command_line(*words, config_name="measure"):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(config_name, list(words))


def composed(*words):
    """Compose as the command line does, but each choice of groups only once: composing takes 0.2 s."""
    groups = [word for word in words if word.split("=")[0] in GROUPS]
    cfg = copy.deepcopy(from_command_line(*groups))
    for word in words:
        if word not in groups:
            key, _, value = word.partition("=")
            OmegaConf.update(cfg, key.lstrip("+"), yaml.safe_load(value), force_add=key[0] == "+")
    return cfg


def arguments(*words):
    return configure.arguments(composed(*words))


# ---- the files


@pytest.mark.parametrize("name", PRIMARY)
def test_every_primary_configuration_composes(name):
    assert from_command_line(config_name=name)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes(group, choice):
    cfg = composed(f"{group}={choice}")
    assert set(cfg) == set(composed())
    named = (("theta", "file"), ("theta", "checkpoint"), ("theta", "sb3"), ("policy", "user"))
    if (group, choice) not in named:  # they name a file, or what one registers
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONF)))
def test_every_setting_has_a_comment(path):
    """A comment on the line, or (as the style files have it) one at the top that explains all of them."""
    text = path.read_text(encoding="utf-8")
    head = text.startswith("# ") and not text.startswith("# @package")
    ours = text.split("\nhydra:")[0]  # Hydra explains its own node
    settings = [line for line in ours.splitlines() if re.match(r" *[a-z_]+:( |$)", line) and line.strip() != "defaults:"]
    bare = [line for line in settings if "  # " not in line]
    assert not bare or (head and path.parent.name in ("style", "job_logging")), bare


def test_the_whole_configuration_builds_a_plan_at_its_defaults():
    made = plan(**arguments())
    assert made.env.name == "CartPole-v1" and tuple(e.label for e in made.phi) == estimators.SOURCE_TEXT


def test_defaults_of_configuration_and_python_are_the_same():
    ours = arguments("n=100")
    python = {k: p.default for k, p in inspect.signature(plan).parameters.items() if p.default is not inspect.Parameter.empty}
    labels = {"phi", "critic", "theta", "env_label", "policy_label"}
    assert set(ours) | {"n"} == set(inspect.signature(plan).parameters)
    assert {k: ours[k] for k in python.keys() - labels} == {k: python[k] for k in python.keys() - labels}
    assert (ours["theta"], ours["env_label"], ours["policy_label"]) == ("seed=0", "CartPole-v1", "mlp")
    critic = {f.name: f.default for f in fields(CriticSettings) if f.default is not MISSING}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in vars(ours["critic"]).items()} == critic


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "policy" and c != "user"])
def test_policy_settings_are_those_of_the_registry_at_its_defaults(choice):
    known = {k: p.default for k, p in inspect.signature(policies.make).parameters.items()}
    given = OmegaConf.to_container(composed(f"policy={choice}").policy)
    assert given.pop("kind") == choice
    for key, value in given.items():
        assert (tuple(value) if isinstance(value, list) else value) == known[key], key


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "env"])
def test_every_environment_is_made(choice):
    cfg = composed(f"env={choice}", *(["env.horizon=50"] if choice == "cliffwalking" else []))
    env = envs.make(cfg.env.id, cfg.env.horizon, **OmegaConf.to_container(cfg.env.kwargs))
    assert env.horizon == (cfg.env.horizon or gymnasium.spec(cfg.env.id).max_episode_steps) and env.name == cfg.env.id


def test_every_registered_estimator_has_a_file():
    needs_code = {"baseline"}  # a user's b(s) is a Python function
    assert set(estimators.REGISTRY) - needs_code <= {c for g, c in CHOICES if g == "phi"}


def test_budgets_grow():
    assert [composed(f"budget={b}").n for b in ("smoke", "default", "paper")] == [1000, 20_000, 200_000]


def test_a_word_on_the_command_line_wins_over_budget_and_recipe():
    cfg = from_command_line("experiment=reproduce_cliffwalking", "budget=smoke", "n=123", "env.horizon=40")
    assert (cfg.n, cfg.env.id, cfg.env.horizon, cfg.policy.kind) == (123, "CliffWalking-v1", 40, "softmax_table")


@pytest.mark.parametrize("name", [c for g, c in CHOICES if g == "experiment"])
def test_a_recipe_names_its_own_command(name):
    assert f"# python scripts/measure.py experiment={name}\n" in (CONF / "experiment" / f"{name}.yaml").read_text()
    assert configure.arguments(composed(f"experiment={name}"))["n"] == 20_000


# ---- Φ


def labels(*words):
    return [e.label for e in configure.choices(OmegaConf.to_container(composed(*words).phi, resolve=True))]


def test_several_phi_are_chosen_in_their_order():
    assert labels("phi=[reward_to_go,total_return,gae]") == ["reward_to_go", "total_return", "gae(lam=0.95)"]
    assert labels("phi=n_step", "phi.n_step.k=7") == ["n_step(k=7)"]


def test_a_list_stands_for_one_phi_per_value():
    made = labels("phi=[total_return,gae,n_step]", "phi.gae.lam=[0,0.5,1]", "phi.n_step.k=[1,3]")
    assert made == ["total_return", *(estimators.make("gae", lam=x).label for x in (0, 0.5, 1)), "n_step(k=1)", "n_step(k=3)"]


@pytest.mark.parametrize(
    ("phi", "sentence"),
    [
        ({"gea": {}}, "No Φ is called 'gea'; the nearest names are gae"),
        ({"gae": {"lamda": 0.5}}, "lamda=0.5 was given"),
        ({"gae": 0.5}, "Arguments in braces were expected for phi.gae, but it is 0.5"),
    ],
)
def test_a_wrong_phi_is_one_sentence(phi, sentence):
    with pytest.raises(InputError, match=sentence):
        configure.choices(phi)


# ---- arguments


def test_settings_reach_the_plan_and_its_digest():
    base = ("env=frozenlake", "policy=softmax_table", "n=100")
    words = (
        "gamma=0.9", "discount_weighting=false", "seed=3", "theta.seed=4", "env.horizon=30", "env.kwargs.is_slippery=false",
        "n=200", "policy.scale=2", "critic.lr=0.1", "reference.seed=5", "dtype=float64", "phi=gae", "cut=7", "at_cut=terminal",
        "batch_size=9", "pilot=50", "draws=2999", "values=critic", "values=cloning",
        "values.error=0.5", "critic.steps=3", "reference=sampled", "reference.n=777",
    )  # fmt: skip
    digests = [plan(**arguments(*base, *([word] if word else []))).digest for word in ("", *words)]
    assert len(set(digests)) == len(digests)


def test_a_dial_counts_where_it_is_used():
    base = ("env=frozenlake", "policy=softmax_table", "n=100")

    def digest(*words):
        return plan(**arguments(*base, *words)).digest

    assert digest("values=cloning", "values.m=3") != digest("values=cloning") and digest("values.m=3") == digest()
    assert digest("values.error=0.5", "values.error_seed=1") != digest("values.error=0.5")
    assert digest("values.error_seed=1") == digest() and digest("critic.steps=0") != digest("critic.steps=1")


@pytest.mark.parametrize(
    "word", ["threads=1", "chunk=8", "study=other", "figures=false", "style=talk", "cache=elsewhere", "out=there"]
)
def test_what_moves_no_number_is_not_in_the_digest(word):
    base = ("env=frozenlake", "policy=softmax_table", "n=100")
    assert plan(**arguments(*base, word)).digest == plan(**arguments(*base)).digest


def test_whole_and_decimal_gamma_are_one_setting():
    assert plan(**arguments("gamma=1")).digest == plan(**arguments("gamma=1.0")).digest


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["n=abc"], "n must be a whole number of at least 1, but it is 'abc'"),
        (["n=20"], "At least 50 trajectories were expected.*n=20"),
        (["gamma=1.5"], r"gamma must lie in \[0, 1\], but it is 1.5"),
        (["seed=-1"], "seed must be a whole number of at least 0"),
        (["discount_weighting=3"], "discount_weighting must be true or false, but it is 3"),
        (["theta=file"], "A value was expected for theta.file, but none came"),
        (["theta=file", "theta.file=nowhere.npz"], "file of parameters was expected at nowhere.npz"),
        (["env=cliffwalking", "policy=softmax_table"], "horizon was expected for CliffWalking-v1.*env.horizon=50"),
        (["env.id=CartPol-v1"], "No environment is called 'CartPol-v1'; the nearest ids are .*CartPole-v1"),
        (["+env.kwargs.colour=red"], "CartPole-v1 could not be made with"),
        (["policy.kind=mpl"], "No policy is called 'mpl'; the nearest names are mlp"),
        (["at_cut=bootstrp"], "'bootstrp'; the nearest names are bootstrap"),
        (["values.source=exct"], "'exct'; the nearest names are exact"),
        (["reference.kind=exct"], "'exct'; the nearest names are exact"),
        (["reference=exact"], "finite MDP, or a linear system .* was expected for reference=exact, but CartPole-v1"),
        (["critic.lr=-1"], "positive critic.lr"),
        (["critic.steps=-1"], "critic.steps must be a whole number of at least 0"),
        (["values.m=0"], "values.m must be a whole number of at least 1"),
        (["values.error=-0.5"], r"values.error must lie in \[0"),
        (["values.error_seed=x"], "values.error_seed must be a whole number of at least 0"),
        (["dtype=float31"], "float31"),
        (["device=abacus"], "abacus"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence(words, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        plan(**arguments(*words))
    assert "\n" not in str(caught.value)


def test_theta_comes_from_a_file(tmp_path):
    base = ["env=frozenlake", "policy=softmax_table", "n=100"]
    other = arguments(*base, "theta.seed=7")["policy"]
    content = storage.save_theta(tmp_path / "theta.npz", other)
    given = arguments(*base, "theta=file", f"theta.file={tmp_path / 'theta.npz'}")
    assert given["theta"] == f"file:{content[:8]}"
    for a, b in zip(given["policy"].parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plan(**given).digest == plan(**arguments(*base, "theta.seed=7")).digest  # θ counts by content


def test_a_critic_starts_from_a_file(tmp_path):
    torch.save({"v": torch.ones(2)}, tmp_path / "critic.pt")
    assert torch.equal(arguments(f"critic.init={tmp_path / 'critic.pt'}")["critic"].init["v"], torch.ones(2))


def test_seeds_of_every_stream_are_told():
    assert configure.seeds(composed("seed=3", "theta.seed=4", "reference.seed=5")) == {
        "rollout": 3, "theta": 4, "critic": 3, "reference": 5,
    }  # fmt: skip


# ---- the command line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["env=cartpol"], "No choice of env is called 'cartpol'; the nearest names are cartpole."),
        (["phi=gea"], "No choice of phi is called 'gea'; the nearest names are gae."),
        (["phi=[total_return,gea]"], "No choice of phi is called 'gea'; the nearest names are gae."),
        (["gama=0.9"], "No setting is called 'gama'; the nearest names are gamma (--help lists all"),
        (["horizon=50"], "No setting is called 'horizon'; the nearest names are env.horizon (--help lists all"),
        (["phi=[gae]", "phi.gae.lamm=1"], "No setting is called 'phi.gae.lamm'; the nearest names are phi.gae.lam (--help"),
        (["phi=total_return", "phi.gae.lam=1"], "No setting is called 'phi.gae.lam'; the nearest names are phi.total_return ("),
        (["env.kwargs={a: 1}"], "Only entries that 'env.kwargs' has already can be changed this way; add a new one as +env"),
        (["nonsense"], "A setting written as key=value was expected, but 'nonsense' came"),
        (["+n=5"], "The configuration could not be composed: Could not append to config."),
    ],
)
def test_a_mistyped_command_line_is_one_sentence(words, sentence):
    with pytest.raises(HydraException) as caught:
        from_command_line(*words)
    said = complaints.explain(caught.value, words, CONF, "measure")
    assert said.startswith(sentence) and "\n" not in said and len(said) < 300


@pytest.mark.parametrize(
    "words", [["-m", "out=x"], ["out=x", "--multirun"], ["hydra.mode=MULTIRUN", "++out=x"], ["--multi", "+out=x"]]
)
def test_out_is_refused_in_a_multirun(words):
    with pytest.raises(InputError, match="No out= was expected in a multirun"):
        configure.refuse_out_in_multirun(words)


@pytest.mark.parametrize("words", [["out=x"], ["-m"], ["-m", "out=null"], ["-m", "outer=x"], ["--cfg", "job", "out=x"]])
def test_out_is_fine_elsewhere(words):
    configure.refuse_out_in_multirun(words)


def failed(error, mode=RunMode.MULTIRUN):
    config = OmegaConf.create({"hydra": {"job": {"num": 3}, "mode": mode}})
    return config, JobReturn(overrides=["n=10"], status=JobStatus.FAILED, _return_value=error)


def test_a_failed_job_is_told_on_the_spot(caplog):
    configure.JobLog().on_job_end(*failed(InputError("Too few.")))
    assert caplog.messages == ["Job 3 (n=10): Too few."] and caplog.records[0].exc_info is None
    configure.JobLog().on_job_end(*failed(ZeroDivisionError("oh")))
    assert caplog.messages[1:] == ["Job 3 (n=10) failed."] and caplog.records[1].exc_info
    assert {r.levelno for r in caplog.records} == {logging.ERROR}


def test_a_good_job_and_a_single_run_log_nothing(caplog):
    configure.JobLog().on_job_end(failed(None)[0], JobReturn(status=JobStatus.COMPLETED, _return_value=None))
    configure.JobLog().on_job_end(*failed(InputError("Too few."), RunMode.RUN))
    assert caplog.messages == []


def test_configurations_are_plain_yaml():
    for path in CONF.rglob("*.yaml"):
        assert "_target_" not in path.read_text() or path.name == "measure.yaml" or path.parent == CONF
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)

