"""The package's estimators and scores on every trajectory of a small world, so that E g and tr Cov g come without sampling."""

from __future__ import annotations

import copy
import functools

import numpy as np
import torch
from tiny_world import A, H, S, World
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from varlab import estimators, scores, values
from varlab.analysis import reference
from varlab.estimators import Batch, weight
from varlab.policies import log_prob
from varlab.rollout import rollout
from varlab.types import Trajectories, Values

#: Every Φ of the text and of the paper it points to (five steps would be all of these short episodes).
CHOICES = (*(c for c in estimators.SOURCE_TEXT if c != "n_step(k=5)"), "n_step(k=2)", "gae(lam=0.0)", "gae(lam=1.0)")


def close(a: Tensor | float, b: Tensor | float, tolerance: float = 1e-12) -> None:
    """Assert equality to rounding."""
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    torch.testing.assert_close(a, b.expand_as(a), rtol=tolerance, atol=tolerance)


def episodes(world: World, n: int, seed: int = 0, policy: nn.Module | None = None) -> Trajectories:
    """Sample with the package's simulator."""
    return rollout(world.env, policy or world.policy, n, np.random.SeedSequence(seed))


@functools.cache
def batch(world: World, gamma: float = 1.0) -> Batch:
    """All trajectories with exact values: the package's dynamic programming, or the closed form of the Gaussian world."""
    if world.action_values is None:
        source = values.ExactValues.of(world.env.finite, world.policy, gamma, H)
    else:
        source = values.FunctionValues(*world.action_values(world, gamma))
    return Batch(world.traj, source(world.traj, frozenset("vq")), gamma)


def gradients(world: World, phi: Tensor, form: type | None = None) -> Tensor:
    """Σ_t φ_t z_t of every trajectory, [N, P], for φ [M]."""
    traj = world.traj
    score_map = form(world.policy) if form else scores.make(world.policy, traj.obs[:16], traj.action[:16])
    (chunk,) = traj.chunks(len(traj))
    out = torch.empty(len(traj), score_map.num_parameters, dtype=torch.float64)
    padded = (phi[chunk.rows] * chunk.mask).unsqueeze(1)
    out[chunk.index] = score_map.at(traj.obs[chunk.rows], traj.action[chunk.rows]).apply(padded)[:, 0]
    return out


@functools.cache
def g(world: World, phi: str, gamma: float = 1.0, discount_weighting: bool = True) -> Tensor:
    """Gradient of every trajectory under the Φ of a name, [N, P]; fitted baselines take their numbers from other data."""
    estimator = estimators.parse(phi).fit(Batch(episodes(world, 300, seed=9), Values(), gamma))
    return gradients(world, weight(estimator, batch(world, gamma), discount_weighting))


def mean(world: World, *arguments: object) -> Tensor:
    """E g of :func:`g`."""
    return world.mean(g(world, *arguments))


def variance(world: World, *arguments: object) -> float:
    """Tr Cov g of :func:`g`."""
    return world.variance(g(world, *arguments))


def given(world: World, x: Tensor, with_action: bool) -> Tensor:
    """E[x_t | s_t = s, (a_t = a,) t], [H, S] or [H, S, A], over all trajectories."""
    traj, p = world.traj, world.weight[world.traj.episode]
    cell, size = traj.time * S + traj.state, (H, S)
    if with_action:
        cell, size = cell * A + traj.action, (H, S, A)
    total = p.new_zeros(2, int(np.prod(size))).index_add(1, cell, torch.stack([p * x, p]))
    return (total[0] / total[1]).reshape(size)


def log_pi(policy: nn.Module, traj: Trajectories) -> Tensor:
    """Log π(a_t|s_t) [M], differentiable in θ."""
    return log_prob(policy(traj.obs), traj.action)


def weights(phi: str, traj: Trajectories) -> Tensor:
    """Φ_t [M] of an undiscounted Φ that needs no values."""
    return weight(estimators.parse(phi), Batch(traj, Values(), 1.0), True)


def loss(policy: nn.Module, traj: Trajectories, weight_t: Tensor) -> Tensor:
    """−(1/N) Σ_i Σ_t log π(a_t|s_t) weight_t."""
    return -(log_pi(policy, traj) * weight_t).sum() / len(traj)


def g_hat(policy: nn.Module, traj: Trajectories, weight_t: Tensor) -> Tensor:
    """The package's (1/N) Σ_i g_i [P]."""
    score_map = scores.make(policy, traj.obs[:16], traj.action[:16])
    return reference.summed(score_map, traj, weight_t[:, None], torch.float64)[0] / len(traj)


def theta(policy: nn.Module) -> Tensor:
    """A copy of θ [P]."""
    return parameters_to_vector(policy.parameters()).detach().clone()


def moved(policy: nn.Module, step: Tensor) -> nn.Module:
    """A copy of the policy at θ + step."""
    out = copy.deepcopy(policy)
    vector_to_parameters(theta(policy) + step, out.parameters())
    return out


def every_action(world: World) -> tuple[Tensor, Tensor, Tensor]:
    """States [m, ...], every action (or quadrature node) in each of them, and its probability [m, k]."""
    if world.dynamics is not None:
        return torch.arange(S), torch.arange(A).expand(S, A), world.pi().detach()
    x, w = np.polynomial.hermite_e.hermegauss(6)
    noise, p = torch.cartesian_prod(*[torch.as_tensor(x)] * 2), torch.cartesian_prod(*[torch.as_tensor(w / w.sum())] * 2)
    starts = world.traj.obs[world.traj.time == 0].unique(dim=0)
    d = world.policy(starts).base_dist
    return starts, (d.loc[:, None] + d.scale[:, None] * noise).detach(), p.prod(1).expand(2, -1)


def expected_scores(world: World, phi: Tensor | float) -> Tensor:
    """E_a [z φ(s, a)] in each state, [m, P]."""
    s, a, p = every_action(world)
    obs = s[:, None].expand(*a.shape[:2], *s.shape[1:])
    return scores.FactoredScores(world.policy).at(obs, a).apply((p * phi)[:, None])[:, 0]


def j_of(world: World, policy: nn.Module) -> float:
    """J of any policy, by the package's dynamic programming."""
    return float(values.expected_return(world.env.finite, policy, 1.0, H).detach())


def grad_of(world: World, policy: nn.Module) -> Tensor:
    """∇J of any policy, by the package's policy gradient theorem."""
    return values.gradient(world.env.finite, policy, 1.0, H)[0]
