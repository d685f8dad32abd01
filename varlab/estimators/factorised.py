"""A baseline for each action dimension, which sees the other dimensions of the action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, register
from varlab.estimators.nodes import NodeEstimator, gauss_hermite
from varlab.estimators.recursion import Recursion

if TYPE_CHECKING:
    from varlab.oracles.world import World

FORMS = ("mean", "optimal")


@register
@dataclass(frozen=True)
class FactorisedBaseline(NodeEstimator):
    """g = Σ_t w_t Σ_d z_t^(d) (G_t − b_d(s_t, a_t without a_td)), z_t^(d) = ∇ log π_d(a_td | s_t), for π = Π_d π_d.

    In rows, with β_t the mean of b_d over d and a_tdj the action with dimension d moved to its node j:
    Φ_t = G_t − β_t and ψ_tdj = b_d − β_t, because Σ_j p_j z(s_t, a_tdj) = z_t − z_t^(d). Any b_d leaves the mean alone, as
    E[z_t^(d) | s_t, the other dimensions] = 0. From Q, with E over a_td alone:

    - ``mean``: b_d = E Q_t(s_t, a);
    - ``optimal``: b_d = E[ε_d² Q_t(s_t, a)] with ε_d = (a_td − μ_d)/σ_d, that is E[‖z‖² Q]/E‖z‖² with z the score of the mean
      action μ_d: the best where log σ is held fixed, the scores of the dimensions are orthogonal and the episode has one step.

    Discrete actions have one dimension, which leaves b nothing to see but s_t: b = E_a Q, or E[‖z‖² Q]/E‖z‖² with z the score of
    the logits. Source: Variance Reduction for Policy Gradient with Action-Dependent Factorized Baselines (Wu, Rajeswaran, Duan,
    Kumar, Bayen, Kakade, Mordatch, Abbeel, 2018).

    Attributes:
        of: mean or optimal.
    """

    rule: ClassVar[str] = "coordinate"
    of: str = "mean"
    name = "factorised_baseline"
    needs = frozenset({"q"})
    asks = frozenset({"q_nodes"})
    formula = "Σ_d z^(d) (G_t − b_d(s_t, a_t without a_td)) in place of z_t Φ_t"
    source = "Variance Reduction for Policy Gradient with Action-Dependent Factorized Baselines (Wu et al., 2018)"

    def __post_init__(self) -> None:
        """Check both arguments."""
        super().__post_init__()
        checks.one_of("form of factorised_baseline", self.of, FORMS)

    def baselines(self, batch: Batch) -> Tensor:
        """Return b_d(s_t, a_t without a_td), [M, D]."""
        q, nodes = self.q_nodes(batch), batch.traj.nodes
        dims = 1 if nodes.mean is None else nodes.mean.shape[1]
        q = q.unflatten(1, (dims, -1))  # [M, D, m]
        p = nodes.weight.unflatten(1, (dims, -1))
        if self.of == "optimal":
            if nodes.mean is None:
                p = _tilted(p)
            else:
                points, _ = gauss_hermite(self.nodes, 1)
                p = p * points[:, 0].to(p.device) ** 2
        return (_normalised(p) * q).sum(-1)

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − β_t, [M]."""
        return batch.reward_to_go - self.baselines(batch).mean(1)

    def node_phi(self, batch: Batch) -> Tensor:
        """Return b_d − β_t, [M, J], the same at all nodes of a dimension."""
        b = self.baselines(batch)
        return (b - b.mean(1, keepdim=True)).repeat_interleave(batch.traj.nodes.weight.shape[1] // b.shape[1], 1)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates: a finite world has one action dimension."""
        p = torch.from_numpy(world.pi)
        p = _normalised(_tilted(p) if self.of == "optimal" else p).numpy()
        return Recursion(world.reward, world.gamma, subtract=lambda t: (p * world.q[t]).sum(1))


def _tilted(p: Tensor) -> Tensor:
    """Return p ‖z‖² with ‖z‖² = 1 − 2 p_a + Σ_b p_b² of the logits' score at every action, [..., A]."""
    return p * (1 - 2 * p + p.square().sum(-1, keepdim=True))


def _normalised(p: Tensor) -> Tensor:
    """Return p divided by its sum, 0 where nothing is left to weigh."""
    total = p.sum(-1, keepdim=True)
    return p / torch.where(total > 0, total, 1.0)
