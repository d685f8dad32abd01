"""PGPE: exact moments by Gauss-Hermite quadrature over θ, closed forms, a loop over episodes as twin, and its cost.

In the exact tests nothing is sampled: the inner worlds have no noise, so that a node θ of the quadrature has one return, a
polynomial in θ. ∇J comes pathwise, through θ = η + τ ζ, which knows no score.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from torch.distributions import Independent, Normal

import varlab
from varlab import envs, policies, rng, scores, storage, values
from varlab.checks import InputError
from varlab.envs import closed_form, lqg
from varlab.estimators import Baseline, Batch, make, weight
from varlab.policies import Controller, ParameterDistribution
from varlab.rollout import rollout
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


# ---- Episodes of any length, a twin by loop, and the cost


def deterministic_mdp(horizon=6):
    """A finite MDP without chance but for its first state; some pairs end the episode."""
    return envs.environment(random_mdp(4, states=5, actions=3, outcomes=1, ending=0.3), horizon, "no chance")


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_each_episode_is_that_of_its_own_theta(gamma):
    """n episodes under n tables as one batch against a loop over episodes that reads the MDP's own tables."""
    env = deterministic_mdp()
    controller = Controller(policies.make("softmax_table", env).double(), env)
    world = envs.parameter_exploring(env, controller, gamma)
    theta = torch.randn(200, controller.num_parameters, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    simulator = world.make_simulator(CPU)
    simulator.reset(200, SEED)
    starts = simulator.inner.state.tolist()
    _, total, end = simulator.step(theta)
    mdp = env.finite
    for i, s in enumerate(starts):
        value, steps = 0.0, 0
        for t in range(env.horizon):
            a = int(theta[i].view(5, 3)[s].argmax())
            value, steps = value + gamma**t * float(mdp.reward[s, a, 0]), steps + 1
            if mdp.terminated[s, a, 0]:
                break
            s = int(mdp.next_state[s, a, 0])
        assert float(total[i]) == pytest.approx(value, rel=1e-13) and int(simulator.spent[i]) == steps
    assert len(set(simulator.spent.tolist())) > 2 and bool(end.all())


@pytest.mark.parametrize(("kind", "env"), [("linear", "CartPole-v1"), ("mlp", "Pendulum-v1"), ("softmax_table", "FrozenLake-v1")])
def test_the_batched_controller_acts_like_a_policy_with_those_parameters(kind, env):
    """θ put into a policy one by one: the same most likely action, or mean and scale."""
    env = envs.make(env)
    policy = policies.make(kind, env, hidden=(5,)).double()
    drawing, greedy = Controller(policy, env, stochastic=True), Controller(policy, env)
    theta = torch.randn(7, drawing.num_parameters, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positions, start = [], 0
    for name, p in policy.named_parameters():
        positions += range(start, start + p.numel()) if name in greedy.shapes else ()
        start += p.numel()
    env.observation_space.seed(0)
    obs = torch.stack([torch.as_tensor(env.observation_space.sample()) for _ in range(7)])
    pairs = ((drawing, theta), (greedy, theta[:, positions]))
    drawn, chosen = (c.act(x, obs, torch.Generator().manual_seed(5)) for c, x in pairs)
    uniform = torch.rand(7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    noise = torch.randn(7, env.num_actions, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for i in range(7):
        torch.nn.utils.vector_to_parameters(theta[i], policy.parameters())
        distribution = policy(obs[i : i + 1])
        if env.discrete_actions:
            probs = distribution.probs[0]
            assert int(chosen[i]) == int(probs.argmax()) and int(drawn[i]) == int((uniform[i] >= probs.cumsum(0)).sum())
        else:
            torch.testing.assert_close(chosen[i], distribution.base_dist.loc[0], rtol=1e-12, atol=1e-12)
            expected = distribution.base_dist.loc[0] + distribution.base_dist.scale[0] * noise[i]
            torch.testing.assert_close(drawn[i], expected, rtol=1e-12, atol=1e-12)


def test_without_noise_log_sigma_is_not_explored():
    env = envs.make("Pendulum-v1")
    policy = policies.make("linear", env)
    assert Controller(policy, env).num_parameters == 4 and Controller(policy, env, stochastic=True).num_parameters == 5
    assert "log_std.value" in Controller(policy, env).fixed


def test_a_stochastic_controller_has_the_mean_return_of_its_thetas():
    """Two arms, logits θ ~ N(η, τ² I): E R = E sigmoid(θ_1 − θ_0), a Gauss-Hermite sum."""
    env = closed_form.two_arms()
    policy = policies.make("parameter_exploring", env, controller="softmax_table", stochastic=True, tau=0.8)
    world = envs.parameter_exploring(env, policy.controller)
    traj = rollout(world, policy, 40_000, SEED)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    gap = float(policy.mean.value.detach().diff())
    expected = float((w / w.sum()) @ (1 / (1 + np.exp(-gap - 0.8 * np.sqrt(2) * x))))
    assert abs(float(traj.reward.mean()) - expected) < 4 * np.sqrt(expected * (1 - expected) / 40_000)
    greedy = policies.make("parameter_exploring", env, controller="softmax_table", tau=0.8)
    sure = rollout(envs.parameter_exploring(env, greedy.controller), greedy, 500, SEED)
    assert torch.equal(sure.reward, (sure.action[:, 1] > sure.action[:, 0]).double())


def test_inner_steps_are_charged():
    env = envs.make("CartPole-v1", horizon=30)
    policy = policies.make("parameter_exploring", env)
    world = envs.parameter_exploring(env, policy.controller)
    traj = rollout(world, policy, 100, SEED)
    assert torch.equal(traj.spent.double(), traj.reward) and traj.steps == 100 < traj.cost == int(traj.reward.sum())
    joined = Trajectories.join([traj, traj])
    assert joined.cost == 2 * traj.cost and traj.to("cpu").cost == traj.cost
    settings = {"n": 100, "pilot": 50, "n_reference": 60, "critic": values.CriticSettings(n=70)}
    found = varlab.measure(world, policy, ["total_return", "constant_baseline"], **settings)
    paid = found.trajectories["return"].sum()
    row = found.summary.set_index("phi")
    assert row.steps["total_return"] == paid == found.steps["rollout"] and found.steps["reference"] > 60 * 5
    assert row.steps["constant_baseline"] == paid + found.steps["critic"] and found.steps["critic"] > 70 * 5
    assert row.efficiency["total_return"] == pytest.approx(1 / (row.variance["total_return"] * paid / 100))
    assert set(row.horizon) == {30} and set(row["cut"]) == {30}


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


def test_groups_of_thetas_begin_in_one_inner_state():
    env = envs.make("varlab/LinearDrift-v0")
    simulator = envs.parameter_exploring(env, Controller(policies.make("linear", env), env)).make_simulator(CPU)
    assert simulator.reset(8, SEED, 4).shape == (8, 1)
    start = simulator.obs.view(2, 4)
    assert bool((start == start[:, :1]).all()) and len(start[:, 0].unique()) == 2


def test_episodes_that_may_end_by_chance_are_charged_too():
    env = envs.make("CartPole-v1", horizon=30)
    policy = policies.make("parameter_exploring", env)
    inside = envs.parameter_exploring(envs.with_termination(env, 0.7), policy.controller)
    around = envs.with_termination(envs.parameter_exploring(env, policy.controller), 0.7)
    short, long = (rollout(world, policy, 200, SEED) for world in (inside, around))
    assert torch.equal(short.spent.double(), short.reward) and torch.equal(long.spent.double(), long.reward)
    assert short.cost < 200 / (1 - 0.7) * 1.2 < long.cost


def test_one_parameter_has_a_digest():
    policy = ParameterDistribution(torch.zeros(1), 0.5)
    assert policy.log_std.value.shape == (1,) and len(storage.digest(policy.state_dict())) == 16


# ---- What is refused


def test_gamma_is_that_of_the_inner_return():
    world, policy = linear_world(), linear_policy()
    with pytest.raises(InputError, match=r"gamma=0\.8 was expected, by which the returns of line .* but gamma=1\.0 came"):
        varlab.measure(world, policy, ["total_return"], n=100)
    with pytest.raises(InputError, match="The objective J_gamma was expected on line"):
        varlab.measure(world, policy, ["total_return"], n=100, gamma=0.8, objectives=["J_gamma", "J_1"])
    found = varlab.measure(world, policy, ["total_return"], n=200, gamma=0.8, pilot=20, n_reference=60).summary
    assert (found.objective[0], found.gamma[0], found.horizon[0]) == ("J_gamma", 0.8, H)


def test_what_cannot_be_a_controller_is_refused():
    env = envs.make("Pendulum-v1")

    class Odd(torch.nn.Module):
        def __init__(self, make):
            super().__init__()
            self.layer, self.make = torch.nn.Linear(3, 1), make

        def forward(self, obs):
            return self.make(self.layer(obs))

    with pytest.raises(InputError, match="diagonal Gaussian controller .* on Pendulum-v1, but its distribution is Laplace"):
        Controller(Odd(lambda x: torch.distributions.Laplace(x, 1.0)), env)
    frozen = policies.make("linear", env)
    frozen.net.requires_grad_(False)
    with pytest.raises(InputError, match="whose actions depend on parameters"):
        Controller(frozen, env)
    looks = Controller(Odd(lambda x: Normal(x if x.sum() > 0 else -x, 1.0)), env)
    with pytest.raises(InputError, match="A controller that runs under torch.func.vmap was expected, but Odd does not"):
        looks.act(torch.zeros(2, 4), torch.zeros(2, 3), torch.Generator())
    for std in (0.0, -1.0, torch.ones(3)):
        with pytest.raises(InputError, match="Positive standard deviations τ were expected"):
            ParameterDistribution(torch.zeros(2), std)
    with pytest.raises(InputError, match="No controller is called 'liner'; the nearest names are linear"):
        policies.make("parameter_exploring", env, controller="liner")


def test_a_bad_observation_of_the_inner_world_is_named():
    """The most likely action of NaN probabilities would be some action, and the return finite."""
    inner = linear_world().inner

    class Broken(lqg.LQGSimulator):
        def step(self, action):
            obs, reward, end = super().step(action)
            return torch.full_like(obs, torch.nan), reward, end

    env = replace(inner, make_simulator=lambda d: Broken(inner.system, d), name="broken")
    simulator = envs.parameter_exploring(env, Controller(policies.make("linear", env), env)).make_simulator(CPU)
    simulator.reset(3, SEED)
    with pytest.raises(InputError, match="A finite observation was expected from broken, but trajectory 0 gave .*nan.* step 1"):
        simulator.step(torch.zeros(3, 2))
