"""MuJoCo through copies of its data: restored states go on bit for bit. Needs the extra ``mujoco``."""

import copy

import numpy as np
import pytest
import torch

from varlab import envs, policies
from varlab.checks import InputError
from varlab.envs import gymnasium as adapter
from varlab.envs.replay import check_replay
from varlab.envs.snapshots import DeepCopy, MujocoData, form_of
from varlab.estimators import Batch
from varlab.rollout import rollout
from varlab.types import Values
from varlab.values import Cloning

pytest.importorskip("mujoco", reason="pip install 'varlab[mujoco]'")
WORLDS = ("InvertedPendulum-v5", "Hopper-v5", "HalfCheetah-v5", "Ant-v5", "Reacher-v5")
CPU = torch.device("cpu")


def begun(name, steps=15):
    env = adapter.make_unlimited(name)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return env


@pytest.mark.parametrize("name", WORLDS)
def test_restored_data_go_on_bit_for_bit(name):
    env = begun(name)
    form = form_of(env)
    assert isinstance(form, MujocoData)
    saved, actions = form.snapshot(env), [env.action_space.sample() for _ in range(20)]
    other = adapter.make_unlimited(name)
    early = [form.restore(other, saved, 1).step(actions[0])[:3], *(other.step(a)[:3] for a in actions[1:])]
    truth = [env.step(a)[:3] for a in actions]
    late = [form.restore(other, saved, 2).step(actions[0])[:3], *(other.step(a)[:3] for a in actions[1:])]
    for replay in (early, late):
        for ours, theirs in zip(truth, replay, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", WORLDS)
def test_they_pass_the_check(name):
    check_replay(envs.make(name, horizon=30), CPU)


def test_a_deep_copy_starts_afresh_and_is_found_out(monkeypatch):
    env = begun("Hopper-v5")
    assert not np.array_equal(copy.deepcopy(env).unwrapped.data.qpos, env.unwrapped.data.qpos)
    monkeypatch.setattr("varlab.envs.gymnasium.form_of", lambda env: DeepCopy())
    with pytest.raises(InputError, match="Hopper-v5 for values=cloning.*values=critic"):
        check_replay(envs.make("Hopper-v5", horizon=30), CPU)


@pytest.mark.parametrize("name", ("Hopper-v5", "Ant-v5"))
def test_without_noise_every_branch_is_the_episode_itself(name):
    """MuJoCo is deterministic: with almost no noise in the actions V_t and Q_t are the trajectory's own G_t."""
    env = envs.make(name, horizon=6)
    policy = policies.prepare(policies.make("linear", env), torch.float64, CPU)
    policy.log_std.value.data.fill_(-25.0)
    traj = rollout(env, policy, 3, np.random.SeedSequence(0), snapshots=True)
    found, own = Cloning(env, policy, 2)(traj, frozenset("vq")), Batch(traj, Values(), 1.0).reward_to_go
    for value in (found.v, found.q):
        torch.testing.assert_close(value, own, rtol=1e-6, atol=1e-6)
    assert float((found.v[1:] - own[:-1]).abs().min()) > 1e-3
