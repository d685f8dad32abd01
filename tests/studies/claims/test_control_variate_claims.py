"""Claims of control variates, averages over actions and factorised baselines: outcomes, independent routes, synthetic rows."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

import varlab
from varlab.analysis.estimates import styles
from varlab.envs.closed_form import gaussian_bandit_variance
from varlab.estimators import make
from varlab.oracles.components import components
from varlab.oracles.quadrature import listed
from varlab.studies.claims import action_averages, control_variates, factorised, q_prop
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.random_worlds import drawn, share
from varlab.studies.claims.verdicts import Effect, decide
from varlab.values import CriticSettings
from varlab.values.linear_quadratic import QuadraticValues

#: Studies and claims of this family.
OUTCOMES = {
    "trajectory_control_variates": {"TC-1a": "holds", "TC-1b": "holds", "TC-1c": "holds"},
    "control_variate_order": {
        "TC-1d": "violated", "TC-1e": "", "DR-1a": "holds", "DR-1b": "violated", "DR-1c": "violated", "DR-1d": "violated",
        "DR-1e": "", "DR-1f": "holds", "AA-1c": "violated", "AA-1d": "",
    },
    "all_actions": {"AA-1a": "holds", "AA-1b": "holds", "AA-1e": "holds", "AA-1f": "holds", "AA-1g": ""},
    "biased_critic": {"AA-2a": "holds", "AA-2b": "holds", "AA-2c": "holds"},
    "factorised_bandit": {"WU-1a": "holds", "WU-1b": "holds", "WU-1c": "holds", "WU-1d": "violated"},
    "factorised_dimension": {"WU-2a": "holds", "WU-2b": "", "WU-2c": ""},
    "q_prop_linear": {"QP-1a": "holds", "QP-1b": "holds", "QP-1c": "violated"},
    "q_prop_pendulum": {"QP-1d": ""},
}  # fmt: skip
SAMPLED = [name for known in OUTCOMES.values() for name, outcome in known.items() if not outcome]
EXACT = [name for known in OUTCOMES.values() for name, outcome in known.items() if outcome]


class Small(Budget):
    """A budget that lets every n fall to what a study can still run with."""

    def n(self, default, least=500, multiple=50):
        return 50


@cache
def rows(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(action_averages, "MEASURED", (4, 2, 1))
        patch.setattr(action_averages, "SYSTEMS", 4)
        patch.setattr(q_prop, "SYSTEMS", 4)
        patch.setattr(q_prop, "PENDULUM", 5)
        patch.setattr(q_prop, "CRITIC", CriticSettings(n=50, hidden=(4,), epochs=1))
        patch.setattr(factorised, "BANDITS", 4)
        patch.setattr(factorised, "WIDE", 100)
        return STUDIES[name].run(Small("smoke", 0.01))


def test_the_family_is_complete_and_every_study_draws():
    ours = {c.id: c.study for c in CLAIMS.values() if c.study in OUTCOMES}
    assert ours == {name: study for study, known in OUTCOMES.items() for name in known}
    for name in OUTCOMES:
        assert isinstance(STUDIES[name].draw(rows(name)), styles.Figure)


@pytest.mark.parametrize("name", EXACT)
def test_exact_claims_and_controls(name):
    claim = CLAIMS[name]
    made, outcome = rows(claim.study), OUTCOMES[claim.study][name]
    effect, control = claim.effect(made), claim.control.effect(made)
    assert effect.is_exact and decide(name, effect, *claim.question).outcome == outcome
    assert control.is_exact and decide(name, control, *claim.control_question).outcome == "violated"


# ---- Independent routes ---------------------------------------------------------------------------------------------------


def test_components_of_random_worlds_add_up_to_variances():
    for number in range(3):
        world = drawn(0, number)
        for phi in (control_variates.STEP, control_variates.PATH):
            assert components(*world, phi).total == pytest.approx(varlab.exact(*world, phi).variance[0], rel=1e-11)


def test_worlds_depend_on_seed_and_number_alone():
    first, again, other, seeded = drawn(0, 1), drawn(0, 1), drawn(0, 2), drawn(1, 1)
    for a, b in zip(first[0].finite.reward.flatten(), again[0].finite.reward.flatten(), strict=True):
        assert a == b
    assert torch.equal(first[1].logits.weight, again[1].logits.weight)
    for different in (other, seeded):
        assert not torch.equal(first[0].finite.reward, different[0].finite.reward)
        assert not torch.equal(first[1].logits.weight, different[1].logits.weight)
    fixed, _ = drawn(0, 1, outcomes=1, fixed_start=True)
    assert fixed.finite.initial.tolist() == [1.0, 0.0, 0.0] and fixed.finite.probability.shape[2] == 1


def test_shares_have_clopper_pearson_intervals():
    none, some = share([False] * 50), share([True] * 5 + [False] * 15)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 50) and none.high == pytest.approx(1 - 0.025 ** (1 / 50), rel=1e-9)
    assert (some.value, some.n) == (0.25, 20) and (some.low, some.high) == pytest.approx((0.0866, 0.4910), abs=1e-4)


def test_a_shared_mean_makes_36_of_16():
    """By expectations of polynomials: b_1 = E[ε² Q] = −(3 + a_2²), and g = Σ_d a_d (Q − b_d)."""
    x, w = np.polynomial.hermite_e.hermegauss(8)
    a, b = np.meshgrid(x, x)
    weight = np.outer(w, w) / w.sum() ** 2
    q = -((a - b) ** 2)

    def variance(g):
        return (weight * g**2).sum() - (weight * g).sum() ** 2

    best, value = variance(a * (q + 3 + b**2) + b * (q + 3 + a**2)), variance((a + b) * (q + 2))
    assert (best, value) == pytest.approx((36, 16), rel=1e-12)
    assert CLAIMS["WU-1d"].effect(rows("factorised_bandit")).value == pytest.approx(best / value, rel=1e-12)


def test_the_loss_of_a_baseline_by_a_loop_over_paths():
    cost = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64)
    env = factorised.quadratic_bandit(cost)
    policy = factorised.only_means(env, torch.tensor([0.3, -0.2]), torch.tensor([0.1, -0.4]))
    paths, values = listed(env, policy), QuadraticValues.of(env, policy, 1.0)
    best = factorised.seen(paths, values, factorised.OPTIMAL)
    mean, scale = policy.net.bias.detach(), policy.log_std.value.detach().exp()
    total, v = 0.0, float(values.v(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)))
    x, w = np.polynomial.hermite_e.hermegauss(7)
    for a, p, b in zip(paths.traj.action, paths.probability, best, strict=True):
        for d in (0, 1):
            expected = 0.0
            for node, weight in zip(x, w / w.sum(), strict=True):
                moved = a.clone()
                moved[d] = mean[d] + scale[d] * node
                expected += weight * node**2 * -float(moved @ cost @ moved)
            assert float(b[d]) == pytest.approx(expected, rel=1e-11)
            total += float(p) * (v - expected) ** 2 / float(scale[d]) ** 2
    assert factorised.loss(paths, v, best) == pytest.approx(total, rel=1e-11)
    state, least = paths.covariance(paths.gradients(("value_baseline", factorised.OPTIMAL), values)).diagonal()
    assert float(state - least) == pytest.approx(total, rel=1e-11)


def test_measured_variances_of_the_bandit_hold_the_closed_form():
    made = rows("factorised_dimension")
    here = made[(made["what"] == "variance") & (made["x"] == 10)]
    np.testing.assert_array_equal(here["exact"], [gaussian_bandit_variance(10, name) for name in here["label"]])
    assert (np.abs(np.log(here["value"] / here["exact"])) < np.log(here["value_high"] / here["value_low"])).all()


def test_scaled_and_opposite_critics_are_the_same_thing():
    """−Q by its values and −Q inside the estimator; the sign turned in one term alone is biased."""
    env, policy = action_averages.system(0, 0, 2, 1, 1)
    paths, values = listed(env, policy), QuadraticValues.of(env, policy, 1.0)
    minus = q_prop.scaled(values, -1.0)
    by_values = paths.gradients("q_prop", minus)
    torch.testing.assert_close(paths.gradients(q_prop.OppositeQProp(), values), by_values, rtol=1e-12, atol=1e-12)
    traj = paths.traj
    torch.testing.assert_close(minus.q(traj.obs, traj.action, traj.time), -values.q(traj.obs, traj.action, traj.time))
    torch.testing.assert_close(minus.v(traj.obs, traj.time), values.v(traj.obs, traj.time))
    grad = varlab.exact(env, policy, "reward_to_go").gradient
    assert np.abs(paths.mean(by_values)[0].numpy() - grad).max() < 1e-11
    turned = paths.mean(paths.gradients(q_prop.TurnedQProp(), values))[0].numpy()
    assert np.abs(turned - grad).max() > 0.1 * np.abs(grad).max()


def test_all_action_by_components_is_the_one_of_the_oracle():
    made, (env, policy) = rows("all_actions"), drawn(0, 0)
    parts = components(env, policy, make("all_action"))
    exact = varlab.exact(env, policy, "all_action").variance[0]
    assert parts.action.max() == 0 and parts.total == pytest.approx(exact, rel=1e-11)
    assert cell(made, what="steps", label="q_value").value == 1.0


# ---- Effects of synthetic rows --------------------------------------------------------------------------------------------


def table(*made):
    return pd.DataFrame(list(made))


def outcome(name, made, control=False):
    claim = CLAIMS[name]
    if control:
        return decide(name, claim.control.effect(made), *claim.control_question).outcome
    return decide(name, claim.effect(made), *claim.question).outcome


@pytest.mark.parametrize(("kept", "expected"), [(295, "holds"), (270, "violated"), (287, "undecided")])
def test_shares_of_worlds_are_judged_at_their_bound(kept, expected):
    step, path, average, taken = control_variates.STEP, control_variates.PATH, "all_action", "q_value"
    hit = share([True] * kept + [False] * (300 - kept))
    made = table(
        *(row(f"{a} / {b}", hit, what="below") for a, b in ((path, step), (average, taken))),
        *(row(f"{a} / {b}", share([False] * 299 + [True]), what="below") for a, b in ((step, path), ("advantage", average))),
    )
    for name in ("TC-1e", "AA-1d"):
        assert outcome(name, made) == expected and outcome(name, made, control=True) == "violated"


@pytest.mark.parametrize(("kept", "expected"), [(200, "holds"), (100, "violated"), (150, "undecided")])
def test_the_whole_order_is_judged_by_its_share(kept, expected):
    hit, few = share([True] * kept + [False] * (300 - kept)), share([True] * 60 + [False] * 240)
    made = table(row("whole order", hit, what="order"), row("V and nothing exchanged", few, what="order"))
    assert outcome("DR-1e", made) == expected and outcome("DR-1e", made, control=True) == "violated"


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "holds"), (1.0, "violated"), (0.96, "undecided")])
def test_pendulum_is_judged_by_the_paired_ratio(ratio, expected):
    made = table(
        row("q_prop", Effect(ratio, ratio * 0.98, ratio * 1.02, 500, log=True)),
        row(q_prop.OPPOSITE, Effect(1.1, 1.08, 1.12, 500, log=True)),
    )
    assert outcome("QP-1d", made) == expected and outcome("QP-1d", made, control=True) == "violated"


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, "holds"), (0.9, "violated"), (0.5, "undecided")])
def test_the_measured_average_is_judged_against_the_advantage(ratio, expected):
    made = table(
        row("all_action", Effect(ratio, ratio * 0.8, ratio * 1.25, 500, log=True), what="measured"),
        row("q_value", Effect(20.0, 15.0, 25.0, 500, log=True), what="measured"),
    )
    assert outcome("AA-1g", made) == expected and outcome("AA-1g", made, control=True) == "violated"


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "holds"), (1.3, "violated"), (1.09, "undecided")])
def test_the_gain_at_ten_dimensions_is_judged_by_its_closed_form(factor, expected):
    gain, best = 14 / 3 * factor, 4.0
    made = table(
        row("value", Effect(gain, gain * 0.97, gain * 1.03, 500, log=True), what="over factorised", x=10),
        row("optimal", Effect(best, best * 0.98, best * 1.02, 500, log=True), what="over factorised", x=10),
    )
    assert outcome("WU-2b", made) == expected and outcome("WU-2b", made, control=True) == "violated"


@pytest.mark.parametrize(("gain", "expected"), [(330.0, "holds"), (20.0, "violated"), (47.0, "undecided")])
def test_the_growth_of_the_gain_is_that_over_ten_dimensions(gain, expected):
    made = table(
        row("value", Effect(gain, gain * 0.8, gain * 1.25, 50, log=True), what="over factorised", x=1000),
        *(
            row(name, 1.0, what="variance", x=m, exact=float(gaussian_bandit_variance(m, name)))
            for m in (10, 1000)
            for name in factorised.BASELINES
        ),
    )
    effect = CLAIMS["WU-2c"].effect(made)
    assert effect.value == pytest.approx(gain / (14 / 3)) and effect.low == pytest.approx(0.8 * effect.value)
    assert outcome("WU-2c", made) == expected and outcome("WU-2c", made, control=True) == "violated"


def test_sampled_claims_have_a_test_of_their_own():
    assert sorted(SAMPLED) == ["AA-1d", "AA-1g", "DR-1e", "QP-1d", "TC-1e", "WU-2b", "WU-2c"]
