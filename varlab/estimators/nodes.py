"""Estimators that read further actions at the visited states: nodes a_tj with weights p_tj.

    g = Σ_t w_t ( z(s_t, a_t) Φ_t + Σ_j p_tj z(s_t, a_tj) ψ_tj ).

The nodes are all A actions with p_tj = π(a_j | s_t), so that the inner sum is exactly E_a[z(s_t, a) ψ_t(a)]; or, for a diagonal
Gaussian policy of D action dimensions, the m^D points of a Gauss-Hermite product rule, exact for polynomials of degree 2m − 1
in each dimension of a: with ψ quadratic in the action, m = 3 suffices (the score of log σ is quadratic too).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from varlab import checks
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.types import Nodes, Trajectories

#: Most nodes at one step.
MOST_NODES = 1024
#: With two nodes the score of log σ, (a − μ)²/σ² − 1, would be 0 at both.
LEAST = 3
DEFAULT = 5


@dataclass(frozen=True)
class NodeEstimator(Estimator):
    """An estimator with a ψ_tj at the nodes beside Φ_t.

    Attributes:
        nodes: m, Gauss-Hermite nodes in each action dimension; discrete actions are all taken, whatever m.
    """

    nodes: int = DEFAULT

    def __post_init__(self) -> None:
        """Check m."""
        object.__setattr__(self, "nodes", checks.positive_int(f"nodes of {self.name}", self.nodes, LEAST))

    @property
    def label(self) -> str:
        """The name, with m only where it is not the default: on discrete actions it says nothing."""
        return self.name if self.nodes == DEFAULT else super().label

    @abstractmethod
    def node_phi(self, batch: Batch) -> Tensor:
        """Return ψ_tj [M, J] float64 at the nodes of ``batch.traj``."""

    def count(self, env: Environment) -> int:
        """Return J, the nodes of one step.

        Raises:
            InputError: if they are more than :data:`MOST_NODES`.
        """
        if env.discrete_actions:
            return env.num_actions
        count = self.nodes**env.num_actions
        if count > MOST_NODES:
            fits = int(MOST_NODES ** (1 / env.num_actions) + 1e-9)
            mend = f"set nodes={fits}" if fits >= LEAST else "name a Φ that reads only the actions taken"
            raise checks.InputError(
                f"At most {MOST_NODES} nodes at a step were expected for {self.label}, but {self.nodes} in each of the "
                f"{env.num_actions} action dimensions of {env.name} make {count}; {mend}."
            )
        return count


@torch.no_grad()
def with_nodes(policy: nn.Module, traj: Trajectories, m: int) -> Trajectories:
    """Return the trajectories with the nodes of every step.

    Args:
        policy: categorical, or diagonal Gaussian.
        traj: trajectories of M steps and D action dimensions.
        m: Gauss-Hermite nodes in each action dimension.

    Returns:
        The same trajectories with A or m^D nodes.

    Raises:
        InputError: for another distribution.
    """
    distribution = policy(traj.obs)
    inner = distribution.base_dist if type(distribution) is Independent else distribution
    probs = getattr(distribution, "probs", None)
    if probs is not None and probs.dim() == 2 and traj.action.dim() == 1:
        actions = torch.arange(probs.shape[1], device=probs.device)
        return replace(traj, nodes=Nodes(actions.expand(probs.shape), probs.double()))
    if type(inner) is not Normal or inner.loc.dim() != 2:
        raise checks.InputError(
            f"A categorical or diagonal Gaussian policy was expected on {traj.env}, because a Φ integrates over its actions, but "
            f"its distribution is {type(inner).__name__}; name a Φ that reads only the actions taken."
        )
    points, weight = gauss_hermite(m, inner.loc.shape[1])
    noise, weight = points.to(inner.loc), weight.to(inner.loc.device)
    action = inner.loc.unsqueeze(1) + inner.scale.unsqueeze(1) * noise
    return replace(traj, nodes=Nodes(action, weight.expand(traj.steps, -1)))


def gauss_hermite(m: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return points [m^D, D] and weights [m^D] of a product rule for the standard normal distribution."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(m))
    points, weights = (torch.cartesian_prod(*[a] * dims).reshape(-1, dims) for a in (x, w / w.sum()))
    return points, weights.prod(1)


def node_weight(estimator: NodeEstimator, batch: Batch, discount_weighting: bool) -> Tensor:
    """Return w_t p_tj ψ_tj [M, J]: what multiplies the score z(s_t, a_tj).

    Args:
        estimator: the choice of Φ and ψ.
        batch: what it reads, with nodes.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        [M, J] float64.

    Raises:
        InputError: if ψ gave another shape.
    """
    psi, p = estimator.node_phi(batch), batch.traj.nodes.weight
    if psi.shape != p.shape:
        raise checks.InputError(
            f"One ψ_tj for each of the {p.shape[0]} steps and {p.shape[1]} nodes was expected from {estimator.label}, but it "
            f"gave shape {tuple(psi.shape)}; return a tensor [M, J]."
        )
    discounted = discount_weighting and estimator.weighted and batch.gamma != 1.0
    return psi * p * batch.discount.unsqueeze(1) if discounted else psi * p
