"""Estimators that read further actions at the visited states: nodes a_tj with weights p_tj.

    g = Σ_t w_t ( z(s_t, a_t) Φ_t + Σ_j p_tj z(s_t, a_tj) ψ_tj ).

Discrete actions are all taken, with p_tj = π(a_j | s_t), so that the inner sum is exactly E_a[z(s_t, a) ψ_t(a)]. For a diagonal
Gaussian policy of D action dimensions there are two rules, both made of m Gauss-Hermite nodes a dimension:

- ``product``: all m^D combinations, exact for polynomials of degree 2m − 1 in each dimension of a. With ψ quadratic in the action
  m = 3 suffices (the score of log σ is quadratic too).
- ``coordinate``: a_t with one dimension d at a time replaced by its m nodes, J = D m. The sum over the nodes of d is then the
  mean over a_td given the other dimensions, and Σ_j p_j z(s_t, a_tj) over them is the score without the part of dimension d.

A function f of the action that is known at the nodes of the product rule alone, such as Q, is read off at a_t as the polynomial
through the nodes, Σ_j ℓ_tj f(s_t, a_tj). It has degree m − 1, so that the rule integrates it and its product with any score
exactly: a control variate made of it keeps the mean whatever f is, where f itself would leave the error of the quadrature.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from varlab import checks
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.types import Nodes, Trajectories

#: Most nodes of a product rule at one step.
MOST_NODES = 1024
#: With two nodes the score of log σ, (a − μ)²/σ² − 1, would be 0 at both.
LEAST = 3
DEFAULT = 5
RULES = ("product", "coordinate")


@dataclass(frozen=True)
class NodeEstimator(Estimator):
    """An estimator with a ψ_tj at the nodes beside Φ_t.

    Attributes:
        rule: one of :data:`RULES`.
        nodes: m, Gauss-Hermite nodes in each action dimension; discrete actions are all taken, whatever m.
    """

    rule: ClassVar[str] = "product"
    nodes: int = DEFAULT

    def __post_init__(self) -> None:
        """Check m."""
        object.__setattr__(self, "nodes", checks.positive_int(f"nodes of {self.name}", self.nodes, LEAST))

    @property
    def label(self) -> str:
        """The name with its arguments, m only where it is not the default: on discrete actions it says nothing."""
        fields = [f.name for f in dataclasses.fields(self) if f.repr and (f.name != "nodes" or self.nodes != DEFAULT)]
        arguments = [f"{name}={getattr(self, name)!r}" for name in fields]
        return self.name + (f"({', '.join(arguments)})" if arguments else "")

    @property
    def key(self) -> tuple[str, int]:
        """Rule and m: estimators that agree in them share their nodes."""
        return self.rule, self.nodes

    @abstractmethod
    def node_phi(self, batch: Batch) -> Tensor:
        """Return ψ_tj [M, J] float64 at the nodes of ``batch.traj``."""

    def q_nodes(self, batch: Batch) -> Tensor:
        """Return Q_t(s_t, a_tj), [M, J].

        Raises:
            InputError: if the source of values left it out.
        """
        if batch.values.q_nodes is None:
            raise checks.InputError(
                f"Values q_nodes [M, J] were expected for {self.label}, but the source {batch.values.source} gives none; return "
                "Q at traj.nodes.action where 'q_nodes' is asked for."
            )
        return batch.values.q_nodes

    def count(self, env: Environment) -> int:
        """Return J, the nodes of one step.

        Raises:
            InputError: if those of a product rule are more than :data:`MOST_NODES`.
        """
        if env.discrete_actions:
            return env.num_actions
        if self.rule == "coordinate":
            return self.nodes * env.num_actions
        count = self.nodes**env.num_actions
        if count > MOST_NODES:
            fits = int(MOST_NODES ** (1 / env.num_actions) + 1e-9)
            mend = f"set nodes={fits}" if fits >= LEAST else "name a Φ that reads only the actions taken"
            raise checks.InputError(
                f"At most {MOST_NODES} nodes at a step were expected for {self.label}, but {self.nodes} in each of the "
                f"{env.num_actions} action dimensions of {env.name} make {count}; {mend}."
            )
        return count


@dataclass(frozen=True)
class StateEstimator(NodeEstimator):
    """A node estimator on a finite world with further weights at every pair of state and action, once for each trajectory."""

    @property
    @abstractmethod
    def states(self) -> Tensor:
        """Return what is seen in each state, [S, ...]."""

    @abstractmethod
    def state_phi(self, batch: Batch, weight: Tensor) -> Tensor:
        """Return the weights [N, S, A] float64 of the scores z(s, a) in each trajectory's gradient, for w_t [M]."""


def row_counts(phi: Sequence[Estimator], env: Environment) -> dict[tuple[str, int], int]:
    """Return how many rows of scores some estimators add, at most, to a step: kind of rows → count.

    Args:
        phi: estimators.
        env: the world.

    Returns:
        J for each kind of nodes, and S · A where there are weights at every state.

    Raises:
        InputError: if an estimator cannot have its nodes there.
    """
    counts = {e.key: e.count(env) for e in phi if isinstance(e, NodeEstimator)}
    if env.finite is not None and any(isinstance(e, StateEstimator) for e in phi):
        counts["states", 0] = env.finite.num_states * env.finite.num_actions
    return counts


@torch.no_grad()
def with_nodes(policy: nn.Module, traj: Trajectories, m: int, rule: str = "product") -> Trajectories:
    """Return the trajectories with the nodes of every step.

    Args:
        policy: categorical, or diagonal Gaussian.
        traj: trajectories of M steps and D action dimensions.
        m: Gauss-Hermite nodes in each action dimension.
        rule: one of :data:`RULES`.

    Returns:
        The same trajectories with A, m^D or D m nodes; those of the coordinate rule dimension by dimension.

    Raises:
        InputError: for another distribution.
    """
    distribution = policy(traj.obs)
    inner = distribution.base_dist if type(distribution) is Independent else distribution
    probs = getattr(distribution, "probs", None)
    if probs is not None and probs.dim() == 2 and traj.action.dim() == 1:
        actions = torch.arange(probs.shape[1], device=probs.device).expand(probs.shape)
        taken = (actions == traj.action.unsqueeze(1)).double()
        return replace(traj, nodes=Nodes(actions, probs.double(), taken, rule=rule))
    if type(inner) is not Normal or inner.loc.dim() != 2:
        raise checks.InputError(
            f"A categorical or diagonal Gaussian policy was expected on {traj.env}, because a Φ integrates over its actions, but "
            f"its distribution is {type(inner).__name__}; name a Φ that reads only the actions taken."
        )
    mean, scale = inner.loc, inner.scale
    if rule == "coordinate":
        points, weight = gauss_hermite(m, 1)
        dims = mean.shape[1]
        moved = mean.unsqueeze(2) + scale.unsqueeze(2) * points[:, 0].to(mean)  # [M, D, m]
        action = traj.action.to(mean)[:, None, None].repeat(1, dims, m, 1)
        action.diagonal(dim1=1, dim2=3).copy_(moved.transpose(1, 2))
        weight = weight.to(mean.device).repeat(dims).expand(traj.steps, -1)
        return replace(traj, nodes=Nodes(action.flatten(1, 2), weight, mean=mean, rule=rule))
    points, weight = gauss_hermite(m, mean.shape[1])
    noise, weight = points.to(mean), weight.to(mean.device)
    action = mean.unsqueeze(1) + scale.unsqueeze(1) * noise
    taken = interpolation((traj.action.double() - mean.double()) / scale.double(), m)
    return replace(traj, nodes=Nodes(action, weight.expand(traj.steps, -1), taken, mean))


def gauss_hermite(m: int, dims: int) -> tuple[Tensor, Tensor]:
    """Return points [m^D, D] and weights [m^D] of a product rule for the standard normal distribution."""
    x, w = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(m))
    points, weights = (torch.cartesian_prod(*[a] * dims).reshape(-1, dims) for a in (x, w / w.sum()))
    return points, weights.prod(1)


def interpolation(noise: Tensor, m: int) -> Tensor:
    """Return ℓ_j(ε) [M, m^D] with Σ_j ℓ_j(ε) f(x_j) the polynomial of degree m − 1 in each dimension through f at the points.

    In one dimension ℓ_j(ε) = p_j Σ_{n<m} h_n(x_j) h_n(ε), with h_n the orthonormal Hermite polynomials: the points are the zeros
    of h_m, for which the rule makes them orthonormal too.

    Args:
        noise: [M, D] ε.
        m: points in each dimension.

    Returns:
        float64, in the order of :func:`gauss_hermite`.
    """
    points, weight = (x.to(noise.device) for x in gauss_hermite(m, 1))
    each = torch.stack(_hermite(noise, m), -1) @ (torch.stack(_hermite(points[:, 0], m)) * weight)  # [M, D, m]
    out = each[:, 0]
    for d in range(1, noise.shape[1]):
        out = (out.unsqueeze(2) * each[:, d].unsqueeze(1)).flatten(1)
    return out


def _hermite(x: Tensor, m: int) -> list[Tensor]:
    """Return h_0(x) … h_{m−1}(x), orthonormal under the standard normal distribution."""
    out = [torch.ones_like(x), x]
    for n in range(1, m - 1):
        out.append((x * out[n] - n**0.5 * out[n - 1]) / (n + 1) ** 0.5)
    return out[:m]


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
    return psi * p * step_weight(estimator, batch, discount_weighting).unsqueeze(1)


def step_weight(estimator: Estimator, batch: Batch, discount_weighting: bool) -> Tensor:
    """Return w_t [M]: γ^t with discount weighting, else 1."""
    return batch.discount if discount_weighting and estimator.weighted else torch.ones_like(batch.traj.reward)
