"""Small environments registered with Gymnasium: their laws are known by construction."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete


class World(gymnasium.Env):
    """Never ends, pays t + 1 at step t and shows t; every other world here changes one thing."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.see(), {}

    def see(self):
        return np.array([self.t], dtype=np.float32)

    def step(self, action):
        self.t += 1
        return self.see(), float(self.t), False, False, {}


class OneOrLong(World):
    """Lasts 1 or ``long`` steps with equal chance, decided at reset."""

    def __init__(self, long=200):
        self.long = long

    def reset(self, *, seed=None, options=None):
        out = super().reset(seed=seed)
        self.length = 1 if self.np_random.random() < 0.5 else self.long
        return out

    def step(self, action):
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self.t >= self.length, truncated, info


class SelfTruncating(World):
    """Truncates by itself at step ``limit``, once or for ever after; may end at the same step."""

    def __init__(self, limit=5, once=False, ends=False):
        self.limit, self.once, self.ends = limit, once, ends

    def step(self, action):
        obs, reward, *_ = super().step(action)
        due = self.t == self.limit if self.once else self.t >= self.limit
        return obs, reward, self.ends and due, due, {}


class Bad(World):
    """Gives one bad reward or observation: in the ``trajectory``-th episode begun since ``Bad.begun = 0``, at step ``step``."""

    begun = 0

    def __init__(self, what="reward", value=np.nan, trajectory=0, step=0, ends_at=None):
        self.what, self.value, self.trajectory, self.at, self.ends_at = what, value, trajectory, step, ends_at

    def reset(self, *, seed=None, options=None):
        self.number = Bad.begun
        Bad.begun += 1
        return super().reset(seed=seed)

    def see(self):
        bad = self.what == "observation" and self.number == self.trajectory and self.t == self.at
        return np.array([self.value if bad else self.t], dtype=np.float32)

    def step(self, action):
        bad = self.what == "reward" and self.number == self.trajectory and self.t == self.at
        obs, reward, *_ = super().step(action)
        return obs, self.value if bad else reward, self.t == self.ends_at, False, {}


class Echo(World):
    """Pays the sum of the action that reached it, and insists that it lies in the space."""

    action_space = Box(np.array([-1.0, -0.5], np.float32), np.array([1.0, 2.0], np.float32))

    def step(self, action):
        assert self.action_space.contains(action), action
        obs, *_ = super().step(action)
        return obs, float(action.astype(np.float64).sum()), False, False, {}


class ArrayReward(World):
    """Pays an array of ``size`` numbers."""

    def __init__(self, size=1):
        self.size = size

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, np.full(self.size, reward), *rest


class Vectored(World):
    action_space = MultiDiscrete([2, 3])


class Matrix(World):
    action_space = Box(-1.0, 1.0, (2, 2), np.float32)


class Shifted(World):
    action_space = Discrete(2, start=1)


class Scalar(World):
    """A Box observation without any axis."""

    observation_space = Box(-np.inf, np.inf, (), np.float32)

    def see(self):
        return np.float32(self.t)


class DoubledReward(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 2 * reward


WORLDS = (World, OneOrLong, SelfTruncating, Bad, Echo, ArrayReward, Vectored, Matrix, Shifted, Scalar)
for world in WORLDS:
    gymnasium.register(f"Test{world.__name__}-v0", entry_point=world)
gymnasium.register(
    "TestDoubledLake-v0",
    entry_point="gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv",
    max_episode_steps=100,
    additional_wrappers=(DoubledReward.wrapper_spec(),),
)
