"""The best V(s) without the time: against regression on every quadrature path, its first-order condition, and reductions."""

import numpy as np
import torch
from gaussian_quadrature import Paths

from varlab.envs import lqg
from varlab.oracles.time_unaware import time_unaware, visits
from varlab.policies import Linear
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues

GAMMA = 0.9


def world(horizon, state_dim=2):
    env = lqg.random_system(horizon, seed=4, state_dim=state_dim, action_dim=1)
    policy = Linear(env, -0.5).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in (policy.net.weight, policy.net.bias):
            p.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return env, policy


def monomials(s):
    return np.stack([s[:, 0] ** 2, s[:, 0] * s[:, 1], s[:, 1] ** 2, s[:, 0], s[:, 1], np.ones(len(s))], 1)


def test_it_is_the_regression_on_returns_of_all_quadrature_paths():
    """Weighted least squares of reward-to-go, not of V_t, over 5^n paths: other targets, other nodes, other states' factors."""
    env, policy = world(2)
    paths = Paths(env.system, policy, 2)
    r = paths.reward.numpy()
    target = np.stack([r[:, 0] + GAMMA * r[:, 1], r[:, 1]], 1).ravel()
    states = paths.state.detach().numpy().reshape(-1, 2)
    root = np.sqrt(np.repeat(paths.weight.numpy(), 2))[:, None]
    c = np.linalg.lstsq(monomials(states) * root, (target * root[:, 0]), rcond=None)[0]
    found = time_unaware(env, policy, GAMMA)
    at = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in (0, 1):
        np.testing.assert_allclose(found.v(at, torch.full((20,), t)).numpy(), monomials(at.numpy()) @ c, rtol=1e-8)


def test_q_is_left_alone_and_nothing_is_lost_where_v_does_not_change():
    env, policy = world(6)
    known = QuadraticValues.of(env, policy, GAMMA)
    assert torch.equal(time_unaware(env, policy, GAMMA).q_hessian, known.q_hessian)
    for e, gamma in ((world(1)[0], GAMMA), (env, 0.0)):  # one step, or nothing after it
        exact, found = QuadraticValues.of(e, policy, gamma), time_unaware(e, policy, gamma)
        torch.testing.assert_close(found.v_hessian[:-1], exact.v_hessian[:-1], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.v_slope[:-1], exact.v_slope[:-1], rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(found.v_constant[:-1], exact.v_constant[:-1], rtol=1e-8, atol=1e-9)
    # With more steps it is another function.
    assert (time_unaware(env, policy, GAMMA).v_constant[0] - known.v_constant[0]).abs() > 0.01


@torch.no_grad()
def test_states_of_simulated_episodes_have_its_moments():
    env, policy = world(5)
    traj = rollout(env, policy, 40_000, Streams(3).sequence("rollout"))
    for t, (mean, spread) in enumerate(visits(env.system, GaussianPolicy.of(policy), 5)):
        s = traj.obs[traj.offsets[:-1] + t]
        cov = spread @ spread.T
        error = 5 / 200  # of 40,000 draws, in standard deviations
        assert ((s.mean(0) - mean).abs() < error * cov.diagonal().sqrt()).all()
        scale = torch.outer(cov.diagonal(), cov.diagonal()).sqrt()
        assert ((torch.cov(s.T) - cov).abs() < 1.5 * error * scale).all()
