"""Episodes of a group begin in one state and share nothing else; groups of one leave every number as it was."""

import gymnasium
import numpy as np
import pytest
import torch
from registered_worlds import World
from scipy.stats import chisquare

from varlab import envs, policies, rng
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.envs.finite import FiniteMDP
from varlab.layout import Layout
from varlab.rollout import parts, rollout

STREAMS = rng.Streams(3)
SEED = STREAMS.sequence("rollout")
CPU = torch.device("cpu")


class NoisyWalk(World):
    """A start and steps from np_random; ``outside`` keeps a further generator, ``loose`` counts the starts of all."""

    begun = 0

    def __init__(self, outside=None, loose=False):
        self.outside, self.loose = outside, loose

    def reset(self, *, seed=None, options=None):
        out = super().reset(seed=seed)
        self.at = self.np_random.normal()
        if self.loose:
            NoisyWalk.begun += 1
            self.at += NoisyWalk.begun
        if self.outside == "numpy":
            self.noise = np.random.default_rng(seed)
        if self.outside == "inside":
            self.holder = type("Holder", (), {})()
            self.holder.noise = torch.Generator().manual_seed(0)
        return self.see(), out[1]

    def see(self):
        return np.array([getattr(self, "at", 0.0)], dtype=np.float32)

    def step(self, action):
        self.t += 1
        self.at += self.np_random.normal()
        return self.see(), self.at, False, False, {}


gymnasium.register("TestNoisyWalk-v0", entry_point=NoisyWalk)


def mixed():
    """Starts and outcomes at random, from the same few states."""
    p = torch.full((4, 2, 3), 1 / 3, dtype=torch.float64)
    to = torch.randint(4, (4, 2, 3), generator=torch.Generator().manual_seed(1))
    return envs.environment(FiniteMDP(p, to, to.double(), torch.zeros_like(to).bool(), [0.25] * 4), 8)


WORLDS = {
    "finite": mixed,
    "LQG": lambda: lqg.random_system(6, seed=1),
    "CartPole": lambda: envs.make("CartPole-v1", horizon=12),
    "Pendulum": lambda: envs.make("Pendulum-v1", horizon=5),
    "toy text one by one": lambda: envs.make("TestDoubledLake-v0", horizon=8),
    "noisy": lambda: envs.make("TestNoisyWalk-v0", horizon=5),
    "with endings": lambda: envs.with_termination(envs.make("Pendulum-v1", horizon=8), 0.8),
}


def first_rows(traj, group):
    return traj.obs[traj.offsets[:-1]].reshape(-1, group, *traj.obs.shape[1:])


@pytest.mark.parametrize("name", WORLDS)
def test_groups_share_their_start_and_only_that(name):
    env = WORLDS[name]()
    policy = policies.make("linear", env)
    traj = rollout(env, policy, 24, SEED, group=4)
    first = first_rows(traj, 4)
    assert bool((first == first[:, :1]).all()), "one start in a group"
    if name != "toy text one by one":  # one start in all
        assert len(first[:, 0].reshape(6, -1).unique(dim=0)) > 1, "others in other groups"
    episodes = [tuple(traj.obs[a:b].flatten().tolist()) for a, b in zip(traj.offsets[:-1], traj.offsets[1:], strict=True)]
    assert len(set(episodes)) > 12, "episodes of a group part (few steps of few values may coincide)"
    again = rollout(env, policy, 24, SEED, group=4)
    assert torch.equal(traj.obs, again.obs) and torch.equal(traj.reward, again.reward)


@pytest.mark.parametrize("name", WORLDS)
def test_a_group_of_one_is_what_it_was(name):
    env = WORLDS[name]()
    obs = [env.make_simulator(CPU).reset(6, SEED, *group) for group in ((), (1,))]
    assert torch.equal(*obs)


@pytest.mark.parametrize("name", ["finite", "LQG", "CartPole"])
def test_starts_of_groups_are_the_draws_of_fewer_episodes(name):
    """ρ_0 is that of single episodes: the same seed gives the same starts, each repeated."""
    env = WORLDS[name]()
    if name == "CartPole":  # Gymnasium draws a whole array; every third column of it is used
        shared, single = env.make_simulator(CPU).reset(12, SEED, 3), env.make_simulator(CPU).reset(12, SEED)[::3]
    else:
        shared, single = env.make_simulator(CPU).reset(12, SEED, 3), env.make_simulator(CPU).reset(4, SEED)
    assert torch.equal(shared, single.repeat_interleave(3, 0))


def test_cartpole_goes_on_from_the_shared_state():
    """The state behind the observation is shared too: with one action for all, episodes of a group stay together."""
    simulator = WORLDS["CartPole"]().make_simulator(CPU)
    simulator.reset(12, SEED, 3)
    for t in range(5):
        obs, *_ = simulator.step(torch.full((12,), t % 2))
        assert bool((obs.view(4, 3, 4) == obs.view(4, 3, 4)[:, :1]).all()) and len(obs.unique(dim=0)) == 4


def test_a_slippery_lake_slips_for_each_episode_of_its_own():
    """Pairs of a group that take one action: where the two get to is independent, by the table of nine combinations."""
    env = envs.make("TestDoubledLake-v0", horizon=1)
    simulator = env.make_simulator(CPU)
    table = np.zeros((16, 16))
    for part in range(8):
        simulator.reset(200, STREAMS.sequence("rollout", 0, part), 2)
        obs, *_ = simulator.step(torch.full((200,), 2))
        np.add.at(table, tuple(obs.view(100, 2).T.numpy()), 1)
    reached = table.sum(1) > 0
    table = table[reached][:, reached]
    assert table.shape == (3, 3) and table.sum() == 800
    assert chisquare(table.ravel(), np.full(9, 800 / 9)).pvalue > 1e-3
    together = np.diag(table.sum(1))  # what one generator for both would give
    assert chisquare(together.ravel(), np.full(9, 800 / 9)).pvalue < 1e-12


def test_noise_after_a_shared_start_is_independent_in_a_group():
    env = envs.make("TestNoisyWalk-v0", horizon=3)
    traj = rollout(env, policies.make("linear", env), 2000, SEED, group=2)
    steps = traj.padded(traj.reward).view(1000, 2, 3)
    start = first_rows(traj, 2)[:, :, 0].double()
    moves = torch.cat([steps[..., :1] - start[..., None], steps.diff(dim=-1)], -1)
    correlation = (moves[:, 0] * moves[:, 1]).mean(0)
    assert float(correlation.abs().max()) < 4 / 1000**0.5 and float(moves.var()) == pytest.approx(1.0, abs=0.1)


def test_endings_are_of_each_episode_too():
    env = envs.with_termination(envs.make("Pendulum-v1", horizon=30), 0.8)
    traj = rollout(env, policies.make("linear", env), 200, SEED, group=2)
    length = traj.length.view(100, 2).double()
    assert float((length[:, 0] != length[:, 1]).double().mean()) > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outside": "numpy"}, "also keeps a generator in NoisyWalk.noise; use self.np_random there, or set shared_start=false"),
        ({"outside": "inside"}, "also keeps a generator in NoisyWalk.holder.noise;"),
        ({"loose": True}, "was expected to begin in one state for one seed, but .*; draw its first state from self.np_random"),
    ],
)
def test_a_world_that_cannot_share_a_start_is_told_so(arguments, message):
    env = envs.make("TestNoisyWalk-v0", horizon=3, **arguments)
    assert len(rollout(env, policies.make("linear", env), 4, SEED)) == 4
    with pytest.raises(InputError, match=message):
        rollout(env, policies.make("linear", env), 4, SEED, group=2)


@pytest.mark.parametrize("name", WORLDS)
def test_groups_are_whole(name):
    with pytest.raises(InputError, match="Whole groups of 4 episodes were expected, but 6 episodes came; give a multiple"):
        WORLDS[name]().make_simulator(CPU).reset(6, SEED, 4)


def test_parts_hold_whole_groups():
    env = mixed()
    made = list(parts(env, policies.make("softmax_table", env), Layout(36, 2, 7, unit=6), STREAMS, "rollout", group=3))
    assert [len(t) for _, t in made] == [6] * 6
    for _, t in made:
        assert bool((first_rows(t, 3) == first_rows(t, 3)[:, :1]).all())
