"""Batches of one epoch: a number of episodes, or a quota of environment steps that cuts the last episode.

A batch of N episodes is N independent trajectories, and the mean of their gradients has the property that Φ claims. A quota of
M steps runs one episode after another and cuts the last one at the M-th step. Its number of episodes depends on their lengths,
and what follows the cut is guessed by a rule: the mean over its episodes is another estimator of ∇J, biased even where Φ is
not. Source of the quota: Spinning Up in Deep RL, Vanilla Policy Gradient (Achiam, 2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from varlab.envs.base import Environment
from varlab.layout import Layout
from varlab.rng import Streams
from varlab.rollout import parts, rollout
from varlab.types import Trajectories

#: (name of a stream, epoch) → the trajectories of one batch.
Collect = Callable[[str, int], Trajectories]


def by_episodes(
    env: Environment, policy: nn.Module, streams: Streams, device: torch.device, episodes: int, group: int = 1
) -> Collect:
    """Return a function that samples N episodes, every one begun before its length is known.

    Args:
        env: the world.
        policy: read at every call, so that it may change in between.
        streams: the root seed.
        device: where tensors live.
        episodes: N.
        group: how many consecutive episodes begin in one state.

    Returns:
        (stream, epoch) → N trajectories, independent but for such a start.
    """

    def collect(stream: str, epoch: int) -> Trajectories:
        layout = Layout(episodes, 1, env.part_size, first_block=epoch, unit=group)
        return Trajectories.join([t for _, t in parts(env, policy, layout, streams, stream, device=device, group=group)])

    return collect


def by_steps(env: Environment, policy: nn.Module, streams: Streams, device: torch.device, steps: int) -> Collect:
    """Return a function that samples exactly M steps, as if one episode ran after another and the last were cut at the M-th.

    While r steps are left, ⌊r/H⌋ episodes of at most H steps are sure to be begun, so that they may run side by side: none is
    thrown away, and none is favoured for being short. Arguments and result are those of :func:`by_episodes`, ``steps`` is M.
    """
    simulator = env.make_simulator(device)

    def collect(stream: str, epoch: int) -> Trajectories:
        made: list[Trajectories] = []
        left, episodes = steps, 0
        while left > 0:
            n, seed = min(max(1, left // env.horizon), env.part_size), streams.sequence(stream, epoch, len(made))
            cut = min(env.horizon, left)
            made.append(rollout(env, policy, n, seed, cut=cut, simulator=simulator, device=device, first_trajectory=episodes))
            left, episodes = left - made[-1].steps, episodes + n
        return Trajectories.join(made)

    return collect


def cut_short(traj: Trajectories) -> Tensor:
    """[N] bool, the episodes that sampling ended before the horizon with the process still alive."""
    return traj.truncated & (traj.length < traj.horizon)
