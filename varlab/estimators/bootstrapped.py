"""Φ from temporal differences: the residual δ_t, its k-step sum, and generalised advantage estimation.

All three are discounted sums of δ_t = r_t + γ V_{t+1}(s_{t+1}) − V_t(s_t) that stop at the end of the episode; with k ≥ T
or λ = 1 they telescope to G_t − V_t(s_t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, register, tail_sum
from varlab.estimators.recursion import Recursion
from varlab.values.targets import tail_sums

if TYPE_CHECKING:
    from varlab.oracles.world import World

GAE_PAPER = (
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation (Schulman, Moritz, Levine, Jordan, Abbeel, 2016)"
)


@register
@dataclass(frozen=True)
class TDResidual(Estimator):
    """Φ_t = δ_t = r_t + γ V_{t+1}(s_{t+1}) − V_t(s_t), which is GAE with λ = 0.

    Source: High-Dimensional Continuous Control Using Generalized Advantage Estimation (Schulman et al., 2016).
    """

    name = "td_residual"
    needs = frozenset({"v"})
    unbiased = "given exact values"
    formula = "δ_t = r_t + γ V_{t+1}(s_{t+1}) − V_t(s_t)"
    source = GAE_PAPER

    def phi(self, batch: Batch) -> Tensor:
        """Return δ_t, [M]."""
        return batch.td_residual

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.td_residual, carry=0.0)


@register
@dataclass(frozen=True)
class NStep(Estimator):
    """Φ_t = Σ_{j<k} γ^j r_{t+j} + γ^k V_{t+k}(s_{t+k}) − V_t(s_t) = Σ_{j<k} γ^j δ_{t+j}.

    Past the end of the episode the sums stop. Source: Learning from Delayed Rewards (Watkins, 1989), as written in
    Asynchronous Methods for Deep Reinforcement Learning (Mnih et al., 2016).

    Attributes:
        k: number of rewards.
    """

    k: int = 5
    name = "n_step"
    needs = frozenset({"v"})
    unbiased = "given exact values"
    formula = "Σ_{j<k} γ^j r_{t+j} + γ^k V_{t+k}(s_{t+k}) − V_t(s_t)"
    source = "Asynchronous Methods for Deep Reinforcement Learning (Mnih et al., 2016)"

    def __post_init__(self) -> None:
        """Check k."""
        object.__setattr__(self, "k", checks.positive_int("k of n_step", self.k))

    def phi(self, batch: Batch) -> Tensor:
        """Return the k-step advantage, [M]."""
        if self.k >= int(batch.traj.length.max()):
            return tail_sum(batch.traj, batch.td_residual, batch.gamma)
        delta = batch.traj.padded(batch.td_residual)
        total = delta.clone()
        for _ in range(self.k - 1):  # Horner: y_t ← δ_t + γ y_{t+1}, k − 1 times
            total[:, :-1] = delta[:, :-1] + batch.gamma * total[:, 1:]
            total[:, -1] = delta[:, -1]
        return batch.traj.flat(total)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.td_residual, world.gamma, window=self.k)


@register
@dataclass(frozen=True)
class GAE(Estimator):
    """Φ_t = Σ_l (γλ)^l δ_{t+l}, by A_t = δ_t + γλ A_{t+1}.

    λ = 1 gives G_t − V_t(s_t), unbiased for any V; λ = 0 gives δ_t. Source: High-Dimensional Continuous Control Using
    Generalized Advantage Estimation (Schulman et al., 2016).

    Attributes:
        lam: λ in [0, 1].
    """

    lam: float = 0.95
    name = "gae"
    needs = frozenset({"v"})
    formula = "Σ_l (γλ)^l δ_{t+l}"
    source = GAE_PAPER

    @property
    def unbiased(self) -> str:
        """Whether it needs exact values: only λ = 1 does not."""
        return "always" if self.lam == 1.0 else "given exact values"

    def __post_init__(self) -> None:
        """Check λ."""
        object.__setattr__(self, "lam", checks.in_range("lam of gae", self.lam, 0.0, 1.0))

    def phi(self, batch: Batch) -> Tensor:
        """Return the generalised advantage, [M]."""
        return tail_sum(batch.traj, batch.td_residual, batch.gamma * self.lam)

    @classmethod
    def grid(cls, batch: Batch, members: Sequence[GAE]) -> Tensor:
        """Return the advantages under several λ, [M, k], from the δ_t that all share."""
        lam = torch.tensor([e.lam for e in members], dtype=torch.float64, device=batch.reward.device)
        return tail_sums(batch.traj, batch.td_residual, batch.gamma * lam)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.td_residual, world.gamma * self.lam)
