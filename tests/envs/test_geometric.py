"""Termination with probability 1 − γ: the undiscounted return of the new world is the discounted return of the old one."""

from dataclasses import replace

import pytest
import registered_worlds  # noqa: F401  (importing registers)
import torch
from scipy.stats import chisquare

from varlab import envs, policies, rng, values
from varlab.checks import InputError
from varlab.envs.finite import FiniteSimulator
from varlab.envs.geometric import GeometricSimulator
from varlab.rollout import rollout

STREAMS = rng.Streams(3)


def infinite_horizon(mdp, policy, gamma):
    """J over an infinite horizon: ρ_0 · (I − γ P_π)^{-1} r_π, one linear solve."""
    pi = policy(mdp.seen).probs.detach().double()
    transition = torch.einsum("sa,sax->sx", pi, mdp.transition)
    reward = (pi * mdp.expected_reward).sum(-1)
    return float(mdp.initial @ torch.linalg.solve(torch.eye(mdp.num_states, dtype=torch.float64) - gamma * transition, reward))


@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.97])
@pytest.mark.parametrize(
    ("name", "kwargs", "reward_max"), [("FrozenLake-v1", {}, 1), ("CliffWalking-v1", {"is_slippery": True}, 100)]
)
def test_both_forms_of_the_infinite_horizon_objective_agree(name, kwargs, reward_max, gamma):
    horizon = envs.horizon_for(gamma, reward_max)
    env = envs.make(name, horizon=horizon, **kwargs)
    policy = policies.make("softmax_table", env, theta_seed=1).double()
    ended = envs.with_termination(env, gamma)
    with torch.no_grad():
        discounted = float(values.expected_return(env.finite, policy, gamma, horizon))
        undiscounted = float(values.expected_return(ended.finite, policy, 1.0, horizon))
        ignored = float(values.expected_return(env.finite, policy, 1.0, horizon))
    assert undiscounted == pytest.approx(discounted, abs=1e-10)
    assert undiscounted == pytest.approx(infinite_horizon(env.finite, policy, gamma), abs=1e-6)
    assert abs(undiscounted - ignored) > 1e-3  # the endings are not without effect


def test_gradients_of_both_forms_agree():
    env = envs.make("FrozenLake-v1", horizon=60)
    policy = policies.make("softmax_table", env, theta_seed=1).double()
    one, _ = values.gradient(env.finite, policy, 0.9, 60)
    other, _ = values.gradient(env.finite.with_termination(0.9), policy, 1.0, 60)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def as_general(env):
    """The same world without its tables."""
    mdp = env.finite
    return replace(env, finite=None, make_simulator=lambda device: FiniteSimulator(mdp, device))


def mean_return(traj):
    """Mean of the undiscounted return and its standard error."""
    returns = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, traj.reward)
    return float(returns.mean()), float(returns.std() / len(traj) ** 0.5)


def test_sampled_returns_of_a_general_world_match_the_exact_discounted_objective():
    env, gamma = envs.make("CliffWalking-v1", horizon=150), 0.9
    policy = policies.make("softmax_table", env, theta_seed=3).double()
    general = envs.with_termination(as_general(env), gamma)
    assert isinstance(general.make_simulator(torch.device("cpu")), GeometricSimulator)
    finite = envs.with_termination(env, gamma)
    assert isinstance(finite.make_simulator(torch.device("cpu")), FiniteSimulator)
    with torch.no_grad():
        exact, wrong = (float(values.expected_return(env.finite, policy, g, 150)) for g in (gamma, 0.85))
    for world in (general, finite):
        mean, error = mean_return(rollout(world, policy, 20_000, STREAMS.sequence("rollout")))
        assert abs(mean - exact) < 4 * error < abs(mean - wrong)


def test_lengths_are_geometric():
    env, gamma, n = envs.with_termination(envs.make("TestWorld-v0", horizon=12), 0.8), 0.8, 3000
    traj = rollout(env, policies.make("linear", env), n, STREAMS.sequence("rollout"))
    count = torch.bincount(traj.length, minlength=13)[1:].tolist()

    def law(g):
        return [n * g ** (t - 1) * (1 - g) for t in range(1, 12)] + [n * g**11]

    assert chisquare(count, law(gamma)).pvalue > 1e-3 > chisquare(count, law(0.75)).pvalue
    assert int(traj.truncated.sum()) < count[-1]  # an episode that ends exactly at the horizon is terminated
    mean, error = mean_return(traj)
    exact = sum(gamma**t * (t + 1) for t in range(12))  # the world pays t + 1
    assert abs(mean - exact) < 4 * error


@pytest.mark.parametrize(("gamma", "length"), [(1.0, 7), (0.0, 1)])
def test_gamma_one_never_ends_and_gamma_zero_ends_at_once(gamma, length):
    lists = [[[(1.0, 0, 1.0, False)]]]
    for world in (envs.make("TestWorld-v0", horizon=7), envs.environment(envs.FiniteMDP.from_lists(lists, [1.0]), 7)):
        traj = rollout(envs.with_termination(world, gamma), policies.make("linear", world), 50, STREAMS.sequence("rollout"))
        assert traj.length.tolist() == [length] * 50 and bool((traj.terminated == (gamma == 0.0)).all())


def test_worlds_with_other_endings_are_told_apart():
    env = envs.make("FrozenLake-v1")
    identities = [envs.with_termination(env, g).identity for g in (1.0, 0.9, 0.8)] + [env.identity]
    twice = envs.with_termination(envs.with_termination(env, 0.9), 0.9)
    assert twice.identity["continuation"] == pytest.approx(0.81) and twice.identity != identities[1]
    assert all(identities.count(i) == 1 for i in identities)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_is_a_probability(gamma):
    for world in (envs.make("FrozenLake-v1"), envs.make("CartPole-v1")):
        with pytest.raises(InputError, match="gamma"):
            envs.with_termination(world, gamma)
