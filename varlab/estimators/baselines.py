"""Φ_t = G_t − b: baselines leave the mean alone because E[z_t | s_t] = 0.

Constants are fitted on the critic stream, never on the data that they are evaluated on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.recursion import Recursion
from varlab.estimators.returns import SPINNING_UP

if TYPE_CHECKING:
    from varlab.oracles.world import World


@register
@dataclass(frozen=True)
class ConstantBaseline(Estimator):
    """Φ_t = G_t − b with b the mean of G_t over the steps of the critic stream.

    Source: Spinning Up, Part 3 (Achiam, 2018).
    """

    name = "constant_baseline"
    fits = True
    formula = "G_t − b, b = mean of G_t"
    source = SPINNING_UP
    fitted: float | None = field(default=None, repr=False)

    def fit(self, batch: Batch) -> ConstantBaseline:
        """Take b from the critic stream."""
        return replace(self, fitted=float(batch.reward_to_go.mean()))

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b, [M]."""
        return batch.reward_to_go - self.fitted

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        b = world.mean_reward_to_go if self.fitted is None else self.fitted
        return Recursion(world.reward, world.gamma, subtract=lambda t: np.full(world.num_states, b))


@register
@dataclass(frozen=True)
class TimeBaseline(Estimator):
    """Φ_t = G_t − b_t with b_t the mean of G_t over the critic stream's episodes alive at t.

    At times that no episode of the critic stream reached, b_t is 0. Source: Reinforcement Learning of Motor Skills with
    Policy Gradients (Peters and Schaal, 2008).
    """

    name = "time_baseline"
    fits = True
    formula = "G_t − b_t, b_t = mean of G_t at time t"
    source = "Reinforcement Learning of Motor Skills with Policy Gradients (Peters and Schaal, 2008)"
    fitted: Tensor | None = field(default=None, repr=False, compare=False)

    def fit(self, batch: Batch) -> TimeBaseline:
        """Take b_t [H] from the critic stream."""
        time, horizon = batch.traj.time, batch.traj.horizon
        total = batch.reward_to_go.new_zeros(horizon).index_add_(0, time, batch.reward_to_go)
        alive = torch.bincount(time, minlength=horizon)
        return replace(self, fitted=total / alive.clamp(min=1))

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b_t, [M]."""
        return batch.reward_to_go - self.fitted[batch.traj.time]

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        b = world.mean_reward_to_go_at if self.fitted is None else self.fitted.cpu().numpy()
        return Recursion(world.reward, world.gamma, subtract=lambda t: np.full(world.num_states, b[t]))


@register
@dataclass(frozen=True)
class ValueBaseline(Estimator):
    """Φ_t = G_t − V_t(s_t), with exact or learned V. Source: Spinning Up, Part 3 (Achiam, 2018)."""

    name = "value_baseline"
    needs = frozenset({"v"})
    formula = "G_t − V_t(s_t)"
    source = SPINNING_UP

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − V_t(s_t), [M]."""
        return batch.reward_to_go - batch.values.v

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma, subtract=lambda t: world.v[t])


@dataclass(frozen=True)
class Baseline(Estimator):
    """Φ_t = G_t − b(s_t) for any function b of observation and time that a user gives.

    It is unbiased because b does not see the action. Source: Spinning Up, Part 3 (Achiam, 2018).

    Attributes:
        b: (obs [M, ...], t [M]) → [M].
        called: name that rows carry.
    """

    b: Callable[[Tensor, Tensor], Tensor] = field(repr=False, default=None)
    called: str = field(repr=False, default="baseline")
    name = "baseline"
    formula = "G_t − b(s_t)"
    source = SPINNING_UP

    @property
    def label(self) -> str:
        """The user's name for b."""
        return self.called

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b(s_t), [M]."""
        b = torch.as_tensor(self.b(batch.traj.obs, batch.traj.time), dtype=torch.float64, device=batch.reward_to_go.device)
        return batch.reward_to_go - b.expand_as(batch.reward_to_go)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma, subtract=lambda t: self._table(world.mdp.seen, t))

    def _table(self, seen: Tensor, t: int) -> np.ndarray:
        b = torch.as_tensor(self.b(seen, torch.full((len(seen),), t)), dtype=torch.float64)
        return b.expand(len(seen)).numpy()
