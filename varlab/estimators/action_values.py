"""Φ from action values: Q_t(s_t, a_t), the advantage, and all actions at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.nodes import NodeEstimator
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


@register
@dataclass(frozen=True)
class AllAction(NodeEstimator):
    """g = Σ_t w_t Σ_a ∇π(a | s_t) Q_t(s_t, a): the sum over actions in place of the action taken, so Φ_t = 0 and ψ_tj = Q.

    As π z = ∇π, each step is E[z_t Q_t(s_t, a_t) | s_t]: the mean of q_value, without the variance of a_t at its own step. Over
    Gaussian actions the sum is an integral, by Gauss-Hermite quadrature: exact for Q of degree 2m − 3 or less in each dimension
    of a. Source: Mean Actor Critic (Asadi, Allen, Roderick, Mohamed, Konidaris, Littman, 2017) for discrete actions; Expected
    Policy Gradients (Ciosek and Whiteson, 2018) for continuous ones.
    """

    name = "all_action"
    needs = frozenset({"q"})
    asks = frozenset({"q_nodes"})
    unbiased = "given exact values"
    formula = "Σ_a ∇π(a|s_t) Q_t(s_t, a) in place of z_t Φ_t"
    source = (
        "Mean Actor Critic (Asadi, Allen, Roderick, Mohamed, Konidaris, Littman, 2017), Expected Policy Gradients (Ciosek and "
        "Whiteson, 2018)"
    )

    def phi(self, batch: Batch) -> Tensor:
        """Return 0 for the actions taken, [M]."""
        return torch.zeros_like(batch.traj.reward)

    def node_phi(self, batch: Batch) -> Tensor:
        """Return Q_t(s_t, a_tj), [M, J]."""
        return self.q_nodes(batch)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        nothing = np.zeros((*world.pi.shape, 1))
        return Recursion(lambda t: nothing, carry=0.0, expected=lambda t: world.q[t])
