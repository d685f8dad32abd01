"""Exact moments on linear systems: against product quadrature, dense set partitions, finite differences and simulation."""

import math

import numpy as np
import pytest
import torch
from gaussian_quadrature import Paths
from scipy.stats import norm

import varlab
from varlab import estimators, policies
from varlab.checks import InputError
from varlab.envs import geometric, lqg
from varlab.estimators.baselines import Baseline, ConstantBaseline, TimeBaseline
from varlab.oracles.gaussian import PHI, gaussian
from varlab.oracles.quadratic_forms import Forms, Scores, covariance, mean_products
from varlab.types import Reference
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues, expected_return, gradient

#: What has a number to fit takes one here, so that both routes use the same.
CHOICES = [
    *(estimators.make(n) for n in ("total_return", "reward_to_go", "value_baseline", "q_value", "advantage", "td_residual")),
    *(estimators.make("n_step", k=k) for k in (1, 2, 5)), *(estimators.make("gae", lam=x) for x in (0.0, 0.6, 1.0)),
]  # fmt: skip


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(states, actions, horizon, seed, rank=None):
    """A small random system with general matrices, noise of a given rank, and a start of rank one."""
    cost, paid = draw(states, states, seed=seed), draw(actions, actions, seed=seed + 1)
    push, start = draw(states, rank or states, seed=seed + 2), draw(states, 1, seed=seed + 3)
    system = lqg.LinearQuadratic(
        a=0.6 * draw(states, states, seed=seed + 4), b=draw(states, actions, seed=seed + 5), state_cost=cost @ cost.T,
        action_cost=paid @ paid.T, noise=0.3 * push @ push.T, initial_mean=draw(states, seed=seed + 6),
        initial_covariance=0.5 * start @ start.T,
    )  # fmt: skip
    return lqg.environment(system, horizon, "tiny")


def linear(env, seed=0, frozen=()):
    policy = policies.Linear(env).double()
    with torch.no_grad():
        for i, p in enumerate(policy.parameters()):
            p.copy_(0.4 * draw(*p.shape, seed=100 * seed + i))
    for name, p in policy.named_parameters():
        p.requires_grad_(name not in frozen)
    return policy


#: One state and action over two and three steps; two of each, with noise of rank one, over two.
WORLDS = {"1x1 H=2": (1, 1, 2, 1), "1x1 H=3": (1, 1, 3, 2), "2x2 H=2": (2, 2, 2, 3, 1)}


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    env = tiny(*WORLDS[request.param])
    policy = linear(env)
    return env, policy, Paths(env.system, policy, env.horizon)


def wrong(values, seed=7):
    """Quadratic values that have nothing to do with the policy, not even 0 at t = H, which no Φ may read."""
    fields = [f for f in QuadraticValues.__dataclass_fields__ if f not in ("source", "steps")]
    made = {f: draw(*getattr(values, f).shape, seed=seed + i) for i, f in enumerate(fields)}
    for name in ("v_hessian", "q_hessian"):
        made[name] = made[name] + made[name].transpose(1, 2)
    return QuadraticValues(**made, source="wrong")


def agree(found, expected, tolerance=1e-10):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize(("gamma", "weighted"), [(1.0, True), (0.8, True), (0.8, False)])
@pytest.mark.parametrize("known", ["exact", "wrong"])
def test_mean_and_variance_are_those_of_quadrature(world, gamma, weighted, known):
    env, policy, paths = world
    values = QuadraticValues.of(env, policy, gamma)
    values = wrong(values) if known == "wrong" else values
    found = gaussian(env, policy, CHOICES, gamma=gamma, discount_weighting=weighted, values=values)
    for i, choice in enumerate(CHOICES):
        mean, variance = paths.moments(choice, gamma, weighted, values)
        agree(found.mean[i], mean.numpy())
        agree(found.variance_per_parameter[i], variance.numpy())
        assert found.variance[i] == pytest.approx(float(variance.sum()), rel=1e-10)
    assert found.names == tuple(c.label for c in CHOICES)
    if known == "exact" and weighted:
        agree(found.mean, np.broadcast_to(found.gradient, found.mean.shape))
    assert found.j == pytest.approx(paths.expected_return(gamma), rel=1e-11)


def test_baselines_take_population_values_or_what_was_fitted(world):
    env, policy, paths = world
    g = paths.weight @ estimators.tail_sum(paths.trajectories, paths.trajectories.reward, 0.9).reshape(paths.reward.shape)
    population = [ConstantBaseline(fitted=float(g.mean())), TimeBaseline(fitted=g)]
    other = [ConstantBaseline(fitted=-0.7), TimeBaseline(fitted=torch.arange(env.horizon, dtype=torch.float64))]
    unfitted = gaussian(env, policy, ["constant_baseline", "time_baseline"], gamma=0.9)
    for choices, found in ((population, unfitted), (other, gaussian(env, policy, other, gamma=0.9))):
        for i, choice in enumerate(choices):
            mean, variance = paths.moments(choice, 0.9, True, None)
            agree(found.mean[i], mean.numpy())
            agree(found.variance_per_parameter[i], variance.numpy())


@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_values_are_conditional_means(world, gamma):
    env, policy, paths = world
    values = QuadraticValues.of(env, policy, gamma)
    still = torch.zeros_like(env.system.initial_covariance)
    fields = {k: getattr(env.system, k) for k in env.system.__dataclass_fields__}
    for t in range(env.horizon):
        for i in (0, len(paths.weight) // 3):
            s, a = paths.state[i, t], paths.action[i, t]
            begun = lqg.LinearQuadratic(**{**fields, "initial_mean": s, "initial_covariance": still})
            v = Paths(begun, policy, env.horizon - t).expected_return(gamma)
            q = Paths(begun, policy, env.horizon - t, first_action=a).expected_return(gamma)
            when = torch.tensor([t])
            assert float(values.v(s[None], when)) == pytest.approx(v, rel=1e-10, abs=1e-10)
            assert float(values.q(s[None], a[None], when)) == pytest.approx(q, rel=1e-10, abs=1e-10)
    assert not values.v(paths.state[:, 0], torch.full((len(paths.weight),), env.horizon)).any()
    assert float(expected_return(env, policy, gamma).detach()) == pytest.approx(paths.expected_return(gamma), rel=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_gradient_is_the_derivative_of_j(gamma):
    for env in (lqg.random_system(20, seed=3), lqg.point_mass(30), lqg.random_system(7, seed=1, state_dim=3, action_dim=1)):
        policy = linear(env, seed=2)
        with torch.no_grad():
            policy.net.weight.mul_(0.3)
        found, j = gradient(env, policy, gamma)
        parameters = list(policy.parameters())
        exact = torch.autograd.grad(expected_return(env, policy, gamma), parameters)
        agree(found.numpy(), torch.cat([g.flatten() for g in exact]).numpy())
        step, differences = 1e-5, []
        with torch.no_grad():
            for p in parameters:
                for i in range(p.numel()):
                    ends = []
                    for sign in (1, -1):
                        p.view(-1)[i] += sign * step
                        ends.append(float(expected_return(env, policy, gamma)))
                        p.view(-1)[i] -= sign * step
                    differences.append((ends[0] - ends[1]) / (2 * step))
        np.testing.assert_allclose(found.numpy(), differences, rtol=1e-6, atol=1e-6 * abs(j))


def partitions(items):
    """All partitions of a list into blocks."""
    if not items:
        yield []
        return
    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for i, block in enumerate(rest):
            yield [*rest[:i], [items[0], *block], *rest[i + 1 :]]


def dense_cumulant(forms):
    """κ(X_1, …, X_k) by derivatives of the cumulant generating function, with autograd and no formula for the terms."""
    s = torch.zeros(len(forms), dtype=torch.float64, requires_grad=True)
    a = sum(x * f[0] for x, f in zip(s, forms, strict=True))
    b = sum(x * f[1] for x, f in zip(s, forms, strict=True))
    c = sum(x * f[2] for x, f in zip(s, forms, strict=True))
    inner = torch.eye(len(a), dtype=torch.float64) - 2 * a
    value = c - torch.logdet(inner) / 2 + b @ torch.linalg.solve(inner, b) / 2
    for i in range(len(forms)):
        value = torch.autograd.grad(value, s, create_graph=True)[0][i]
    return float(value.detach())


def dense_moment(forms):
    """E X_1 ⋯ X_k as a sum over all partitions of products of cumulants."""
    return sum(math.prod(dense_cumulant([forms[i] for i in block]) for block in p) for p in partitions(list(range(len(forms)))))


def test_covariances_of_products_against_every_partition():
    """The slow twin: moments of four dense forms over all fifteen partitions, cumulants by differentiating log E exp."""
    n, steps = 4, 2
    a, e, f = draw(steps, n, n, seed=1), draw(steps, n, seed=2), draw(steps, n, seed=3)
    phi = Forms(a + a.transpose(1, 2), draw(steps, n, seed=4), draw(steps, seed=5))
    scores = Scores(e, f, draw(steps, seed=6))
    z = [((torch.outer(e[t], f[t]) + torch.outer(f[t], e[t])) / 2, scores.h[t] * e[t], -(e[t] @ f[t])) for t in range(steps)]
    g = [(phi.a[t], phi.b[t], phi.c[t]) for t in range(steps)]
    means = [dense_moment([z[t], g[t]]) for t in range(steps)]
    agree(mean_products(scores, phi).numpy(), np.array(means))
    slow = [[dense_moment([z[t], g[t], z[u], g[u]]) - means[t] * means[u] for u in range(steps)] for t in range(steps)]
    agree(covariance(scores, phi).numpy(), np.array(slow))


@pytest.mark.parametrize("frozen", [("log_std.value",), ("net.weight",), ("net.bias", "log_std.value")])
def test_frozen_parameters_are_left_out(frozen):
    env = tiny(2, 2, 3, seed=4)
    full, part = gaussian(env, linear(env), ["reward_to_go"]), gaussian(env, linear(env, frozen=frozen), ["reward_to_go"])
    sizes = {name: p.numel() for name, p in linear(env).named_parameters()}
    kept = np.concatenate([np.full(k, name not in frozen) for name, k in sizes.items()])
    np.testing.assert_array_equal(part.mean, full.mean[:, kept])
    np.testing.assert_array_equal(part.variance_per_parameter, full.variance_per_parameter[:, kept])
    np.testing.assert_array_equal(part.gradient, full.gradient[kept])


def test_simulation_agrees_at_horizon_twenty():
    env = lqg.random_system(20, seed=5, spectral_radius=0.8)
    policy = linear(env, seed=3)
    with torch.no_grad():
        policy.net.weight.mul_(0.2)
        policy.log_std.value.fill_(-0.5)
    gamma, n = 0.97, 10_000
    values = QuadraticValues.of(env, policy, gamma)
    choices = [c for c in CHOICES if c.label not in ("n_step(k=1)", "gae(lam=0.0)", "gae(lam=1.0)")]
    truth = gaussian(env, policy, choices, gamma=gamma)
    known = Reference(truth.gradient, None, None, truth.j, "exact", 0, "J_gamma")
    found = varlab.measure(env, policy, choices, n=n, gamma=gamma, values=values, reference=known, dtype="float64", seed=8)
    moments, rows = found.moments, found.summary
    mean = np.einsum("b,bkp->kp", moments.count / n, moments.mean)
    means = (mean - truth.mean) / np.sqrt(truth.variance_per_parameter / n)
    spread = (rows.variance * np.sqrt((rows["kurtosis"] - 1) / n)).to_numpy()
    limit = norm.isf(1e-3 / (2 * (means.size + len(rows))))
    assert np.abs(means).max() < limit and np.abs((rows.variance - truth.variance) / spread).max() < limit
    assert np.abs((rows.variance - 1.5 * truth.variance) / spread).min() > limit, "a wrong variance must be seen"


def test_values_serve_measure_at_every_step(world):
    env, policy, paths = world
    values = QuadraticValues.of(env, policy, 0.9)
    given = values(paths.trajectories, frozenset({"v", "q"}))
    residual = estimators.Batch(paths.trajectories, given, 0.9).td_residual.reshape(paths.reward.shape)
    np.testing.assert_allclose((paths.weight @ residual).numpy(), 0.0, atol=1e-10)
    assert not given.v_last.any() and not given.v_stale.any()
    nothing = values(paths.trajectories, frozenset())
    assert nothing.v is None and nothing.q is None and nothing.source == "exact"


def test_what_has_no_oracle_is_told():
    env = tiny(2, 1, 3, seed=9)
    policy = linear(env)
    with pytest.raises(InputError, match="quadratic in the trajectory.*mine"):
        gaussian(env, policy, Baseline(b=lambda obs, t: obs[:, 0], called="mine"))
    with pytest.raises(InputError, match="Linear policy.*came MLP"):
        gaussian(env, policies.MLP(env, hidden=(4,)), "reward_to_go")
    with pytest.raises(InputError, match="without random termination"):
        gaussian(geometric.with_termination(env, 0.9), policy, "reward_to_go")
    with pytest.raises(InputError, match="linear-quadratic-Gaussian environment.*CartPole"):
        gaussian(varlab.envs.make("CartPole-v1"), policy, "reward_to_go")
    with pytest.raises(InputError, match="Values for horizon 3.*for 5"):
        gaussian(env, policy, "reward_to_go", values=QuadraticValues.of(lqg.environment(env.system, 5), policy, 1.0))
    with pytest.raises(InputError, match="gamma must lie"):
        gaussian(env, policy, "reward_to_go", gamma=1.1)
    assert set(PHI) <= set(estimators.REGISTRY)
    assert GaussianPolicy.of(policy).free == ("weight", "bias", "log_std")
