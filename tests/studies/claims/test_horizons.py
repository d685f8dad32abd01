"""Claims of horizons and bounds: bounds against enumeration and Monte Carlo, exact outcomes, effects of synthetic rows."""

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from varlab import measure
from varlab.analysis.estimates import styles
from varlab.envs.finite import environment
from varlab.oracles import exact
from varlab.policies import SoftmaxTable
from varlab.studies.claims import bounds, horizons
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect, decide

TINY = Budget("smoke", 0.005)
BOUNDS = [c for c in CLAIMS.values() if c.study == "bounded_rewards"]


@cache
def bounded():
    return STUDIES["bounded_rewards"].run(TINY)


@pytest.mark.parametrize("claim", BOUNDS, ids=lambda c: c.id)
def test_exact_claims_of_bounds(claim):
    effect, control = claim.effect(bounded()), claim.control.effect(bounded())
    assert effect.is_exact and control.is_exact
    assert decide(claim.id, effect, *claim.question).outcome == ("violated" if claim.id == "PB-1g" else "holds")
    assert decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_bounds_are_complete_and_drawn():
    assert {c.id for c in BOUNDS} == {f"PB-1{x}" for x in "abcdefg"}
    assert isinstance(STUDIES["bounded_rewards"].draw(bounded()), styles.Figure)


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_bounds_where_every_step_pays(gamma):
    """E‖z‖² = 1/2 and r = 1: (Σ γ^t)² H/2 for R, attained, and Σ_t (1/2) (γ^t Σ_{u<H−t} γ^u)² for the reward-to-go."""
    ((mdp, logits),) = bounds.bounded_worlds(0, 0)["always paid"]
    h = 12
    variance, norm, reward = bounds._moments(mdp, logits, h, gamma)
    assert (norm, reward) == (0.5, 1.0)
    togo = 0.5 * sum((gamma**t * sum(gamma**u for u in range(h - t))) ** 2 for t in range(h))
    np.testing.assert_allclose(variance, [bounds.reinforce_bound(0.5, 1.0, h, gamma), togo], rtol=1e-12)
    assert togo < bounds.reward_to_go_bound(0.5, 1.0, h, gamma) == pytest.approx(0.5 / (1 - gamma) ** 3)


def test_constants_of_random_worlds():
    (mdp, logits), *_ = bounds.bounded_worlds(4, 1)["random MDPs"]
    _, norm, reward = bounds._moments(mdp, logits, 3, 0.9)
    pi = logits.softmax(1).numpy()
    by_hand = max(sum(pi[s, a] * ((np.eye(3)[a] - pi[s]) ** 2).sum() for a in range(3)) for s in range(4))
    assert norm == pytest.approx(by_hand, rel=1e-12) and reward == float(mdp.reward.max()) <= 1.0
    env = environment(mdp, 3, "bounded")
    second = exact(env, SoftmaxTable(env, logits), ["total_return", "reward_to_go"], gamma=0.9)
    for (name, bound), v, m in zip(bounds.BOUNDS.items(), second.variance, second.mean, strict=True):
        assert v + (m**2).sum() <= bound(norm, reward, 3, 0.9), name


def test_states_of_the_drifting_point_have_their_second_moment():
    """REINFORCE's bound holds Σ_t E s_t²; the mean square of its score by sampling, with reward 1 in the place of all."""
    env, policy = horizons.drifting("REINFORCE", 6)
    found = measure(env, policy, "total_return", n=20_000, gamma=0.9, seed=1, n_reference=500, dtype="float64")
    row = found.summary.iloc[0]
    assert row["variance"] < horizons.drift_bound("REINFORCE", 6)
    square, total = 1.0, 0.0
    for _ in range(6):
        total, square = total + square, square / 4 + 1.25
    most = (2 * sum(0.9**t for t in range(6))) ** 2
    assert horizons.drift_bound("REINFORCE", 6) == pytest.approx(most * total, rel=1e-12)
    assert horizons.drift_bound("PGPE", 6) == pytest.approx(most, rel=1e-12)
    # rewards lie in (1, 2], so that E S² ≤ E g²/(Σ γ^t)² ≤ 4 E S²
    assert row["variance"] + row["grad_norm"] ** 2 > 0.9 * total * most / 4


@pytest.mark.parametrize("kind", horizons.KINDS)
def test_the_mean_parameter_alone_is_theta(kind):
    _, policy = horizons.drifting(kind, 3)
    (theta,) = [p for p in policy.parameters() if p.requires_grad]
    assert theta.numel() == 1 and theta.item() == horizons.GAIN


def test_the_study_has_what_claims_read(monkeypatch):
    monkeypatch.setattr(horizons, "DRIFT", (2, 3, 4, 5))
    table = STUDIES["drifting_horizons"].run(TINY)
    assert isinstance(STUDIES["drifting_horizons"].draw(table), styles.Figure)
    for what in ("over bound", "gain", "slope", "slope of bound", "PGPE over REINFORCE", "growth"):
        assert (table["what"] == what).sum() >= 2
    for kind in horizons.KINDS:
        assert cell(table, what="over bound", label=kind, x=5).value < 1
        exact_one = table[(table["panel"] == "tr Cov") & (table["label"] == kind) & (table["x"] == 4)]["exact"].item()
        assert exact_one == horizons.drift_bound(kind, 4)


def test_exact_bounds_of_horizons():
    rows = []
    for kind in horizons.KINDS:
        over = [Effect.exact(horizons.drift_bound(kind, t) / horizons.discounted(t, 0.9) ** 2) for t in horizons.DRIFT]
        rows.append(row(kind, horizons.log_slope(horizons.DRIFT, over), what="slope of bound"))
    for name in ("ZH-1a", "ZH-1b"):
        claim, made = CLAIMS[name], pd.DataFrame(rows)
        assert decide(name, claim.effect(made), *claim.question).outcome == "holds"
        assert decide(name, claim.control.effect(made), *claim.control_question).outcome == "violated"


def test_ratios_of_independent_estimates():
    one, other = Effect(4.0, 3.0, 6.0, 50, True), Effect(2.0, 1.0, 3.0, 70, True)
    found = horizons.quotient(one, other)
    assert (found.value, found.n, found.log) == (2.0, 50, True)
    assert math.log(found.value / found.low) == pytest.approx(math.hypot(math.log(4 / 3), math.log(1.5)))
    assert math.log(found.high / found.value) == pytest.approx(math.hypot(math.log(1.5), math.log(2.0)))
    ratio = pd.Series({"variance_ratio": 0.1, "variance_ratio_low": 0.08, "variance_ratio_high": 0.2})
    gain = horizons.inverse(ratio, 50)
    assert (gain.value, gain.low, gain.high) == pytest.approx((10.0, 5.0, 12.5))
    assert horizons.times(one, 0.5) == Effect(2.0, 1.5, 3.0, 50, True)


@pytest.mark.parametrize(
    ("name", "where", "value", "outcome"),
    [
        ("ZH-1e", {"what": "slope", "label": "REINFORCE"}, 1.0, "holds"),
        ("ZH-1e", {"what": "slope", "label": "REINFORCE"}, 0.3, "violated"),
        ("ZH-1f", {"what": "slope", "label": "PGPE"}, 0.0, "holds"),
        ("ZH-1g", {"what": "growth", "label": "T = 10 to 100"}, 2.2, "violated"),
        ("ZH-1h", {"what": "growth", "label": "T = 50 to 100"}, 1.0, "holds"),
        ("ZH-2a", {"what": "gain", "label": "REINFORCE", "x": 50}, 180.0, "holds"),
        ("ZH-2b", {"what": "gain", "label": "REINFORCE", "x": 10}, 60.0, "violated"),
        ("ZH-2c", {"what": "gain", "label": "PGPE", "x": 50}, 25.0, "holds"),
        ("ZH-3a", {"what": "PGPE over REINFORCE", "label": "b* in both", "x": 10}, 0.2, "holds"),
        ("ZH-3b", {"what": "PGPE over REINFORCE", "label": "b* in both", "x": 20}, 1.4, "violated"),
    ],
)
def test_measured_effects_are_judged(name, where, value, outcome):
    wide = 0.02 if where["what"] == "slope" else 0.05 * value
    label, rest = where["label"], {k: v for k, v in where.items() if k != "label"}
    effect = Effect(value, value - wide, value + wide, 20_000, where["what"] != "slope")
    made = pd.DataFrame([row(label, effect, **rest)])
    assert decide(name, CLAIMS[name].effect(made), *CLAIMS[name].question).outcome == outcome


def test_paid_worlds_have_uniform_policies():
    ((mdp, logits),) = bounds.bounded_worlds(0, 0)["always paid"]
    assert torch.equal(logits.softmax(1), torch.full((1, 2), 0.5, dtype=torch.float64)) and bool((mdp.reward == 1).all())
