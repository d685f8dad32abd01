"""Φ from action values: Q_t(s_t, a_t) and the advantage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.recursion import Recursion

if TYPE_CHECKING:
    from varlab.oracles.world import World

THEOREM = (
    "Policy Gradient Methods for Reinforcement Learning with Function Approximation (Sutton, McAllester, Singh, Mansour, 2000)"
)


@register
@dataclass(frozen=True)
class QValue(Estimator):
    """Φ_t = Q_t(s_t, a_t): the mean of G_t given state and action, by the law of iterated expectation.

    Source: Policy Gradient Methods for Reinforcement Learning with Function Approximation (Sutton et al., 2000).
    """

    name = "q_value"
    needs = frozenset({"q"})
    unbiased = "given exact values"
    formula = "Q_t(s_t, a_t)"
    source = THEOREM

    def phi(self, batch: Batch) -> Tensor:
        """Return Q_t(s_t, a_t), [M]."""
        return batch.values.q

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(lambda t: world.q[t][:, :, None], carry=0.0)


@register
@dataclass(frozen=True)
class Advantage(Estimator):
    """Φ_t = A_t = Q_t(s_t, a_t) − V_t(s_t): Q with the value function as baseline.

    Source: Policy Gradient Methods for Reinforcement Learning with Function Approximation (Sutton et al., 2000).
    """

    name = "advantage"
    needs = frozenset({"q", "v"})
    unbiased = "given exact values"
    formula = "Q_t(s_t, a_t) − V_t(s_t)"
    source = THEOREM

    def phi(self, batch: Batch) -> Tensor:
        """Return A_t, [M]."""
        return batch.values.q - batch.values.v

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(lambda t: world.q[t][:, :, None], carry=0.0, subtract=lambda t: world.v[t])
