"""Units up to their order: against all tuples, and what the enumeration refuses."""

import numpy as np
import pytest
import torch
from contract import bandit, moments

from varlab import checks, envs, estimators
from varlab.envs.prompts import prompts
from varlab.policies import SoftmaxTable
from varlab.studies.group_terms import GroupTerms
from varlab.studies.unit_moments import enumerate_units, multisets

WORLD = bandit(((0.0, 1.0), (0.3, -0.5)), ((0.2, -0.4), (0.7, 0.1)))


@pytest.mark.parametrize(
    ("phi", "group", "groups", "shared"),
    [
        ("leave_one_out", 3, 1, True), ("group_normalised", 4, 1, True), ("james_stein", 2, 3, True),
        ("normalised_advantage(lam=1)", 1, 4, True), ("group_mean", 3, 1, False),
    ],
)  # fmt: skip
def test_multisets_stand_for_all_tuples(phi, group, groups, shared):
    units = enumerate_units(WORLD.env, WORLD.policy, group, groups, shared)
    found = units.moments(units.phi(estimators.parse(phi)))
    mean, variance = moments(estimators.parse(phi), WORLD, group=group, unit=group * groups, shared_start=shared)
    assert units.weight.sum() == pytest.approx(1, abs=1e-13)
    np.testing.assert_allclose(found.mean, mean.numpy(), rtol=0, atol=1e-13)
    assert found.variance == pytest.approx(group * groups * float(variance.sum()), rel=1e-11)
    np.testing.assert_allclose(found.gradient, WORLD.gradient().numpy(), atol=1e-14)


def test_rewards_by_chance_are_outcomes_too():
    env = prompts(2, 2, seed=3)
    policy = SoftmaxTable(env, torch.tensor([[0.1, -0.3], [0.4, 0.2]], dtype=torch.float64))
    units = enumerate_units(env, policy, 3)
    found = units.moments(units.phi(estimators.parse("leave_one_out")))
    assert found.bias < 1e-13
    assert found.variance == pytest.approx(GroupTerms.of_world(env, policy).variance("leave_one_out", 3), rel=1e-12)


def test_bias_scale_and_angle():
    units = enumerate_units(WORLD.env, WORLD.policy, 4)
    found = units.moments(units.phi(estimators.parse("group_mean")))
    assert found.scale == pytest.approx(0.75, rel=1e-12) and found.bias == pytest.approx(0.25, rel=1e-12)
    assert found.direction_bias < 1e-12
    turned = units.moments(units.phi(estimators.parse("group_normalised")))
    cosine = turned.mean @ turned.gradient / np.linalg.norm(turned.mean) / np.linalg.norm(turned.gradient)
    assert turned.direction_bias == pytest.approx(np.sqrt(1 - cosine**2), rel=1e-6)


def test_multisets_by_hand():
    chosen, weight = multisets(np.array([0.2, 0.8]), 3)
    assert chosen.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]
    assert weight == pytest.approx([0.008, 0.096, 0.384, 0.512])


def test_refusals():
    env = prompts(8, 8)
    with pytest.raises(checks.InputError, match="At most 6,000,000 trajectories"):
        enumerate_units(env, SoftmaxTable(env), 32)
    walk = envs.make("FrozenLake-v1", horizon=5)
    with pytest.raises(checks.InputError, match="one step was expected"):
        enumerate_units(walk, SoftmaxTable(walk), 2)


@pytest.mark.parametrize("group", [2, 3, 5])
def test_the_closed_form_is_the_enumeration(group):
    terms = GroupTerms.of_world(WORLD.env, WORLD.policy)
    units = enumerate_units(WORLD.env, WORLD.policy, group)
    for kind in ("leave_one_out", "group_mean", "value_baseline"):
        found = units.moments(units.phi(estimators.parse(kind)))
        assert terms.variance(kind, group) == pytest.approx(found.variance, rel=1e-12)
        bias = float(((found.mean - found.gradient) ** 2).sum())
        assert terms.mse(kind, group, 60) == pytest.approx(found.variance / 60 + bias, rel=1e-12)
    pooled = units.reward - units.weight @ units.reward.mean(1)
    assert terms.variance("batch_mean", group) == pytest.approx(units.moments(pooled).variance, rel=1e-12)


def test_the_best_group_size():
    terms = GroupTerms(between=0.01, within=0.2, noise=0.36, gradient_sq=0.1, pooled=0.3)
    assert terms.best_group("leave_one_out", 50) == terms.best_group("leave_one_out", 5000) == 7  # 1 + sqrt(36)
    assert terms.best_group("group_mean", 5000) > terms.best_group("group_mean", 50)
    assert terms.best_group("value_baseline", 50) == 2
    with pytest.raises(checks.InputError, match="kind of baseline"):
        terms.variance("median", 2)
    walk = envs.make("FrozenLake-v1", horizon=5)
    with pytest.raises(checks.InputError, match="finite world of one step"):
        GroupTerms.of_world(walk, SoftmaxTable(walk))
