"""Q as a control variate: what it says of the actions taken is subtracted, its mean over actions is put back as an average.

    g = Σ_t w_t ( z_t Φ_t + Σ_j p_tj z(s_t, a_tj) Q_t(s_t, a_tj) ).

The value function here is V̂_t(s) = Σ_j p_tj Q_t(s, a_tj), from the same nodes: then every correction has mean zero whatever Q
is. At a Gaussian action Q is the polynomial through its nodes (:mod:`varlab.estimators.nodes`), for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from varlab.estimators.base import Batch, register, tail_sum
from varlab.estimators.nodes import NodeEstimator
from varlab.estimators.recursion import Recursion

if TYPE_CHECKING:
    from varlab.oracles.world import World


def taken(batch: Batch, q_nodes: Tensor) -> Tensor:
    """Return Q_t(s_t, a_t) [M] from its values at the nodes, [M, J]."""
    return (batch.traj.nodes.taken * q_nodes).sum(1)


def trajectory_residual(batch: Batch, q_nodes: Tensor) -> Tensor:
    """Return Φ_t = r_t + γ V̂_{t+1}(s_{t+1}) − Q_t(s_t, a_t) + γ Φ_{t+1}, 0 after the end.

    Args:
        batch: what a Φ reads, with nodes.
        q_nodes: [M, J] Q_t at the nodes.

    Returns:
        [M].
    """
    traj = batch.traj
    v = (traj.nodes.weight * q_nodes).sum(1)
    ahead = torch.cat([v[1:], v.new_zeros(1)])
    ahead[traj.last_row] = 0.0  # what follows the last step is inside its reward
    return tail_sum(traj, batch.reward + batch.gamma * ahead - taken(batch, q_nodes), batch.gamma)


@register
@dataclass(frozen=True)
class StateActionControlVariate(NodeEstimator):
    """Φ_t = G_t − Q_t(s_t, a_t) with ψ_tj = Q_t(s_t, a_tj): a control variate for each step alone.

    With exact Q it removes what a_t does to its own step; the return still depends on the later actions. Source: Policy Gradient
    Methods for Reinforcement Learning with Function Approximation and Action-Dependent Baselines (Thomas and Brunskill, 2017).
    """

    name = "state_action_control_variate"
    needs = frozenset({"q"})
    asks = frozenset({"q_nodes"})
    formula = "G_t − Q_t(s_t, a_t), and Σ_a ∇π(a|s_t) Q_t(s_t, a)"
    source = (
        "Policy Gradient Methods for Reinforcement Learning with Function Approximation and Action-Dependent Baselines "
        "(Thomas and Brunskill, 2017)"
    )

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − Q_t(s_t, a_t), [M]."""
        return batch.reward_to_go - taken(batch, self.q_nodes(batch))

    def node_phi(self, batch: Batch) -> Tensor:
        """Return Q_t(s_t, a_tj), [M, J]."""
        return self.q_nodes(batch)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma, subtract=lambda t: world.q[t], expected=lambda t: world.q[t])


@register
@dataclass(frozen=True)
class TrajectoryControlVariate(NodeEstimator):
    """Φ_t = G_t − Q_t(s_t, a_t) − Σ_{k>t} γ^{k−t} (Q_k(s_k, a_k) − V̂_k(s_k)) with ψ_tj = Q_t(s_t, a_tj).

    By Φ_t = r_t + γ V̂_{t+1}(s_{t+1}) − Q_t(s_t, a_t) + γ Φ_{t+1}. The later actions' part in G_t is taken out too, so that with
    exact Q only the noise of the transitions is left in Φ: with deterministic transitions Φ = 0. Source: Trajectory-wise Control
    Variates for Variance Reduction in Policy Gradient Methods (Cheng, Yan, Boots, 2019).
    """

    name = "trajectory_control_variate"
    needs = frozenset({"q"})
    asks = frozenset({"q_nodes"})
    formula = "G_t − Q_t(s_t, a_t) − Σ_{k>t} γ^{k−t} (Q_k(s_k, a_k) − V̂_k(s_k)), and Σ_a ∇π(a|s_t) Q_t(s_t, a)"
    source = "Trajectory-wise Control Variates for Variance Reduction in Policy Gradient Methods (Cheng, Yan, Boots, 2019)"

    def phi(self, batch: Batch) -> Tensor:
        """Return the part of the return that Q does not foresee, [M]."""
        return trajectory_residual(batch, self.q_nodes(batch))

    def node_phi(self, batch: Batch) -> Tensor:
        """Return Q_t(s_t, a_tj), [M, J]."""
        return self.q_nodes(batch)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        going = ~world.mdp.terminated.numpy()

        def local(t: int) -> np.ndarray:
            x = world.reward(t) - world.q[t][:, :, None]
            if t + 1 == world.cut:
                return x
            v = (world.pi * world.q[t + 1]).sum(1)
            return x + world.gamma * going * v[world.next_state]

        return Recursion(local, world.gamma, expected=lambda t: world.q[t])
