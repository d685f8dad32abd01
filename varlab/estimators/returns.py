"""Φ from rewards alone: the total return and the reward-to-go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.recursion import Recursion

if TYPE_CHECKING:
    from varlab.oracles.world import World

SPINNING_UP = "Spinning Up in Deep RL, Part 3: Intro to Policy Optimization (Achiam, 2018)"


@register
@dataclass(frozen=True)
class TotalReturn(Estimator):
    """Φ_t = R_γ(τ) = Σ_u γ^u r_u for every t.

    Its discount is inside R_γ, so that E Σ_t z_t R_γ = ∇J_γ with either weighting. Source: Simple Statistical
    Gradient-Following Algorithms for Connectionist Reinforcement Learning (Williams, 1992).
    """

    name = "total_return"
    weighted = False
    formula = "R_γ = Σ_u γ^u r_u"
    source = "Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning (Williams, 1992)"

    def phi(self, batch: Batch) -> Tensor:
        """Return R_γ repeated over the episode, [M]."""
        first = batch.traj.offsets[:-1]
        return batch.reward_to_go[first][batch.traj.episode]

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma, total=True)


@register
@dataclass(frozen=True)
class RewardToGo(Estimator):
    """Φ_t = G_t = Σ_{u ≥ t} γ^{u−t} r_u, by G_t = r_t + γ G_{t+1}. Source: Spinning Up, Part 3 (Achiam, 2018)."""

    name = "reward_to_go"
    formula = "G_t = Σ_{u≥t} γ^{u−t} r_u"
    source = SPINNING_UP

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t, [M]."""
        return batch.reward_to_go

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma)
