"""Sampling: varlab's batches of episodes beside a Python loop over one environment, in seconds per step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import gymnasium
import torch
from torch import nn

from varlab import envs, policies
from varlab.envs.base import Environment
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies.speed.race import Budget, compare, seconds
from varlab.studies.speed.targets import ONE_ENVIRONMENT, Row

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


def sampling(budget: Budget, steps: int = 400_000, loop_steps: int = 2000) -> list[Row]:
    """Sample the worlds of :data:`WORLDS`.

    Args:
        budget: repeats.
        steps: environment steps of one batch at most, as in a part of a measurement; the environment's own part if smaller.
        loop_steps: least steps of the loop.

    Returns:
        One row for each world.
    """
    rows = []
    for work, (name, kind) in WORLDS.items():
        env = envs.make(name)
        policy = policies.make(kind, env)
        simulator = env.make_simulator(torch.device("cpu"))
        blocks = itertools.count()

        def sample(n: int, env=env, policy=policy, simulator=simulator, blocks=blocks) -> int:  # noqa: ANN001
            return rollout(env, policy, n, Streams(0).sequence("rollout", next(blocks)), simulator=simulator).steps

        length = sample(64) / 64
        n = max(1, min(env.part_size, int(steps / length)))
        sample(n)
        rows += compare(
            work,
            lambda n=n, sample=sample: _per_step(lambda: sample(n)),
            {ONE_ENVIRONMENT: lambda env=env, policy=policy: _per_step(lambda: one_environment_loop(env, policy, loop_steps))},
            budget.rounds,
        )
    return rows


def _per_step(run) -> float:  # noqa: ANN001
    """Return seconds per step of a call that returns the steps it took."""
    taken = []
    return seconds(lambda: taken.append(run())) / taken[0]
