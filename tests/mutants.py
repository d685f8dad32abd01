"""Real bugs of the field, written as the buggy code would be, with the worlds that show them and their exact bias.

Both worlds pay at every step and have episodes of every length up to the horizon. What is fitted on, or chosen from, several
trajectories works on units of two consecutive ones, in the enumeration and in the measurement alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from finite_worlds import random_logits, random_mdp
from oracles.enumerated_moments import every_trajectory, gradients
from torch import Tensor, nn

from varlab import envs, rollout
from varlab.envs.base import Environment
from varlab.estimators import Baseline, Batch, Estimator, weight
from varlab.policies import SoftmaxTable
from varlab.types import Trajectories, Values
from varlab.values import ExactValues

UNIT = 2
CUT = 2

right_rollout = rollout.rollout


def small() -> tuple[Environment, nn.Module]:
    """Two states, two actions, H = 3."""
    mdp = random_mdp(4, states=2, actions=2, outcomes=2, ending=0.3)
    env = envs.environment(mdp, 3, "small")
    return env, SoftmaxTable(env, logits=random_logits(104, mdp))


def layered() -> tuple[Environment, nn.Module]:
    """Two states in each of three layers, H = 4; in the last layer, where t ≥ 2, the action has no effect.

    So ∇J has no terms at t ≥ 2, and an estimator that samples two steps and bootstraps with exact values is unbiased.
    """
    mdp = random_mdp(39, states=6, actions=2, outcomes=2, ending=0.3)
    layer = torch.arange(6) // 2
    next_state = mdp.next_state % 2 + 2 * (layer + 1).clamp(max=2)[:, None, None]
    tables = {k: getattr(mdp, k).clone() for k in ("probability", "reward", "terminated")} | {"next_state": next_state}
    for table in tables.values():
        table[4:, 1] = table[4:, 0]
    initial = torch.tensor([0.6, 0.4, 0, 0, 0, 0], dtype=torch.float64)
    env = envs.environment(replace(mdp, initial=initial, **tables), 4, "layered")
    return env, SoftmaxTable(env, logits=random_logits(103, mdp))


def take(traj: Trajectories, index: Tensor) -> Trajectories:
    """The episodes of ``index``, repetitions allowed."""
    length = traj.length[index]
    offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
    rows = torch.arange(int(offsets[-1])) + (traj.offsets[:-1][index] - offsets[:-1]).repeat_interleave(length)
    flat = {k: getattr(traj, k)[rows] for k in ("obs", "action", "reward", "state")}
    single = {k: getattr(traj, k)[index] for k in ("terminated", "truncated", "last_obs", "last_state")}
    return replace(traj, offsets=offsets, **flat, **single)


# The bugs. Those that patch the package have the signature of what they replace.


def td_residual_of_post_step_values(self: Batch) -> Tensor:
    """δ_t with the value of the state *after* step t where V_t(s_t) belongs."""
    v = self.values.v
    after = torch.zeros_like(v)
    after[:-1] = v[1:]
    after[self.traj.last_row] = torch.where(self.traj.terminated, 0.0, self.values.v_last)
    twice = torch.zeros_like(v)
    twice[:-1] = after[1:]
    twice[self.traj.last_row] = 0.0
    return self.reward + self.gamma * twice - after


def reward_without_bootstrap(self: Batch) -> Tensor:
    """A time limit taken for the end of the process: nothing follows the cut, whatever ``at_cut`` says."""
    return self.traj.reward


def reward_with_stale_bootstrap(self: Batch) -> Tensor:
    """V_L(s_{L−1}), the observation that the loop variable still holds, in place of V_L(s_L)."""
    if self.at_cut == "terminal":
        return self.traj.reward
    cut = self.traj.truncated & (self.traj.length < self.traj.horizon)
    reward = self.traj.reward.clone()
    reward[self.traj.last_row[cut]] += self.gamma * self.values.v_stale[cut]
    return reward


def no_discount(self: Batch) -> Tensor:
    """γ^t forgotten."""
    return torch.ones_like(self.traj.reward)


def mean_over(x: Tensor, cell: Tensor) -> Tensor:
    """The mean of x over the rows of the same cell, at every row."""
    size = int(cell.max()) + 1
    return (x.new_zeros(size).index_add(0, cell, x) / torch.bincount(cell, minlength=size).clamp(min=1))[cell]


def time_baseline_of_the_evaluation_data(self: Estimator, batch: Batch) -> Tensor:
    """b_t is the mean of G_t over the very trajectories that it is subtracted from."""
    unit = batch.traj.episode // UNIT
    return batch.reward_to_go - mean_over(batch.reward_to_go, unit * batch.traj.horizon + batch.traj.time)


def user_baseline_of_the_evaluation_data(self: Baseline, batch: Batch) -> Tensor:
    """b is a regression of G_t on one indicator per state, fitted on the very trajectories that it is subtracted from."""
    unit = batch.traj.episode // UNIT
    return batch.reward_to_go - mean_over(batch.reward_to_go, unit * (int(batch.traj.state.max()) + 1) + batch.traj.state)


def first_to_finish(traj: Trajectories) -> Tensor:
    """Of every two episodes begun side by side, the one that finishes first."""
    length = traj.length.view(-1, UNIT)
    return UNIT * torch.arange(len(length)) + length.argmin(1)


def first_to_finish_rollout(env: Environment, policy: nn.Module, n: int, seed: np.random.SeedSequence, **options) -> Trajectories:
    """Begin two episodes for each one wanted and take those that finish first."""
    begun = right_rollout(env, policy, UNIT * n, seed, **options)
    return take(begun, first_to_finish(begun))


@dataclass(frozen=True)
class MeanLogProbability(Estimator):
    """loss = −mean_t(log π(a_t | s_t)) · Σ_t G_t, so that Φ_t = Σ_u G_u / T."""

    name = "mean_log_probability"
    unbiased = "biased"
    formula = "Σ_u G_u / T"
    source = "Gymnasium issue 1336"

    def phi(self, batch: Batch) -> Tensor:
        """Return one number per episode, at each of its steps."""
        return mean_over(batch.reward_to_go, batch.traj.episode)


@dataclass(frozen=True)
class GroupMean(Estimator):
    """Φ_t = R_i − the mean return of the unit, its own included; or of the others alone (Kool et al., 2019)."""

    own: bool
    name = "group_mean"
    formula = "R_i − mean R"
    source = "Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof, Welling, 2019)"

    def phi(self, batch: Batch) -> Tensor:
        """Return R_i less the baseline, at each step."""
        total = batch.reward_to_go[batch.traj.offsets[:-1]]
        group = total.view(-1, UNIT)
        others = (group.sum(1, keepdim=True) - group) / (UNIT - 1)
        baseline = group.mean(1, keepdim=True).expand_as(group) if self.own else others
        return (group - baseline).flatten()[batch.traj.episode]


@dataclass(frozen=True)
class Mutation:
    """One bug.

    Attributes:
        name: what is wrong.
        seen: where it occurred.
        right: the Φ that claims E g = ∇J.
        bias: ‖E g − ∇J‖ / ‖∇J‖ of the bug, exactly.
        wrong: the mutant Φ, where the bug is one.
        patch: (what to replace in the package, by what), where the bug is of the package's own function.
        keep: which of all episodes begun are used, where the bug is one of sampling.
        cut: L, or None.
        gamma: γ.
    """

    name: str
    seen: str
    right: str | Estimator
    bias: float
    wrong: Estimator | None = None
    patch: tuple[str, object] | None = None
    keep: Callable[[Trajectories], Tensor] | None = None
    cut: int | None = None
    gamma: float = 1.0

    def world(self) -> tuple[Environment, nn.Module]:
        """The world and the policy at θ."""
        return small() if self.cut is None else layered()


def enumerated_mean(mutation: Mutation, estimator: Estimator, keep: Callable[[Trajectories], Tensor] | None = None) -> Tensor:
    """E g [P] as a sum over every unit of two trajectories with its probability; nothing is sampled."""
    env, policy = mutation.world()
    traj, p = every_trajectory(env, policy, mutation.cut)
    index = torch.cartesian_prod(*[torch.arange(len(traj))] * UNIT)
    traj, p = take(traj, index.flatten()), p[index].prod(1)
    traj = traj if keep is None else take(traj, keep(traj))
    values = ExactValues.of(env.finite, policy, mutation.gamma, env.horizon)(traj, frozenset("vq"))
    if estimator.fits:  # on other data, as in a measurement
        other = right_rollout(env, policy, 50, np.random.SeedSequence(1))
        estimator = estimator.fit(Batch(other, Values(), mutation.gamma))
    phi = weight(estimator, Batch(traj, values, mutation.gamma), discount_weighting=True)
    g = gradients(policy, traj, phi[:, None])[:, 0]
    return p @ g.view(len(p), -1, g.shape[1]).mean(1)
