"""E_a[z(s, a) | s] of any policy at given states: 0 by the lemma that all baselines rest on, and a check of a policy's code.

A policy whose log_prob is not that of the actions that it takes (clipped actions, exploration on the side, a forgotten
normaliser) fails it. Source of the name expected grad-log-prob lemma: Spinning Up in Deep RL, Part 3 (Achiam, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varlab import policies, scores
from varlab.estimators.nodes import with_nodes
from varlab.types import Trajectories

#: Steps whose nodes are worked on at once.
CHUNK = 2048


@dataclass(frozen=True)
class ExpectedScore:
    """Scores averaged over the actions of each step.

    Attributes:
        mean: [M, P] E_a[z(s_t, a) | s_t].
        size: [M] √E_a[‖z(s_t, a)‖² | s_t].
    """

    mean: Tensor
    size: Tensor

    @property
    def worst(self) -> float:
        """Largest ‖E_a z‖/√E_a‖z‖² of all steps, 0 for a right policy up to rounding."""
        return float((self.mean.norm(dim=1) / self.size.clamp(min=1e-300)).max())


def expected_score(policy: nn.Module, traj: Trajectories, nodes: int = 5, acting: nn.Module | None = None) -> ExpectedScore:
    """Average the scores over actions: a sum over discrete actions, Gauss-Hermite quadrature over diagonal Gaussian ones.

    The score of a Gaussian is a polynomial of degree 2 in the action, so that two nodes in each dimension make the mean exact.

    Args:
        policy: gives a categorical or a diagonal Gaussian distribution; evaluated in float64.
        traj: trajectories whose states are looked at.
        nodes: Gauss-Hermite nodes in each action dimension, at least 3 for an exact ``size``.
        acting: the policy that takes the actions, if it is another than the one whose scores these are.

    Returns:
        Mean and size at every step.
    """
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    other = double if acting is None else policies.prepare(acting, torch.float64, torch.device("cpu"))
    found = with_nodes(other, traj, nodes).nodes
    score_map = scores.make(double, traj.obs[:16], traj.action[:16], traj.env)
    mean, size = [], []
    for rows in torch.arange(traj.steps).split(CHUNK):
        action, weight = found.action[rows], found.weight[rows].double()
        obs = traj.obs[rows].unsqueeze(1).expand(*action.shape[:2], *traj.obs.shape[1:])
        batch = score_map.at(obs, action)
        mean.append(batch.apply(weight.unsqueeze(1))[:, 0].clone())
        size.append((weight * batch.gram().diagonal(dim1=1, dim2=2)).sum(1).sqrt())
    return ExpectedScore(torch.cat(mean), torch.cat(size))
