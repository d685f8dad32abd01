"""Episodes as single steps: a loop over episodes as twin, controllers with a θ each, their cost, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from torch.distributions import Normal

import varlab
from varlab import envs, policies, rng, storage, values
from varlab.checks import InputError
from varlab.envs import closed_form, lqg
from varlab.policies import Controller, ParameterDistribution
from varlab.rollout import rollout
from varlab.types import Trajectories

CPU = torch.device("cpu")
SEED = rng.Streams(3).sequence("rollout")


def linear_world(horizon=4, gamma=0.8):
    """s' = 0.9 s + 0.5 a, s_0 = 1, r = −(s² + 0.1 a²), a = k s + c."""
    one = torch.ones(1, 1, dtype=torch.float64)
    system = lqg.LinearQuadratic(0.9 * one, 0.5 * one, one, 0.1 * one, 0 * one, torch.ones(1), 0 * one)
    env = lqg.environment(system, horizon, "line")
    return envs.parameter_exploring(env, Controller(policies.make("linear", env).double(), env), gamma)


def linear_policy():
    return ParameterDistribution(torch.tensor([-0.4, 0.1], dtype=torch.float64), torch.tensor([0.3, 0.2], dtype=torch.float64))


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
    assert (found.objective[0], found.gamma[0], found.horizon[0]) == ("J_gamma", 0.8, 4)


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
