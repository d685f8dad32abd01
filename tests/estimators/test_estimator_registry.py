"""Names, arguments and what every registered Φ must say about itself."""

import dataclasses
import re

import pytest

from varlab import estimators
from varlab.checks import InputError
from varlab.estimators import REGISTRY, SOURCE_TEXT, Baseline, make, parse, resolve
from varlab.estimators.base import CLAIMS


@pytest.mark.parametrize("name", REGISTRY)
def test_every_member_says_what_it_is(name):
    cls = REGISTRY[name]
    member = make(name)
    assert cls.name == name and re.fullmatch(r"[a-z_]+", name)
    assert member.unbiased in CLAIMS
    assert isinstance(cls.formula, str) and cls.formula
    assert re.search(r"\(.+, \d{4}\)$", cls.source), "source: title (authors, year)"
    assert member.needs <= {"v", "q"} and member.asks <= {"v", "q", "q_nodes", "q_slope"}
    assert {x.partition("_")[0] for x in member.asks} == member.needs
    assert "Φ_t" in cls.__doc__ and "Source:" in cls.__doc__
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    assert member == make(name)
    assert parse(member.label) == member, "its label reads back as itself"


def test_every_phi_of_the_source_text_is_there():
    assert [e.name for e in resolve(SOURCE_TEXT)] == [
        "total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "q_value", "advantage",
        "td_residual", "n_step", "gae",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("total_return", "always"), ("reward_to_go", "always"), ("constant_baseline", "always"), ("time_baseline", "always"),
        ("value_baseline", "always"), ("gae(lam=1)", "always"), ("gae(lam=0.95)", "given exact values"),
        ("td_residual", "given exact values"), ("n_step", "given exact values"), ("q_value", "given exact values"),
        ("advantage", "given exact values"), ("all_action", "given exact values"), ("leave_one_out", "always"),
        ("james_stein", "always"), ("group_mean", "biased"), ("group_normalised", "biased"), ("normalised_advantage", "biased"),
        ("step_mean", "biased"),
        ("state_action_control_variate", "always"), ("trajectory_control_variate", "always"), ("doubly_robust", "always"),
        ("factorised_baseline", "always"), ("q_prop", "always"), ("q_prop(lam=0.9)", "given exact values"),
    ],
)  # fmt: skip
def test_claims(name, claim):
    assert parse(name).unbiased == claim


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("reward_to_go", "reward_to_go"),
        ("  reward_to_go ", "reward_to_go"),
        ("reward_to_go()", "reward_to_go"),
        ("gae", "gae(lam=0.95)"),
        ("gae(lam=0.5)", "gae(lam=0.5)"),
        ("gae(0.5)", "gae(lam=0.5)"),
        ("gae( lam = 1 )", "gae(lam=1.0)"),
        ("gae(lam=0)", "gae(lam=0.0)"),
        ("n_step(3)", "n_step(k=3)"),
        ("n_step(k=3.0)", "n_step(k=3)"),
        ("n_step", "n_step(k=5)"),
        ("all_action", "all_action"),
        ("all_action(nodes=5)", "all_action"),
        ("all_action(7)", "all_action(nodes=7)"),
        ("trajectory_control_variate(5)", "trajectory_control_variate"),
        ("factorised_baseline", "factorised_baseline(of='mean')"),
        ("factorised_baseline(nodes=7)", "factorised_baseline(nodes=7, of='mean')"),
        ("factorised_baseline(of='optimal')", "factorised_baseline(of='optimal')"),
        ("q_prop(1)", "q_prop(lam=1.0)"),
        ("doubly_robust(0.5)", "doubly_robust(error=0.5)"),
    ],
)
def test_text_to_label(text, label):
    assert parse(text).label == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward_togo", r"No Φ is called 'reward_togo'; the nearest names are reward_to_go"),
        ("gea", r"No Φ is called 'gea'; the nearest names are .*gae"),
        ("valuebaseline(3)", r"No Φ is called 'valuebaseline'.*value_baseline"),
        ("", r"No Φ is called ''"),
        ("gae(lambda=0.9)", r"written like gae\(lam=0.95\)"),
        ("gae(gamma=0.9)", r"gae takes the arguments lam, but gamma=0.9"),
        ("reward_to_go(k=1)", r"reward_to_go takes no arguments, but k=1"),
        ("constant_baseline(fitted=1.0)", r"constant_baseline takes no arguments, but fitted=1.0"),
        ("gae(0.9, 0.8)", r"takes 1 arguments, but 'gae\(0.9, 0.8\)' gives 2"),
        ("gae(0.9, lam=0.8)", r"'gae\(0.9, lam=0.8\)' gives lam twice"),
        ("gae(**{'lam': 0.8})", r"gae takes the arguments lam"),
        ("gae(name=3)", r"gae takes the arguments lam, but name=3"),
        ("gae(lam=0.9", r"written like gae"),
        ("gae(lam=__import__('os'))", r"written like gae"),
        ("gae(lam=x)", r"written like gae"),
        ("optimal_baseline(of=tme)", r"class of optimal_baseline is called 'tme'; the nearest names are time"),
        ("optimal_baseline(base=reward)", r"base of optimal_baseline"),
        ("score_weighted_baseline(of=features)", r"class of score_weighted_baseline"),
        ("in_sample_baseline(of=parameter)", r"class of in_sample_baseline"),
        ("gae(0.5) + 1", r"written like gae"),
        ("gae(lam=1.5)", r"lam of gae must lie in \[0, 1\], but it is 1.5"),
        ("gae(lam=-0.1)", r"lam of gae"),
        ("gae(lam='high')", r"lam of gae.*'high'"),
        ("gae(lam=None)", r"lam of gae"),
        ("n_step(k=0)", r"k of n_step must be a whole number of at least 1, but it is 0"),
        ("n_step(k=-3)", r"k of n_step"),
        ("n_step(k=2.5)", r"k of n_step"),
        ("n_step(k=True)", r"k of n_step"),
        ("n_step(k=1e400)", r"k of n_step"),
        ("n_step(k='3')", r"k of n_step"),
        ("all_action(nodes=2)", r"nodes of all_action must be a whole number of at least 3, but it is 2"),
        ("all_action(m=3)", r"all_action takes the arguments nodes, but m=3"),
        ("factorised_baseline(of='best')", r"No form of factorised_baseline is called 'best'; .*mean"),
        ("q_prop(lam=2)", r"lam of q_prop must lie in \[0, 1\], but it is 2"),
        ("q_prop(nodes=5)", r"q_prop takes the arguments lam, but nodes=5"),
        ("doubly_robust(error=-1)", r"error of doubly_robust must lie in \[0, 1e\+06\], but it is -1"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize("lam", (float("nan"), "x", None, 2))
def test_wrong_lam_given_as_an_object(lam):
    with pytest.raises(InputError, match="lam of gae"):
        make("gae", lam=lam)


@pytest.mark.parametrize("k", (float("nan"), float("inf"), "x", None, 0))
def test_wrong_k_given_as_an_object(k):
    with pytest.raises(InputError, match="k of n_step"):
        make("n_step", k=k)


def test_one_choice_needs_no_list():
    assert [e.label for e in resolve("gae(0.9)")] == ["gae(lam=0.9)"]
    assert [e.label for e in resolve(make("gae"))] == ["gae(lam=0.95)"]
    assert [e.label for e in resolve(("gae", make("gae", lam=0.5), "q_value"))] == ["gae(lam=0.95)", "gae(lam=0.5)", "q_value"]


@pytest.mark.parametrize("double", (["gae", "gae(0.95)"], ["n_step(5)", make("n_step", k=5)], ["q_value", "q_value()"]))
def test_a_label_that_occurs_twice_is_named(double):
    with pytest.raises(InputError, match=rf"{re.escape(estimators.resolve(double[:1])[0].label)} occurs more than once"):
        resolve(["total_return", *double])


def test_two_user_baselines_need_two_names():
    with pytest.raises(InputError, match="baseline occurs more than once"):
        resolve([Baseline(lambda obs, t: 0.0), Baseline(lambda obs, t: 1.0)])
    assert len(resolve([Baseline(lambda obs, t: 0.0, called="a"), Baseline(lambda obs, t: 1.0, called="b")])) == 2


def test_an_empty_list_and_strangers_are_refused():
    with pytest.raises(InputError, match="At least one Φ was expected"):
        resolve([])
    with pytest.raises(InputError, match=r"Estimator objects were expected, but came 3"):
        resolve(["gae", 3])
