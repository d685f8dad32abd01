"""Measurements whose values come from branches, or carry a dialled error: bias, cost, names of rows, what moves no number."""

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp

from varlab import envs, estimators, experiment, policies
from varlab.envs import lqg
from varlab.estimators.claims import proven
from varlab.plans import plan
from varlab.preparation import Preparation
from varlab.values import Cloning

LINEAR = (
    "q_value", "advantage", "td_residual", "gae(lam=0.95)", "n_step(k=2)", "all_action", "state_action_control_variate",
    "trajectory_control_variate",
)  # fmt: skip


def finite():
    mdp = random_mdp(3)
    env = envs.environment(mdp, 4)
    return env, policies.SoftmaxTable(env, logits=random_logits(1, mdp))


def linear(horizon=3):
    env = lqg.random_system(horizon, seed=1, state_dim=2, action_dim=1)
    return env, policies.make("linear", env, theta_seed=1)


def measured(world, phi, n=50, **settings):
    defaults = {"n": n, "pilot": 50, "dtype": "float64", "exact": False}
    return experiment.measure(*world(), phi, **defaults | settings)


@pytest.fixture(scope="module")
def branched():
    return measured(finite, LINEAR, n=40_000, gamma=0.9, values="cloning", continuations=2, pilot=500)


def equivalent(row):
    return row.bias_sq_high < (0.1 * row.grad_norm) ** 2


def test_every_phi_linear_in_v_and_q_is_unbiased_with_two_branches(branched):
    """Equivalence at a fixed n and seed, against exact ∇J: bias below a tenth of its length."""
    for row in branched.summary.itertuples():
        assert row.reference_kind == "exact" and row.values_source == "cloning(m=2)"
        assert row.bias_p_value > 1e-3 and equivalent(row), row.phi


def test_an_error_of_the_values_is_found():
    """Negative control: values that are off by ε = 0.5 of unit norm are found with fewer trajectories."""
    rows = measured(
        finite, ("td_residual", "q_value"), n=12_000, gamma=0.9, values="cloning", continuations=2, values_error=0.5, pilot=500
    ).summary
    for row in rows.itertuples():
        assert row.values_source == "cloning(m=2)+0.5e(seed=0)" and row.bias_p_value < 1e-3 and not equivalent(row), row.phi


def test_more_branches_bring_variance_to_that_of_exact_values():
    """The variance of branches adds to it and falls as 1/m."""
    exact = measured(finite, "q_value", n=4000, exact=True).summary.exact_variance[0]
    over = [measured(finite, "q_value", n=4000, values="cloning", continuations=m).summary.variance[0] - exact for m in (1, 4)]
    assert over[0] > 0.3 * exact and 0.1 < over[1] / over[0] < 0.4


def test_a_dialled_error_keeps_the_exact_oracles():
    rows = measured(
        finite, ("td_residual", "value_baseline"), gamma=0.9, values_error=0.5, error_seed=3, exact=True
    ).summary.set_index("phi")
    twice = measured(finite, "td_residual", gamma=0.9, values_error=1.0, error_seed=3, exact=True).summary.iloc[0]
    assert set(rows.values_source) == {"exact+0.5e(seed=3)"}
    assert abs(twice.exact_bias_sq / rows.exact_bias_sq["td_residual"] - 4) < 1e-10
    assert rows.exact_bias_sq["value_baseline"] < 1e-24 and rows.exact_variance.notna().all()


def test_branches_are_charged_to_the_phi_that_asks_for_them():
    """Nothing terminates: V at t costs m (H − t) steps, Q as much, Q at J nodes J times it."""
    n, m, horizon, nodes = 50, 4, 3, 5
    made = measured(linear, ("total_return", "time_baseline", "td_residual", *LINEAR[:2], "all_action"), n=n, values="cloning",
                    continuations=m, pilot=60)  # fmt: skip
    rows = made.summary.set_index("phi")
    each = m * n * (3 + 2 + 1)
    sampled = n * horizon
    expected = {"total_return": 0, "td_residual": each, "q_value": each, "advantage": 2 * each, "all_action": nodes * each}
    for phi, steps in expected.items():
        assert rows.steps[phi] == sampled + steps, phi
        assert rows.efficiency[phi] == pytest.approx(1 / (rows.variance[phi] * rows.steps[phi] / n), rel=1e-12)
    assert rows.steps["time_baseline"] == sampled + made.steps["critic"]
    per_pilot = m * 60 * 6
    assert made.steps["branch"] >= (2 + nodes) * (each + per_pilot) and made.steps["rollout"] == sampled


def test_a_cut_is_charged_for_its_own_branches():
    n, m = 50, 4
    rows = measured(linear, ("reward_to_go", "td_residual"), n=n, values="cloning", continuations=m, cut=2).summary
    after = m * n * 1
    assert rows.steps.tolist() == [2 * n + after, 2 * n + after + m * n * (3 + 2)]
    assert measured(linear, "reward_to_go", n=n, values="cloning", cut=2, at_cut="terminal").summary.steps[0] == 2 * n


def test_exact_variance_is_left_empty_where_values_are_drawn():
    """Oracles know nothing of branches; a Φ that reads no values keeps its exact row."""
    for world in (finite, linear):
        rows = measured(world, ("total_return", "td_residual"), values="cloning", exact=True).summary.set_index("phi")
        assert np.isnan(rows.exact_variance["td_residual"]) and rows.exact_variance["total_return"] > 0
        at_cut = measured(world, "reward_to_go", values="cloning", exact=True, cut=2).summary
        assert at_cut.exact_variance.isna().all()


@pytest.mark.parametrize("world", [finite, linear])
def test_numbers_do_not_depend_on_chunks_or_on_what_else_is_measured(world):
    settings = {"values": "cloning", "continuations": 3, "part_size": 20, "n": 100}
    whole = measured(world, ("td_residual", "q_value"), **settings)
    chunked = measured(world, ("td_residual", "q_value"), chunk=3, **settings)
    alone = measured(world, "q_value", **settings)
    np.testing.assert_allclose(whole.moments.mean, chunked.moments.mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(whole.moments.mean[:, 1], alone.moments.mean[:, 0], rtol=1e-12, atol=1e-13)
    again = measured(world, ("td_residual", "q_value"), **settings)
    assert np.array_equal(whole.moments.mean, again.moments.mean)


def test_part_size_follows_from_how_many_states_may_be_kept(monkeypatch):
    job = Preparation(plan(*finite(), "td_residual", n=50, values="cloning"))
    assert job.snapshots and job.part_size(1000, saved=True) == job.part_size(1000)
    monkeypatch.setattr(Cloning, "snapshots_at_once", 40)
    assert job.part_size(1000, saved=True) == 10 and job.part_size(1000) == 1000
    assert not Preparation(plan(*finite(), "td_residual", n=50)).snapshots


def test_a_users_own_source_may_branch_too():
    env, policy = finite()
    source = Cloning(env, policies.prepare(policy, torch.float64, torch.device("cpu")), 2)
    row = experiment.measure(env, policy, "td_residual", n=50, pilot=50, values=source, exact=False).summary.iloc[0]
    assert row.values_source == "cloning(m=2)" and row.steps > 50


def test_the_reference_does_not_branch():
    """Its V is exact or a critic's, which leaves its mean alone: values=cloning and values=auto share one reference."""
    settings = {"n": 50, "n_reference": 60, "reference": "sampled"}
    dials = (("cloning", 0.0), ("auto", 0.5), ("auto", 0.0))
    made = [measured(finite, "td_residual", values=v, values_error=e, **settings) for v, e in dials]
    assert len({m.references["J_1"].digest for m in made}) == 1
    assert all(np.array_equal(m.references["J_1"].grad, made[0].references["J_1"].grad) for m in made)


@pytest.mark.parametrize("phi", estimators.SOURCE_TEXT)
def test_what_holds_for_exact_values_is_proven_for_branches(phi):
    e, same = estimators.parse(phi), {"gamma": 1.0, "discount_weighting": True, "cut": None}
    assert proven(e, "J_1", values_source="cloning(m=3)", **same)
    always = e.unbiased == "always"
    for source in ("cloning(m=3)+0.5e(seed=0)", "exact+0.5e(seed=0)", "critic:1234abcd", "user"):
        assert proven(e, "J_1", values_source=source, **same) is always

    class Square(type(e)):
        """Not linear in its values."""

        linear = False
        unbiased = "given exact values"

    assert not proven(Square(), "J_1", values_source="cloning(m=3)", **same)
    assert proven(Square(), "J_1", values_source="exact", **same)
