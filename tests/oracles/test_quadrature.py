"""Linear systems by quadrature: moments against the oracle through cumulants, trajectories against the simulator's equations."""

import numpy as np
import pytest
import torch

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.oracles.quadrature import listed
from varlab.values.linear_quadratic import QuadraticValues

PHI = ("total_return", "reward_to_go", "value_baseline", "q_value", "advantage", "gae(lam=0.7)")


def system(horizon, states, actions, seed=1, noise=0.1):
    env = lqg.random_system(horizon, seed=seed, state_dim=states, action_dim=actions, noise=noise)
    return env, policies.prepare(policies.make("linear", env, theta_seed=seed), torch.float64, torch.device("cpu"))


@pytest.mark.parametrize(("horizon", "states", "actions", "noise"), [(3, 1, 1, 0.1), (2, 1, 2, 0.1), (2, 2, 1, 0.0)])
@pytest.mark.parametrize(("gamma", "weighting"), [(1.0, True), (0.8, True), (0.8, False)])
def test_moments_are_those_of_cumulants(horizon, states, actions, noise, gamma, weighting):
    env, policy = system(horizon, states, actions, noise=noise)
    paths = listed(env, policy)
    assert float(paths.probability.sum()) == pytest.approx(1, rel=1e-13)
    g = paths.gradients(PHI, QuadraticValues.of(env, policy, gamma), gamma, weighting)
    oracle = varlab.exact(env, policy, PHI, gamma=gamma, discount_weighting=weighting)
    np.testing.assert_allclose(paths.mean(g), oracle.mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(paths.covariance(g).diagonal(), oracle.variance, rtol=1e-11)


def test_four_nodes_are_too_few_for_a_variance_and_enough_for_a_mean():
    env, policy = system(2, 1, 1)
    five, four = (listed(env, policy, nodes=m) for m in (5, 4))
    values = QuadraticValues.of(env, policy, 1.0)
    of_five, of_four = (p.gradients("reward_to_go", values) for p in (five, four))
    np.testing.assert_allclose(four.mean(of_four), five.mean(of_five), rtol=1e-11)
    assert abs(float(four.covariance(of_four) / five.covariance(of_five)) - 1) > 1e-3


def test_every_step_follows_the_equations():
    env, policy = system(3, 1, 1)
    traj, s = listed(env, policy).traj, env.system
    state, action, reward = (x.unflatten(0, (-1, 3)) for x in (traj.obs, traj.action, traj.reward))
    np.testing.assert_allclose(reward, s.reward(state, action), rtol=1e-14)
    moved = state[:, :-1] @ s.a.T + action[:, :-1] @ s.b.T
    noise = (state[:, 1:] - moved).flatten() / float(s.noise) ** 0.5
    points = np.polynomial.hermite_e.hermegauss(5)[0]
    assert float(np.abs(noise.numpy()[:, None] - points).min(1).max()) < 1e-12
    assert len(traj) == 5**6 and traj.truncated.all() and traj.length.unique().tolist() == [3]


def test_what_cannot_be_listed_is_one_sentence():
    env, policy = system(4, 3, 2)
    with pytest.raises(InputError, match=r"5 nodes in each of the 20 entries of the noise of random LQG.*shorten the horizon"):
        listed(env, policy)
    cartpole = envs.make("CartPole-v1", horizon=5)
    with pytest.raises(InputError, match="A linear-quadratic-Gaussian environment"):
        listed(cartpole, policies.make("linear", cartpole))
