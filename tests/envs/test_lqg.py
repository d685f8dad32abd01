"""Linear-quadratic-Gaussian systems as environments: dynamics, rewards, noise, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

import varlab
from varlab import policies, rng, storage
from varlab.checks import InputError
from varlab.envs import geometric, lqg
from varlab.rollout import rollout
from varlab.types import Simulator

SEED = rng.Streams(3).sequence("rollout")
CPU = torch.device("cpu")


def sample(env, n, policy=None, seed=SEED, **kwargs):
    policy = (policy or policies.make("linear", env, theta_seed=1)).double()
    return rollout(env, policy, n, seed, **kwargs)


def zeros(system):
    return torch.zeros(system.state_dim, system.state_dim, dtype=torch.float64)


def test_the_point_mass_is_that_of_the_mirage_paper():
    env = lqg.point_mass()
    system = env.system
    a = np.array([[1, 0, 0.05, 0], [0, 1, 0, 0.05], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(system.a.numpy(), a)
    np.testing.assert_array_equal(system.b.numpy(), np.array([[0, 0], [0, 0], [0.05, 0], [0, 0.05]]))
    np.testing.assert_array_equal(system.state_cost.numpy(), np.eye(4))
    np.testing.assert_array_equal(system.action_cost.numpy(), 0.01 * np.eye(2))
    np.testing.assert_array_equal(system.noise.numpy(), 1e-5 * np.eye(4))
    assert system.initial_mean.tolist() == [3.0, 4.0, 0.5, -0.5] and not system.initial_covariance.any()
    assert env.horizon == 100 and (env.num_features, env.num_actions) == (4, 2) and not env.discrete_actions
    other = lqg.point_mass(7, dim=3, dt=0.1, mass=2.0, state_cost=0.5, action_cost=0.2, noise=0.0)
    assert other.system.state_dim == 6 and other.system.b[3, 0] == pytest.approx(0.05) and not other.system.noise.any()
    assert other.system.initial_mean.tolist() == [3.0] * 3 + [0.5] * 3


def test_a_clock_lets_a_linear_policy_forget_the_state():
    env = lqg.random_system(4, seed=1, state_dim=2, action_dim=1)
    clocked = lqg.with_clock(env)
    first, second = (e.make_simulator(torch.device("cpu")) for e in (env, clocked))
    s, x = (m.reset(5, np.random.SeedSequence(3)) for m in (first, second))
    assert clocked.num_features == 6 and clocked.horizon == 4
    for t in range(4):
        torch.testing.assert_close(x[:, :2].abs() > 0, torch.ones(5, 2, dtype=torch.bool))
        assert x[:, 2:].tolist() == [[float(t == u) for u in range(4)]] * 5
        a = torch.full((5, 1), 0.3 * t, dtype=torch.float64)
        (s, r, _), (x, q, _) = first.step(a), second.step(a)
        assert s.shape == (5, 2) and bool(torch.isfinite(r + q).all())
    for name in ("state_cost", "noise", "initial_covariance"):
        whole, part = getattr(clocked.system, name), getattr(env.system, name)
        torch.testing.assert_close(whole[:2, :2], part)
        assert whole.abs().sum() == pytest.approx(float(part.abs().sum()))
    torch.testing.assert_close(clocked.system.a[:2, :2], env.system.a)
    torch.testing.assert_close(clocked.system.b[:2], env.system.b)


@pytest.mark.parametrize("radius", [0.0, 0.5, 0.99, 1.2])
def test_random_systems_have_the_spectral_radius_asked_for(radius):
    for seed in range(4):
        env = lqg.random_system(5, seed=seed, state_dim=3, action_dim=1, spectral_radius=radius)
        assert env.system.spectral_radius == pytest.approx(radius, abs=1e-10)
        again = lqg.random_system(5, seed=seed, state_dim=3, action_dim=1, spectral_radius=radius)
        assert storage.digest(dict(env.identity)) == storage.digest(dict(again.identity))
    names = {storage.digest(dict(lqg.random_system(5, seed=s, noise=x).identity)) for s in (0, 1) for x in (0.1, 0.2)}
    assert len(names) == 4


def test_without_noise_a_trajectory_follows_the_equations():
    base = lqg.random_system(6, seed=2)
    still = lqg.environment(replace(base.system, noise=zeros(base.system), initial_covariance=zeros(base.system)), 6)
    traj = sample(still, 3)
    assert traj.length.tolist() == [6] * 3 and bool(traj.truncated.all()) and traj.state is None
    system = still.system
    state, action, reward = (traj.padded(x) for x in (traj.obs, traj.action, traj.reward))
    for i in range(3):
        s = system.initial_mean
        for t in range(6):
            a = action[i, t]
            torch.testing.assert_close(state[i, t], s, rtol=1e-12, atol=1e-12)
            paid = -sum(s[j] * system.state_cost[j, k] * s[k] for j in range(4) for k in range(4))
            paid = paid - sum(a[j] * system.action_cost[j, k] * a[k] for j in range(2) for k in range(2))
            torch.testing.assert_close(reward[i, t], paid, rtol=1e-12, atol=1e-12)
            s = system.a @ s + system.b @ a
        torch.testing.assert_close(traj.last_obs[i], s, rtol=1e-12, atol=1e-12)


def test_noise_and_start_have_their_covariances():
    cost = torch.eye(2, dtype=torch.float64)
    push = torch.tensor([[1.0, 0.5], [0.5, 0.25]], dtype=torch.float64)  # rank one
    system = lqg.LinearQuadratic(0.5 * cost, torch.ones(2, 1), cost, torch.eye(1), push, torch.tensor([1.0, -1.0]), 4 * cost)
    traj = sample(lqg.environment(system, 2), 40_000)
    obs = traj.padded(traj.obs)
    start = obs[:, 0] - system.initial_mean
    omega = obs[:, 1] - obs[:, 0] @ system.a.T - traj.padded(traj.action)[:, 0] @ system.b.T
    torch.testing.assert_close(omega[:, 0], 2 * omega[:, 1], rtol=1e-9, atol=1e-9)
    n, z = len(obs), []
    for x, covariance in ((start, system.initial_covariance), (omega, push)):
        for i in range(2):
            z.append(float(x[:, i].mean() / (covariance[i, i] / n).sqrt()))
            for j in range(i + 1):
                spread = ((covariance[i, i] * covariance[j, j] + covariance[i, j] ** 2) / n).sqrt()
                z.append(float(((x[:, i] * x[:, j]).mean() - covariance[i, j]) / spread))
    z.append(float((start * omega).sum(1).mean() / ((4 * 1.25) / n) ** 0.5))  # the start tells nothing of the noise
    assert np.abs(z).max() < norm.isf(1e-3 / (2 * len(z)))


def test_the_simulator_keeps_its_promises():
    env = lqg.random_system(4, seed=0)
    simulator = env.make_simulator(CPU)
    assert isinstance(simulator, Simulator)
    first = simulator.reset(5, SEED)
    _, reward, terminated = simulator.step(torch.zeros(5, 2))
    assert first.shape == (5, 4) and first.dtype == torch.float64 and reward.dtype == torch.float64 and not terminated.any()
    before = simulator.state
    simulator.keep(torch.tensor([True, False, True, False, True]))
    torch.testing.assert_close(simulator.state, before[::2])
    assert torch.equal(simulator.reset(5, SEED), first)
    one, two = sample(env, 8), sample(env, 8)
    assert torch.equal(one.obs, two.obs) and torch.equal(one.reward, two.reward)
    assert not torch.equal(one.obs, sample(env, 8, seed=rng.Streams(4).sequence("rollout")).obs)


def test_random_termination_and_measuring_work_as_for_any_world():
    env = lqg.point_mass(8)
    ended = geometric.with_termination(env, 0.7)
    lengths = sample(ended, 2000).length
    assert lengths.double().mean() == pytest.approx((1 - 0.7**8) / 0.3, abs=0.2)
    rows = varlab.measure(env, policies.make("linear", env), ["total_return", "reward_to_go"], n=200, seed=1).summary
    assert (rows.variance > 0).all() and (rows.exact_variance > 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": torch.eye(3)}, r"a of shape \(2, 2\).*\(3, 3\)"), ({"b": torch.ones(2)}, r"matrix b of shape.*\(2,\)"),
        ({"action_cost": torch.eye(2)}, r"action_cost of shape \(1, 1\)"), ({"initial_mean": torch.ones(3)}, "initial_mean"),
        ({"noise": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "noise without negative eigenvalues"),
        ({"initial_covariance": torch.tensor([[1.0, 0.3], [0.0, 1.0]])}, "symmetric initial_covariance"),
        ({"a": torch.full((2, 2), float("nan"))}, "Finite numbers were expected in a,"),
    ],
)  # fmt: skip
def test_systems_that_cannot_be_are_refused(change, words):
    eye = torch.eye(2)
    good = {"a": eye, "b": torch.ones(2, 1), "state_cost": eye, "action_cost": torch.eye(1), "noise": eye,
            "initial_mean": torch.ones(2), "initial_covariance": eye}  # fmt: skip
    lqg.LinearQuadratic(**good)
    with pytest.raises(InputError, match=words):
        lqg.LinearQuadratic(**{**good, **change})


def test_costs_are_made_symmetric_and_sizes_are_checked():
    eye = torch.eye(2)
    cost = torch.tensor([[1.0, 1.0], [0.0, 2.0]])
    system = lqg.LinearQuadratic(eye, torch.ones(2, 1), cost, torch.eye(1), eye, torch.ones(2), eye)
    assert system.state_cost.tolist() == [[1.0, 0.5], [0.5, 2.0]]
    assert system.reward(torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[3.0]]).double()).item() == -(1 + 2 + 8) - 9
    for wrong in ({"state_dim": 0}, {"action_dim": 1.5}, {"spectral_radius": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            lqg.random_system(3, seed=0, **wrong)
    with pytest.raises(InputError, match="horizon"):
        lqg.point_mass(0)
