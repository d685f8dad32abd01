"""Mean and variance of an estimator as finite sums over every trajectory of a tiny world.

The per-trajectory gradients come from the code that measurements use (scores and estimators); probabilities come from the
outcome lists and the policy's own distribution. No recursion over states occurs here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from finite_worlds import enumerate_paths
from torch import Tensor, nn
from torch.distributions import Categorical

from varlab import policies, scores
from varlab.envs.base import Environment
from varlab.estimators import Batch, Estimator, weight
from varlab.types import Trajectories, Values


class Temperature(nn.Module):
    """A user's policy: parameters out of alphabetical order, of 0 to 2 dimensions, one used twice and one frozen."""

    def __init__(self, num_states: int, num_actions: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.zeta = nn.Parameter(torch.randn(num_states, num_actions, generator=draw, dtype=torch.float64))
        self.cool = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.shift = nn.Parameter(torch.randn(num_actions, generator=draw, dtype=torch.float64))
        self.base = nn.Parameter(torch.randn(num_actions, generator=draw, dtype=torch.float64), requires_grad=False)

    def forward(self, obs: Tensor) -> Categorical:
        return Categorical(logits=self.cool * (self.zeta[obs] + self.base) + self.cool**2 * self.shift)


class Masked(nn.Module):
    """A user's policy that may not take action 1 in state 0; it has fewer parameters than there are pairs (s, a)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.4, -1.1], dtype=torch.float64))

    def forward(self, obs: Tensor) -> Categorical:
        logits = torch.stack([obs * self.weight[0], obs.double().cos() * self.weight[1]], -1)
        forbidden = (obs == 0).unsqueeze(-1) & torch.tensor([False, True])
        return Categorical(logits=logits.masked_fill(forbidden, -torch.inf))


def every_trajectory(env: Environment, policy: nn.Module, cut: int | None = None) -> tuple[Trajectories, Tensor]:
    """Every trajectory of at most ``cut`` steps, and P(τ | θ) [N]."""
    paths = enumerate_paths(env.finite, env.horizon, cut)
    traj = paths.traj
    if env.finite.observations is not None:
        seen = env.finite.observations
        traj = replace(traj, obs=seen[traj.state], last_obs=seen[traj.last_state])
    with torch.no_grad():
        step = policies.log_prob(policy(traj.obs), traj.action)
    chosen = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, step).exp()
    assert abs(float(paths.world @ chosen) - 1) < 1e-12
    return traj, paths.world * chosen


def gradients(policy: nn.Module, traj: Trajectories, weights: Tensor) -> Tensor:
    """g = Σ_t weights_t z_t of every trajectory and Φ, [N, K, P], for weights [M, K]."""
    score_map = scores.make(policy, traj.obs[:4], traj.action[:4])
    out = torch.empty(len(traj), weights.shape[1], score_map.num_parameters, dtype=torch.float64)
    for chunk in traj.chunks(4096):
        phi = (weights[chunk.rows] * chunk.mask.unsqueeze(-1)).transpose(1, 2).contiguous()
        out[chunk.index] = score_map.at(traj.obs[chunk.rows], traj.action[chunk.rows]).apply(phi)
    return out


def averaged_scores(policy: nn.Module, env: Environment, psi: Tensor) -> Tensor:
    """∇_θ Σ_a π(a | s) ψ(s, a) of every state by differentiation, [S, P], for ψ [S, A]."""
    shares = policy(env.finite.seen).probs
    free = [p for p in policy.parameters() if p.requires_grad]
    rows = [torch.autograd.grad((share * f).sum(), free, retain_graph=True) for share, f in zip(shares, psi, strict=True)]
    return torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])


def every_gradient(
    env: Environment,
    policy: nn.Module,
    phi: list[Estimator],
    source: object,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    cut: int | None = None,
    at_cut: str = "bootstrap",
) -> tuple[Tensor, Tensor]:
    """P(τ) [N] and g(τ) [N, K, P]; an estimator with a table ``psi`` [H, S, A] gets Σ_t w_t Σ_a ∇π(a | s_t) ψ_t too."""
    traj, probability = every_trajectory(env, policy, cut)
    found = Values() if source is None else source(traj, frozenset("vq"))
    batch = Batch(traj, found, gamma, at_cut)
    g = gradients(policy, traj, torch.stack([weight(e, batch, discount_weighting) for e in phi], 1))
    for k, e in enumerate(phi):
        if (psi := getattr(e, "psi", None)) is not None:
            tables = torch.stack([averaged_scores(policy, env, x) for x in psi])
            w = gamma ** traj.time.double() if discount_weighting and e.weighted else torch.ones_like(traj.reward)
            g[:, k].index_add_(0, traj.episode, w[:, None] * tables[traj.time, traj.state])
    return probability, g


def moments(*arguments: object, **settings: object) -> tuple[np.ndarray, np.ndarray]:
    """E g and diag Cov g, each [K, P]: Σ_τ P(τ) g(τ), then Σ_τ P(τ) (g(τ) − E g)²; arguments of every_gradient."""
    probability, g = every_gradient(*arguments, **settings)
    mean = torch.einsum("n,nkp->kp", probability, g)
    return mean.numpy(), torch.einsum("n,nkp->kp", probability, (g - mean).square()).numpy()


def fourth_moments(*arguments: object, **settings: object) -> dict[str, np.ndarray]:
    """E ‖g − E g‖⁴, tr Cov g and tr (Cov g)², each [K], as sums over trajectories; arguments of every_gradient."""
    probability, g = every_gradient(*arguments, **settings)
    centred = g - torch.einsum("n,nkp->kp", probability, g)
    covariance = torch.einsum("n,nkp,nkq->kpq", probability, centred, centred)
    found = {
        "fourth": probability @ centred.square().sum(-1).square(),
        "variance": covariance.diagonal(dim1=1, dim2=2).sum(-1),
        "trace_sq": covariance.square().sum((1, 2)),
    }
    return {name: x.numpy() for name, x in found.items()}


def population_constants(env: Environment, policy: nn.Module, gamma: float) -> tuple[float, Tensor]:
    """Σ_τ P Σ_t G_t / Σ_τ P T, and [H] its like for every t, by loops over every uncut trajectory."""
    traj, probability = every_trajectory(env, policy)
    total, alive = np.zeros(env.horizon), np.zeros(env.horizon)
    rows = traj.offsets.tolist()
    for p, first, stop in zip(probability.tolist(), rows[:-1], rows[1:], strict=True):
        reward = traj.reward[first:stop].tolist()
        for t in range(stop - first):
            total[t] += p * sum(gamma ** (u - t) * reward[u] for u in range(t, stop - first))
            alive[t] += p
    return total.sum() / alive.sum(), torch.from_numpy(np.divide(total, alive, out=np.zeros_like(total), where=alive > 0))


def differences(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[K] largest difference of each Φ, relative to its largest entry."""
    return np.abs(found - truth).max(1) / np.maximum(np.abs(truth).max(1), 1e-300)
