"""Exact components of linear systems: against quadrature over whole paths, and against exact variances of whole trajectories."""

import numpy as np
import pytest
import torch
from gaussian_quadrature import Paths

import varlab
from varlab.envs import lqg
from varlab.estimators import make
from varlab.oracles.gaussian import PHI, GaussianTrajectory, gaussian
from varlab.oracles.gaussian_components import gaussian_components
from varlab.oracles.quadratic_forms import baseline_products, covariance, square_products, variance
from varlab.policies import Linear
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues

HORIZON, GAMMA = 2, 0.9


def system(dim=2):
    """Two states, ``dim`` actions, correlated start and system noise of rank one."""
    draw = np.random.default_rng(3)
    matrix = lambda *shape: torch.from_numpy(draw.standard_normal(shape))  # noqa: E731
    q, r, start, push = matrix(2, 2), matrix(dim, dim), matrix(2, 1), matrix(2, 1)
    return lqg.LinearQuadratic(
        a=0.6 * matrix(2, 2), b=matrix(2, dim), state_cost=q @ q.T, action_cost=r @ r.T, noise=push @ push.T,
        initial_mean=matrix(2), initial_covariance=start @ start.T,
    )  # fmt: skip


def policy_on(env, frozen=()):
    made = Linear(env, -0.3).double()
    generator = torch.Generator().manual_seed(1)
    for name, p in made.named_parameters():
        p.data.copy_(0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        p.requires_grad_(name not in frozen)
    return made


def wrong_values(env, policy):
    known = QuadraticValues.of(env, policy, GAMMA)
    generator = torch.Generator().manual_seed(8)
    shifted = {}
    for name, x in vars(known).items():
        if isinstance(x, torch.Tensor):
            moved = x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
            shifted[name] = (moved + moved.mT) / 2 if x.dim() == 3 else moved
    return QuadraticValues(**shifted)


def by_quadrature(system, env, policy, e, values, weighted=True):
    """[3, H] state, action, trajectory: averages over the coordinates that come after s_t and after a_t."""
    paths = Paths(system, policy, HORIZON)
    traj = paths.trajectories
    n, d = len(paths.weight), system.action_dim
    shape = [5] * round(np.log(n) / np.log(5))
    w = paths.weight.reshape(shape)
    score = paths.score.reshape(n, HORIZON, -1)
    if e.name == "state_action_control_variate":
        q = values.q(traj.obs, traj.action, traj.time)
        phi = varlab.estimators.Batch(traj, values(traj, frozenset()), GAMMA).reward_to_go - q
    else:
        batch = varlab.estimators.Batch(traj, values(traj, e.needs), GAMMA)
        phi = e.phi(batch)
    g = score * phi.reshape(n, HORIZON, 1)
    if weighted:
        g = g * GAMMA ** torch.arange(HORIZON, dtype=torch.float64)[:, None]
    at, out = 1, []
    for t in range(HORIZON):
        x = g[:, t].reshape(*shape, -1)
        before, acted = range(at, len(shape)), range(at + d, len(shape))
        given_state, given_action = mean(x, w, before), mean(x, w, acted)
        everything = mean(x, w, range(len(shape)))
        second = [(mean(y.square(), w, range(len(shape)))).sum() for y in (x, given_action, given_state)]
        parts = [second[2] - everything.square().sum(), second[1] - second[2], second[0] - second[1]]
        out.append([float(p) for p in parts])
        at += d + 1
    return np.array(out).T


def mean(x, w, dims):
    """Average over some coordinates of the grid, kept as length 1."""
    dims = tuple(dims)
    if not dims:
        return x
    w = w.unsqueeze(-1)
    return (x * w).sum(dims, keepdim=True) / w.sum(dims, keepdim=True)


@pytest.mark.parametrize(
    "phi", ["reward_to_go", "value_baseline", "q_value", "advantage", "td_residual", "gae(lam=0.7)"]
)  # fmt: skip
@pytest.mark.parametrize("right", [True, False])
def test_components_are_those_of_quadrature(phi, right):
    world = system()
    env = lqg.environment(world, HORIZON)
    policy = policy_on(env)
    values = QuadraticValues.of(env, policy, GAMMA) if right else wrong_values(env, policy)
    e = varlab.estimators.parse(phi)
    found = gaussian_components(env, policy, e, gamma=GAMMA, values=values)
    wanted = by_quadrature(world, env, policy, e, values)
    np.testing.assert_allclose(
        [found.state, found.action, found.trajectory], wanted, rtol=1e-9, atol=1e-9 * wanted.sum(), err_msg=phi
    )


def test_step_weights_and_frozen_parts_of_theta():
    world = system(1)
    env = lqg.environment(world, HORIZON)
    policy, weights_only = policy_on(env), policy_on(env, ("net.bias", "log_std.value"))
    weighted, bare = (gaussian_components(env, policy, "reward_to_go", gamma=GAMMA, discount_weighting=w) for w in (True, False))
    np.testing.assert_allclose(weighted.step, bare.step * GAMMA ** (2 * np.arange(HORIZON)), rtol=1e-12)
    others = [policy_on(env, tuple(n for n in ("net.weight", "net.bias", "log_std.value") if n != kept))
              for kept in ("net.weight", "net.bias", "log_std.value")]  # fmt: skip
    parts = [gaussian_components(env, p, "reward_to_go", gamma=GAMMA) for p in others]
    for name in ("state", "action", "trajectory"):
        np.testing.assert_allclose(sum(getattr(p, name) for p in parts), getattr(weighted, name), rtol=1e-10, atol=1e-12)
    assert (gaussian_components(env, weights_only, "reward_to_go", gamma=GAMMA).step < weighted.step).all()


@pytest.mark.parametrize("phi", ["reward_to_go", "value_baseline", "gae(lam=0.7)", "td_residual", "q_value"])
def test_steps_and_cross_terms_make_the_variance_of_the_trajectory(phi):
    env = lqg.point_mass(6, noise=0.1)
    policy = policy_on(env)
    found = gaussian_components(env, policy, phi, gamma=GAMMA, cross=True)
    assert found.total == pytest.approx(gaussian(env, policy, phi, gamma=GAMMA).variance[0], rel=1e-9)
    assert np.isnan(gaussian_components(env, policy, phi, gamma=GAMMA).total)


def test_an_action_dependent_baseline_takes_only_what_actions_do():
    """With exact Q in place of the baseline S_a is 0, a factorised one lies between; S_s and S_τ are those of the return."""
    world = system()
    env = lqg.environment(world, HORIZON)
    policy = policy_on(env)
    values = QuadraticValues.of(env, policy, GAMMA)
    v, q, factorised = (
        gaussian_components(env, policy, phi, gamma=GAMMA, values=values)
        for phi in ("value_baseline", "state_action_control_variate", "factorised_baseline")
    )
    np.testing.assert_allclose(q.action, 0.0, atol=1e-9 * v.step.sum())
    assert (factorised.action > 0).all()
    assert factorised.action.sum() < v.action.sum()
    for other in (q, factorised):
        np.testing.assert_allclose(other.state, v.state, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(other.trajectory, v.trajectory, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("phi", "expected"), [
    ("value_baseline", 2 * (50 + 4)), ("factorised_baseline(of='optimal')", 6), ("reward_to_go", (50 + 2) * (50 + 4)),
])  # fmt: skip
def test_gaussian_bandit_in_fifty_dimensions(phi, expected):
    """Published closed forms for r = −‖a‖², a ~ N(0, σ² I): (m + 2)(m + 4), 2 (m + 4) and 6 per coordinate, in units of σ²."""
    m, sigma = 50, 0.3
    world = lqg.LinearQuadratic(
        a=torch.zeros(1, 1), b=torch.zeros(1, m), state_cost=torch.zeros(1, 1), action_cost=torch.eye(m),
        noise=torch.zeros(1, 1), initial_mean=torch.zeros(1), initial_covariance=torch.zeros(1, 1),
    )  # fmt: skip
    env = lqg.environment(world, 1)
    policy = Linear(env).double()
    for name, p in policy.named_parameters():
        p.requires_grad_(name == "net.bias")
        p.data.fill_(np.log(sigma) if name == "log_std.value" else 0.0)
    found = gaussian_components(env, policy, phi)
    unit = m * sigma**2
    assert found.action[0] == pytest.approx(expected * unit, rel=1e-9)
    assert found.state[0] == pytest.approx(0.0, abs=1e-9)
    assert found.trajectory[0] == pytest.approx(0.0, abs=1e-9)


def test_what_it_refuses():
    env = lqg.point_mass(3)
    policy = policy_on(env)
    with pytest.raises(varlab.InputError, match="One Φ out of reward_to_go"):
        gaussian_components(env, policy, "total_return")
    with pytest.raises(varlab.InputError, match="covariances across time"):
        gaussian_components(env, policy, make("state_action_control_variate"), cross=True)
    with pytest.raises(varlab.InputError, match="Values for horizon 3"):
        gaussian_components(env, policy, "q_value", values=QuadraticValues.of(lqg.point_mass(4), policy, 1.0))


@torch.no_grad()
def test_products_of_one_step_are_the_diagonal_of_those_of_all():
    env = lqg.environment(system(), 3)
    policy = policy_on(env)
    known = QuadraticValues.of(env, policy, GAMMA)
    whole = GaussianTrajectory.of(env.system, GaussianPolicy.of(policy), 3, known, GAMMA)
    phi = PHI["reward_to_go"](make("reward_to_go"), whole)
    for z in whole.scores():
        np.testing.assert_allclose(variance(z, phi), covariance(z, phi).diagonal(), rtol=1e-10)
        np.testing.assert_allclose(square_products(z, phi), baseline_products(z, phi)[0].diagonal(), rtol=1e-10)
