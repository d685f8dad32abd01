"""Claims of groups and of standardised advantages: exact outcomes, controls, and effects of synthetic rows."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from varlab.analysis.estimates import styles
from varlab.envs.prompts import group_advantage_variance
from varlab.studies.claims import groups, normalisation
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import row
from varlab.studies.claims.verdicts import Effect, decide

NAMES = ("group_baselines", "group_normalised", "group_budget", "group_shrinkage", "normalised_advantages")
VIOLATED = {"RL-3c", "RL-4c", "RL-5c", "RL-5d"}
SAMPLED = {"RL-4d", "RL-5a"}
MINE = [c for c in CLAIMS.values() if c.study in NAMES]


@cache
def rows(name):
    return STUDIES[name].run(Budget("smoke", 0.01))


@pytest.mark.parametrize("claim", [c for c in MINE if c.id not in SAMPLED], ids=lambda c: c.id)
def test_exact_claims_and_controls(claim):
    effect = claim.effect(rows(claim.study))
    assert effect.is_exact
    assert decide(claim.id, effect, *claim.question).outcome == ("violated" if claim.id in VIOLATED else "holds")
    control = claim.control.effect(rows(claim.study))
    assert control.is_exact and decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_every_study_draws_and_is_complete():
    assert {c.id for c in MINE} == {
        "RL-1a", "RL-1b", "RL-2a", "RL-2b", "RL-2c", "RL-3a", "RL-3b", "RL-3c", "RL-3d", "RL-4a", "RL-4b", "RL-4c", "RL-4d",
        "RL-5a", "RL-5b", "RL-5c", "RL-5d", "AN-1a", "AN-1b", "AN-1c",
    }  # fmt: skip
    for name in NAMES:
        assert isinstance(STUDIES[name].draw(rows(name)), styles.Figure)


def test_advantage_variances_are_the_closed_form():
    table = rows("group_baselines")
    for label, alone in (("group_mean", False), ("leave_one_out", True)):
        here = table[(table["panel"] == "variance of the advantage") & (table["label"] == label)]
        expected = [group_advantage_variance(0.25, int(g), alone) for g in here["x"]]
        np.testing.assert_allclose(here["value"], expected, rtol=1e-11)


def test_angles_are_the_closed_form_and_tend_to_the_limit():
    table = rows("group_normalised")
    here = table[(table["panel"] != "") & (table["label"] == "group_normalised")]
    np.testing.assert_allclose(here["value"], here["closed"], atol=1e-7)
    last = here[here["x"] == 128]
    np.testing.assert_allclose(last["value"], last["exact"], rtol=0.03)


def test_measurements_agree_with_closed_forms():
    table = rows("group_budget")
    here = table[table["panel"] == "n · tr Cov"]
    wide = np.log(here["value_high"] / here["value_low"]) / 2
    assert (np.abs(np.log(here["value"] / here["exact"])) < 2.5 * wide).all()
    for claim_id in sorted(SAMPLED):
        claim = CLAIMS[claim_id]
        assert decide(claim.id, claim.effect(rows(claim.study)), *claim.question).outcome != "violated"
        assert decide(claim.id, claim.control.effect(rows(claim.study)), *claim.control_question).outcome == "violated"


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, "holds"), (1.3, "violated"), (1.1, "undecided")])
def test_a_measured_variance_is_judged_by_its_closed_form(factor, outcome):
    made = pd.DataFrame([
        row("leave_one_out", Effect(0.4 * factor, 0.39 * factor, 0.41 * factor, 50, True), panel="n · tr Cov", x=2, exact=0.4),
        row("value_baseline", Effect(0.2, 0.19, 0.21, 50, True), panel="n · tr Cov", x=2, exact=0.2),
    ])  # fmt: skip
    claim = CLAIMS["RL-4d"]
    assert decide("c", claim.effect(made), *claim.question).outcome == outcome
    assert claim.control.effect(made).value == pytest.approx(2 * factor)


@pytest.mark.parametrize(("value", "outcome"), [(0.5, "holds"), (1.2, "violated")])
def test_a_measured_ratio_is_judged(value, outcome):
    effect = Effect(value, value * 0.95, value * 1.05, 500, True)
    made = pd.DataFrame([row("p = 0.3 … 0.6", effect, panel="sixteen groups", x=2)])
    assert decide("c", CLAIMS["RL-5a"].effect(made), *CLAIMS["RL-5a"].question).outcome == outcome


def test_worlds_are_solved_as_often_as_they_say():
    env, policy = groups.solved((0.2, 0.7), 4)
    pi = policy.logits.weight.detach().softmax(1)
    assert pi[:, 0].tolist() == pytest.approx([0.2, 0.7]) and pi[0, 1:].tolist() == pytest.approx([0.8 / 3] * 3)
    assert env.finite.reward[:, 0].tolist() == [[1.0], [1.0]] and normalisation.title((0.3, 0.9)) == "p = 0.3, 0.9"
