"""PGPE: exact moments by Gauss-Hermite quadrature over θ, and closed forms.

In the exact tests nothing is sampled: the inner worlds have no noise, so that a node θ of the quadrature has one return, a
polynomial in θ. ∇J comes pathwise, through θ = η + τ ζ, which knows no score.
"""

import itertools

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

import varlab
from varlab import envs, policies, rng, scores
from varlab.envs import closed_form, lqg
from varlab.estimators import Baseline, Batch, make, weight
from varlab.policies import Controller, ParameterDistribution
from varlab.types import Trajectories, Values

CPU, H, GAMMA = torch.device("cpu"), 4, 0.8
SEED = rng.Streams(3).sequence("rollout")


class Constant(torch.nn.Module):
    """a ~ N(c, I) whatever the observation; without noise a = c."""

    def __init__(self, dim):
        super().__init__()
        self.mean = policies.Broadcast(torch.zeros(dim, dtype=torch.float64))

    def forward(self, obs):
        mean = self.mean(obs)
        return Independent(Normal(mean, torch.ones_like(mean), validate_args=False), 1, validate_args=False)


def constant(level):
    """G_t − b with a number b."""
    return Baseline(lambda obs, t: torch.full((len(obs),), level, dtype=torch.float64), called="b")


def quadrature(policy, nodes):
    """θ [N, P], its weights [N] and ζ [N, P] for a Gaussian over θ."""
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    dim = policy.mean.value.numel()
    zeta = torch.tensor(list(itertools.product(x, repeat=dim)), dtype=torch.float64)
    p = torch.tensor([np.prod(c) for c in itertools.product(w / w.sum(), repeat=dim)], dtype=torch.float64)
    return (policy.mean.value + policy.log_std.value.exp() * zeta).detach(), p, zeta


def episodes(world, theta):
    """The package's trajectories for given θ: one step each, by the world's simulator."""
    n = len(theta)
    simulator = world.make_simulator(CPU)
    obs = simulator.reset(n, SEED)
    last, reward, end = simulator.step(theta)
    return Trajectories(
        obs=obs, action=theta, reward=reward, offsets=torch.arange(n + 1), terminated=end, truncated=~end, last_obs=last,
        horizon=1, env=world.name, spent=simulator.spent,
    )  # fmt: skip


def moments(world, policy, estimator, nodes):
    """E g and the diagonal of Cov g by the package's simulator, Φ and scores at the nodes of θ."""
    theta, p, _ = quadrature(policy, nodes)
    traj = episodes(world, theta)
    score_map = scores.make(policy, traj.obs[:16], traj.action[:16])
    assert score_map.kind == "factored"
    phi = weight(estimator, Batch(traj, Values(), world.gamma), True)
    g = score_map.at(traj.obs[:, None], theta[:, None]).apply(phi[:, None, None])[:, 0]
    mean = p @ g
    return mean, p @ (g - mean).square()


# ---- The Gaussian bandit: closed forms


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(("kind", "b"), [("none", 0.0), ("value", -1.0), ("optimal", None)])
def test_on_the_gaussian_bandit_pgpe_is_the_gaussian_policy(m, kind, b):
    """a = θ ~ N(0, τ² I), r = −‖θ‖²: (m + 2)(m + 4) τ² for each mean, 2 (m + 4) τ² with V, and 2 (m + 2) τ² with b*."""
    tau, env = 0.7, closed_form.gaussian_bandit(m)
    controller = Controller(Constant(m), env)
    policy = ParameterDistribution(torch.zeros(m, dtype=torch.float64), tau)
    level = (-(m + 2) if b is None else m * b) * tau**2
    estimator = constant(level) if kind != "none" else make("total_return")
    mean, variance = moments(envs.parameter_exploring(env, controller), policy, estimator, nodes=8)
    expected = closed_form.gaussian_bandit_variance(m, kind, tau)
    torch.testing.assert_close(variance[:m], torch.full((m,), expected, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, torch.tensor([0.0] * m + [-2 * tau**2] * m, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_the_baseline_of_the_closed_form_is_optimal():
    """No other b gives the mean parameters less variance: their exact variance is a parabola with its foot at b*."""
    env, tau = closed_form.gaussian_bandit(2), 0.7
    world = envs.parameter_exploring(env, Controller(Constant(2), env))
    policy = ParameterDistribution(torch.zeros(2, dtype=torch.float64), tau)

    def variance(level):
        baseline = constant(level)
        return float(moments(world, policy, baseline, nodes=8)[1][:2].sum())

    best = variance(-4 * tau**2)
    for step in (0.01, 0.3):
        up, down = variance(-4 * tau**2 + step), variance(-4 * tau**2 - step)
        assert up == pytest.approx(best + 2 * step**2 / tau**2, rel=1e-9) and down == pytest.approx(up, rel=1e-9)


# ---- A linear system: E g, tr Cov g and ∇J without the package's scores


def linear_world(horizon=H, gamma=GAMMA):
    """s' = 0.9 s + 0.5 a, s_0 = 1, r = −(s² + 0.1 a²), a = k s + c."""
    one = torch.ones(1, 1, dtype=torch.float64)
    system = lqg.LinearQuadratic(0.9 * one, 0.5 * one, one, 0.1 * one, 0 * one, torch.ones(1), 0 * one)
    env = lqg.environment(system, horizon, "line")
    return envs.parameter_exploring(env, Controller(policies.make("linear", env).double(), env), gamma)


def linear_policy():
    return ParameterDistribution(torch.tensor([-0.4, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.2], dtype=torch.float64))


def linear_return(theta, horizon=H, gamma=GAMMA):
    """R_γ [N] by hand, differentiable in θ [N, 2]."""
    s, total = torch.ones(len(theta), dtype=theta.dtype), 0.0
    for t in range(horizon):
        a = theta[:, 0] * s + theta[:, 1]
        total, s = total - gamma**t * (s**2 + 0.1 * a**2), 0.9 * s + 0.5 * a
    return total


def pathwise_gradient(nodes=12):
    """∇J at (η, log τ) of E R(η + τ ζ)."""
    policy = linear_policy()
    _, p, zeta = quadrature(policy, nodes)
    rho = [x.value for x in (policy.mean, policy.log_std)]
    j = p @ linear_return(rho[0] + rho[1].exp() * zeta)
    return torch.cat(torch.autograd.grad(j, rho))


@pytest.mark.parametrize("b", [0.0, -1.3])
def test_mean_and_variance_on_a_linear_system(b):
    policy = linear_policy()
    theta, p, zeta = quadrature(policy, 12)
    z = torch.cat([zeta / policy.log_std.value.exp(), zeta**2 - 1], 1).detach()
    by_hand = z * (linear_return(theta) - b)[:, None]
    estimator = constant(b) if b else make("total_return")
    mean, variance = moments(linear_world(), policy, estimator, 12)
    torch.testing.assert_close(mean, p @ by_hand, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(variance, p @ (by_hand - p @ by_hand).square(), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(mean, pathwise_gradient(), rtol=1e-11, atol=1e-11)


def test_the_pathwise_gradient_is_the_slope_of_j():
    def j(change):
        policy = linear_policy()
        with torch.no_grad():
            policy.mean.value += change[:2]
            policy.log_std.value += change[2:]
        theta, p, _ = quadrature(policy, 12)
        return float(p @ linear_return(theta))

    step = 1e-5 * torch.eye(4, dtype=torch.float64)
    slope = torch.tensor([(j(e) - j(-e)) / 2e-5 for e in step], dtype=torch.float64)
    torch.testing.assert_close(slope, pathwise_gradient(), rtol=1e-7, atol=1e-8)


def test_a_return_that_is_one_step_short_is_rejected():
    """Off by one index: the last reward of each episode is lost."""
    gamma, policy = 0.5, linear_policy()
    (right, _), (wrong, _) = (moments(linear_world(h, gamma), policy, make("total_return"), 16) for h in (8, 7))
    assert 1e-3 < float((wrong - right).norm() / right.norm()) < 0.1


@pytest.mark.parametrize("m", [10])
def test_a_measurement_covers_the_closed_form(m):
    """By sampling: variance of both forms on the bandit of ten dimensions, with τ's parameters frozen."""
    env = closed_form.gaussian_bandit(m)
    policy = ParameterDistribution(torch.zeros(m), 1.0)
    policy.log_std.value.requires_grad_(False)
    best = constant(-(m + 2.0))
    world = envs.parameter_exploring(env, Controller(Constant(m).float(), env))
    found = varlab.measure(world, policy, ["total_return", best], n=20_000, n_reference=1000, dtype="float64").summary
    for row, kind in zip(found.itertuples(), ("none", "optimal"), strict=True):
        exact = m * closed_form.gaussian_bandit_variance(m, kind)
        assert abs(np.log(row.variance / exact)) < 0.1 and row.variance_low < exact < row.variance_high
