"""The harness of enumerations agrees with the exact oracle, unit by unit, and knows a wrong estimator from a right one."""

import numpy as np
import pytest
import torch
from contract import UNIT_WORLDS, WORLDS, distance, exact_mean, moments

import varlab
from varlab.estimators import make

PHI = ("total_return", "reward_to_go", "value_baseline", "td_residual", "all_action")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("gamma", (1.0, 0.9))
def test_moments_are_those_of_the_oracle(world, gamma):
    made = WORLDS[world]()
    exact = varlab.exact(made.env, made.policy, PHI, gamma=gamma)
    for k, name in enumerate(PHI):
        mean, variance = moments(make(name), made, gamma=gamma)
        np.testing.assert_allclose(mean, exact.mean[k], rtol=0, atol=1e-12)
        np.testing.assert_allclose(variance, exact.variance_per_parameter[k], rtol=0, atol=1e-12)
        assert distance(mean, made.gradient(gamma)) < 1e-12


@pytest.mark.parametrize("world", UNIT_WORLDS)
def test_a_unit_of_independent_trajectories_has_the_mean_of_one_and_its_variance_divided_by_their_number(world):
    made = UNIT_WORLDS[world]()
    one = moments(make("reward_to_go"), made)
    several = moments(make("reward_to_go"), made, group=2, unit=2, shared_start=False)
    assert distance(several[0], one[0]) < 1e-12 and distance(2 * several[1], one[1]) < 1e-12
    assert float(one[1].sum()) > 0.01


def test_a_shared_start_keeps_the_mean_and_changes_the_variance_where_starts_differ():
    made = UNIT_WORLDS["prompts"]()
    apart, shared = (moments(make("reward_to_go"), made, group=2, unit=2, shared_start=s) for s in (False, True))
    assert distance(apart[0], shared[0]) < 1e-12
    assert distance(apart[1], shared[1]) > 1e-3


def test_wrong_values_show_in_what_needs_exact_ones():
    made = WORLDS["long"]()
    assert distance(exact_mean(make("td_residual"), made, source=made.wrong), made.gradient()) > 1e-2


def test_another_policy_that_acts_shows():
    made = WORLDS["long"]()
    other = made.logits + 0.3 * torch.randn(made.logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert distance(exact_mean(make("reward_to_go"), made, behaviour=other), made.gradient()) > 1e-2
