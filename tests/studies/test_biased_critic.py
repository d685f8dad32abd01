"""MSE against critic error: the polynomial against direct evaluation, crossovers, and the size of the error."""

import numpy as np
import pytest
import torch

import varlab
from varlab.checks import InputError
from varlab.studies.biased_critic import BiasedCritic
from varlab.values.dynamic_programming import occupancy, policy_table


@pytest.fixture(scope="module")
def case():
    return BiasedCritic.drawn(3)


@pytest.mark.parametrize("phi", ("all_action", "value_baseline", "state_action_control_variate", "advantage"))
@pytest.mark.parametrize("epsilon", (0.2, 1.7, -0.6))
def test_the_polynomial_is_the_exact_value_at_any_error(case, phi, epsilon):
    found = varlab.exact(case.env, case.policy, [phi], values=case.critic(epsilon))
    square = (found.gradient**2).sum()
    for n in (1, 50):
        direct = (found.bias_sq[0] + found.variance[0] / n) / square
        assert float(case.mse(phi, epsilon, n)) == pytest.approx(float(direct), rel=1e-9)


@pytest.mark.parametrize("n", (10, 1000))
def test_at_the_crossover_both_are_equally_good_and_the_critic_wins_below_it(case, n):
    at = case.crossover("all_action", "value_baseline", n)
    ours, other = (case.mse(phi, at * np.array([0.5, 1.0, 1.5]), n) for phi in ("all_action", "value_baseline"))
    assert ours[1] == pytest.approx(other[1], rel=1e-9) and ours[0] < other[0] and ours[2] > other[2]


def test_without_bias_the_crossover_does_not_move_and_may_not_exist(case):
    first, second = (case.crossover("trajectory_control_variate", "value_baseline", n) for n in (10, 1000))
    assert first == pytest.approx(second, rel=1e-9)
    assert case.crossover("all_action", "all_action", 10) == np.inf
    with pytest.raises(InputError, match="n"):
        case.crossover("all_action", "value_baseline", 0)


def test_the_error_is_as_large_as_the_advantage(case):
    pi = policy_table(case.policy, case.env.finite).detach()
    often = occupancy(case.env.finite, pi, case.env.horizon).unsqueeze(2) * pi
    q = case.values.q
    advantage = q - (pi * q).sum(-1, keepdim=True)
    error = case.error - (pi * case.error).sum(-1, keepdim=True)
    assert float((often * error**2).sum()) == pytest.approx(float((often * advantage**2).sum()), rel=1e-12)
    critic = case.critic(0.3)
    torch.testing.assert_close(critic.v[:-1], (pi * critic.q).sum(-1))
    assert not critic.v[-1].any()
