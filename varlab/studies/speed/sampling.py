"""Sampling: varlab's batches of episodes beside a Python loop over one environment, in seconds per step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import gymnasium
import torch
from torch import nn

from varlab import envs, policies
from varlab.envs.base import Environment
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies.speed.race import Budget, compare, seconds
from varlab.studies.speed.targets import ONE_ENVIRONMENT, Row
from varlab.workers import Crew, one_thread_each

#: Name → (Gymnasium id, kind of policy).
WORLDS: Mapping[str, tuple[str, str]] = {
    "sampling CartPole-v1, MLP": ("CartPole-v1", "mlp"),
    "sampling FrozenLake-v1, softmax table": ("FrozenLake-v1", "softmax_table"),
    "sampling LQG (point mass), MLP": ("varlab/PointMass-v0", "mlp"),
    "sampling Pendulum-v1, MLP": ("Pendulum-v1", "mlp"),
}


@torch.no_grad()
def one_environment_loop(env: Environment, policy: nn.Module, steps: int) -> int:
    """Step one environment with one observation at a time, as introductory code does.

    Args:
        env: the world, whose Gymnasium id is taken with its own time limit.
        policy: gives a Distribution.
        steps: at least so many environment steps are taken.

    Returns:
        Steps taken, whole episodes.
    """
    made = gymnasium.make(env.name)
    taken = 0
    while taken < steps:
        obs, _ = made.reset(seed=taken)
        over = False
        while not over:
            action = policy(torch.as_tensor(obs).unsqueeze(0)).sample()
            obs, _, terminated, truncated, _ = made.step(action.item() if env.discrete_actions else action[0].numpy())
            over = terminated or truncated
            taken += 1
    made.close()
    return taken


class Sampler:
    """varlab's batches of episodes, one after the other on every core, as a measurement samples its parts.

    Attributes:
        sizes: episodes of a batch to choose among.
    """

    def __init__(self, env: Environment, policy: nn.Module, steps: int, cores: int) -> None:
        """Start the processes.

        Args:
            env: the world.
            policy: gives a Distribution.
            steps: environment steps of one batch, at most about.
            cores: how many batches are under way at a time.
        """
        self.env, self.policy, self.cores, self.blocks = env, policy, cores, itertools.count()
        self.simulator = env.make_simulator(torch.device("cpu"))
        self.crew = Crew(self.batch, cores)
        most = max(1, int(steps * 64 / self.batch((64, next(self.blocks)))))
        self.sizes = tuple(sorted({most, *(n for n in (64, 256, 1024, 4096, 16384, 65536) if n < most)}))[-4:]

    def batch(self, item: tuple[int, int]) -> int:
        """Sample (episodes, block) and return the steps taken."""
        n, block = item
        return rollout(self.env, self.policy, n, Streams(0).sequence("rollout", block), simulator=self.simulator).steps

    def per_step(self, n: int) -> float:
        """Return seconds per step of batches of n episodes, two on each core."""
        taken: list[int] = []
        items = [(n, next(self.blocks)) for _ in range(2 * self.cores)]
        with one_thread_each():
            return seconds(lambda: taken.extend(self.crew.in_order(items))) / sum(taken)


def sampling(budget: Budget, steps: int = 400_000, loop_steps: int = 2000) -> list[Row]:
    """Sample the worlds of :data:`WORLDS`.

    Args:
        budget: repeats.
        steps: environment steps of one batch at most, as in a part of a measurement.
        loop_steps: least steps of the loop.

    Returns:
        One row for each world.
    """
    rows = []
    for work, (name, kind) in WORLDS.items():
        env = envs.make(name)
        policy = policies.make(kind, env)
        sampler = Sampler(env, policy, steps, torch.get_num_threads())
        best = min(sampler.sizes, key=lambda n, s=sampler: min(s.per_step(n) for _ in range(2)))

        def loop(env: Environment = env, policy: nn.Module = policy) -> float:
            taken: list[int] = []
            return seconds(lambda: taken.append(one_environment_loop(env, policy, loop_steps))) / taken[0]

        made = compare(work, lambda n=best, s=sampler: s.per_step(n), {ONE_ENVIRONMENT: loop}, budget.rounds)
        rows += [replace(row, note=f"batches of {best:,} episodes") for row in made]
        sampler.crew.close()
    return rows
