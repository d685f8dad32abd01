"""Environments run one instance per episode: no length bias, seeds, bounds, and bad numbers that are named."""

import gymnasium
import numpy as np
import pytest
import torch
from registered_worlds import Bad
from scipy.stats import binomtest

from varlab import envs, policies, rng
from varlab.checks import InputError
from varlab.layout import Layout
from varlab.rollout import parts, rollout
from varlab.types import Trajectories

STREAMS = rng.Streams(2)


def coin(env):
    return policies.make("linear", env, scale=0.0)


def no_length_bias(lengths):
    """Whether lengths of 1 and 200 come equally often, as a binomial test at 1e-3 (and so the mean is 100.5)."""
    assert set(lengths) == {1, 200}
    n, long = len(lengths), lengths.count(200)
    limit = 3.3 * 199 / 2 / n**0.5
    assert np.mean(lengths) == 1 + 199 * long / n
    return binomtest(long, n).pvalue > 1e-3 and abs(np.mean(lengths) - 100.5) < limit


def first_to_finish(env_id, n, slots, seed=0):
    """What varlab must not do: keep ``slots`` environments busy and take the first n episodes that finish."""
    worlds = [gymnasium.make(env_id) for _ in range(slots)]
    for i, world in enumerate(worlds):
        world.reset(seed=seed + i)
    length, taken = [0] * slots, []
    while len(taken) < n:
        for i, world in enumerate(worlds):
            *_, end, _, _ = world.step(0)
            length[i] += 1
            if end:
                taken.append(length[i])
                length[i] = 0
                world.reset()
    return taken[:n]


def test_episodes_of_1_or_200_steps_show_no_length_bias():
    env, n = envs.make("TestOneOrLong-v0", horizon=300), 800
    made = [t for _, t in parts(env, coin(env), Layout(n, 3, 150), STREAMS, "rollout")]
    traj = Trajectories.join(made)
    assert len(traj) == n and bool(traj.terminated.all())
    assert no_length_bias(traj.length.tolist())
    assert all(len({*t.length.tolist()}) == 2 for t in made)


def test_the_first_to_finish_sampler_fails_the_same_check():
    assert not no_length_bias(first_to_finish("TestOneOrLong-v0", 800, 500))


def test_exactly_n_episodes_whatever_their_length():
    env = envs.make("TestOneOrLong-v0", horizon=200, long=3)
    for n in (1, 2, 255, 300):
        traj = rollout(env, coin(env), n, STREAMS.sequence("rollout"))
        assert len(traj) == len(traj.last_obs) == len(traj.terminated) == n


@pytest.mark.parametrize("name", ["Pendulum-v1", "Acrobot-v1"])
def test_every_episode_equals_a_plain_gymnasium_loop(name):
    env = envs.make(name, horizon=25)
    traj = rollout(env, policies.make("mlp", env), 4, STREAMS.sequence("rollout"))
    world, _ = rng.children(STREAMS.sequence("rollout"), 2)
    single = gymnasium.make(name)
    for i, seed in enumerate(world.generate_state(4, np.uint64)):
        rows = slice(int(traj.offsets[i]), int(traj.offsets[i + 1]))
        obs, _ = single.reset(seed=int(seed))
        for o, a, r in zip(traj.obs[rows], traj.action[rows], traj.reward[rows], strict=True):
            assert np.array_equal(o.numpy(), obs)
            a = int(a) if env.discrete_actions else np.clip(a.numpy(), single.action_space.low, single.action_space.high)
            obs, reward, *_ = single.step(a)
            assert float(r) == float(reward)
        assert np.array_equal(traj.last_obs[i].numpy(), obs)


def test_an_instance_used_again_forgets():
    env = envs.make("Pendulum-v1", horizon=6)
    simulator, policy = env.make_simulator(torch.device("cpu")), coin(env)
    for part in (0, 1, 0):
        sequence = STREAMS.sequence("rollout", 0, part)
        again = rollout(env, policy, 3 + part, sequence, simulator=simulator)
        fresh = rollout(env, policy, 3 + part, sequence)
        assert torch.equal(again.obs, fresh.obs) and torch.equal(again.reward, fresh.reward)


def test_box_actions_are_clipped_for_the_world_alone():
    env = envs.make("TestEcho-v0", horizon=20)
    traj = rollout(env, policies.make("linear", env, log_std=1.5), 50, STREAMS.sequence("rollout"))
    low, high = torch.tensor([-1.0, -0.5]), torch.tensor([1.0, 2.0])
    outside = ((traj.action < low) | (traj.action > high)).any(1)
    assert 0.3 < float(outside.double().mean()) < 1
    torch.testing.assert_close(traj.reward, traj.action.clamp(low, high).double().sum(1), rtol=0, atol=1e-12)


def test_a_reward_is_one_number():
    env = envs.make("TestArrayReward-v0", horizon=3)
    assert rollout(env, coin(env), 2, STREAMS.sequence("rollout")).reward.tolist() == [1.0, 2.0, 3.0] * 2
    env = envs.make("TestArrayReward-v0", horizon=3, size=2)
    with pytest.raises(InputError, match="One number as reward was expected from TestArrayReward-v0"):
        rollout(env, coin(env), 2, STREAMS.sequence("rollout"))


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("trajectory", "step"), [(0, 1), (4, 3), (2, 0)])
def test_bad_numbers_are_named_with_world_trajectory_and_step(what, value, trajectory, step, monkeypatch):
    monkeypatch.setattr(Bad, "begun", 0)
    env = envs.make("TestBad-v0", horizon=6, what=what, value=value, trajectory=trajectory, step=step)
    sentence = rf"A finite {what} was expected from TestBad-v0, but trajectory {trajectory} gave .* at step {step};"
    with pytest.raises(InputError, match=sentence):
        for _ in parts(env, coin(env), Layout(6, 2, 2), STREAMS, "rollout"):
            pass


@pytest.mark.parametrize("ends_at", [None, 4])
def test_a_bad_observation_after_the_last_step_is_named_too(ends_at, monkeypatch):
    monkeypatch.setattr(Bad, "begun", 0)
    env = envs.make("TestBad-v0", horizon=ends_at or 4, what="observation", trajectory=1, step=4, ends_at=ends_at)
    with pytest.raises(
        InputError, match="A finite observation was expected from TestBad-v0, but trajectory 1 gave .* at step 4;"
    ):
        rollout(env, coin(env), 3, STREAMS.sequence("rollout"))


def test_huge_but_finite_numbers_pass(monkeypatch):
    monkeypatch.setattr(Bad, "begun", 0)
    env = envs.make("TestBad-v0", horizon=3, value=1.7e308, trajectory=0, step=1)
    assert float(rollout(env, coin(env), 2, STREAMS.sequence("rollout")).reward.max()) == 1.7e308
