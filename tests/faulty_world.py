"""An environment that fails on demand: it raises, hangs, leaves, dies or pays NaN at the third step of an episode."""

import os
import signal
import sys
import time

import gymnasium
import numpy as np

ID = "Faulty-v0"


class Faulty(gymnasium.Env):
    """Two actions, one observation, a reward that is the action; ``fault`` names what happens at step 2."""

    def __init__(self, fault="none"):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._see(), {}

    def step(self, action):
        self.time += 1
        reward = float(action)
        if self.time == 3:
            reward = FAULTS[self.fault](reward)
        return self._see(), reward, False, False, {}

    def _see(self):
        return np.array([self.np_random.uniform(-1, 1)], np.float32)


def _raise(reward):
    raise ZeroDivisionError("the world fell over")


def _sleep(reward):
    time.sleep(1e6)


def _spin(reward):
    """Holds the interpreter's lock inside C code, where no signal handler of Python's would ever run."""
    return sum(range(10**15))


FAULTS = {
    "none": lambda reward: reward, "pays_nan": lambda reward: float("nan"), "raise": _raise, "sleep": _sleep, "spin": _spin,
    "exit": lambda reward: sys.exit(7), "kill": lambda reward: os.kill(os.getpid(), signal.SIGKILL),
}  # fmt: skip


def register():
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=Faulty, max_episode_steps=5)
