"""A finite world so small that every trajectory can be written down with its probability.

J and ∇J come from that list and automatic differentiation; the package's dynamic programming, estimators and scores appear
nowhere: this is the other route that tests compare with.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import envs, policies
from varlab.types import Trajectories

S, A, H = 3, 2, 3


def mdp_lists(seed: int = 5, shift: float = 0.0) -> tuple[list, list[float]]:
    """Outcomes of every (s, a): two share s' and differ in reward, one goes elsewhere, one ends; all of them pay."""
    rng = np.random.default_rng(seed)
    lists = []
    for s in range(S):
        lists.append([])
        for _ in range(A):
            p, r, to = rng.dirichlet(np.full(4, 3.0)), rng.normal(size=4) + shift, rng.permutation(S)
            lists[s].append(
                [(p[0], to[0], r[0], False), (p[1], to[0], r[1], False), (p[2], to[1], r[2], False), (p[3], to[2], r[3], True)]
            )
    return lists, [0.5, 0.3, 0.2]


def flat(parts: tuple[Tensor, ...] | list[Tensor], lead: int = 0) -> Tensor:
    """One vector of parameters from one tensor per parameter."""
    return torch.cat([p.flatten(lead) for p in parts], -1)


def jacobian(x: Tensor, parameters: list[Tensor]) -> Tensor:
    """∂x_i/∂θ [N, P] by automatic differentiation."""
    return flat(torch.autograd.grad(x, parameters, torch.eye(len(x), dtype=x.dtype), is_grads_batched=True), 1)


def per_episode(traj: Trajectories, x: Tensor) -> Tensor:
    """Σ_t x_t [N]."""
    return x.new_zeros(len(traj)).index_add(0, traj.episode, x)


def rewards_from(traj: Trajectories, first: int | None = None, gamma: float = 1.0, skip: int = 0) -> Tensor:
    """Σ_{u ≥ start} γ^{u−start} r_u at every step t, by loops; start is t + skip, or ``first`` for all t."""
    out, reward = [], traj.reward.tolist()
    for i, j in itertools.pairwise(traj.offsets.tolist()):
        for t in range(j - i):
            start = t + skip if first is None else first
            out.append(sum(gamma ** (u - start) * reward[i + u] for u in range(start, j - i)))
    return torch.tensor(out, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class World:
    """A world, a policy at θ and every trajectory; ``weight`` [N] is P(τ|θ), or the quadrature weight of τ."""

    env: envs.Environment
    policy: nn.Module
    traj: Trajectories
    weight: Tensor
    dynamics: Tensor | None = None  # [N] what ρ_0 and P(s', r|s, a) give to P(τ|θ); None where actions are continuous
    pathwise: Callable[[list[Tensor], float], Tensor] | None = None  # (θ, γ) → R_γ [N] as a function of θ and the noise
    action_values: Callable[[World, float], tuple[Callable, Callable]] | None = None  # γ → V_t(s), Q_t(s, a) in closed form

    @property
    def theta(self) -> list[Tensor]:
        """θ, one tensor per parameter."""
        return list(self.policy.parameters())

    def mean(self, g: Tensor) -> Tensor:
        """E g for any quantity [N, ...] of the trajectories."""
        return torch.tensordot(self.weight, g, 1)

    def variance(self, g: Tensor) -> float:
        """Tr Cov g, for g [N, P]."""
        return float(self.weight @ (g - self.mean(g)).square().sum(1))

    def returns(self, gamma: float = 1.0) -> Tensor:
        """R_γ(τ) [N], by a plain loop."""
        rows = self.traj.offsets.tolist()
        reward = self.traj.reward.tolist()
        total = [sum(gamma**t * r for t, r in enumerate(reward[i:j])) for i, j in itertools.pairwise(rows)]
        return torch.tensor(total, dtype=torch.float64)

    def pi(self) -> Tensor:
        """π_θ(a|s) [S, A], the softmax written out, differentiable in θ."""
        if isinstance(self.policy, policies.SoftmaxTable):
            logits = self.policy.logits.weight
        else:
            (w1, b1, w2, b2), eye = self.theta, torch.eye(S, dtype=torch.float64)
            logits = torch.tanh(eye @ w1.T + b1) @ w2.T + b2
        return logits.exp() / logits.exp().sum(1, keepdim=True)

    def action_probability(self) -> Tensor:
        """Π_t π_θ(a_t|s_t) [N], differentiable in θ."""
        rows = itertools.pairwise(self.traj.offsets.tolist())
        place = torch.tensor([(i, t) for i, (first, stop) in enumerate(rows) for t in range(stop - first)])
        each = torch.ones(len(self.traj), H, dtype=torch.float64)
        return each.index_put(tuple(place.T), self.pi()[self.traj.state, self.traj.action]).prod(1)

    def probability(self) -> Tensor:
        """P(τ|θ) [N], differentiable in θ."""
        return self.dynamics * self.action_probability()

    def performance(self, gamma: float = 1.0) -> Tensor:
        """J(π_θ) = Σ_τ P(τ|θ) R_γ(τ), differentiable in θ: the score function appears nowhere."""
        if self.dynamics is not None:
            return self.probability() @ self.returns(gamma)
        return self.weight @ self.pathwise(self.theta, gamma)

    def policy_gradient(self, gamma: float = 1.0) -> Tensor:
        """∇J [P] by automatic differentiation of :meth:`performance`."""
        return flat(torch.autograd.grad(self.performance(gamma), self.theta))


def record(episodes: list[list[tuple]], last: list, ended: list[bool], horizon: int, finite: bool) -> Trajectories:
    """Episodes [(obs, action, reward), …] as the package's record."""
    steps = [step for episode in episodes for step in episode]
    obs, action = (torch.as_tensor(np.array([s[k] for s in steps])) for k in (0, 1))
    ended, last = torch.tensor(ended), torch.as_tensor(np.array(last))
    return Trajectories(
        obs=obs,
        action=action,
        reward=torch.tensor([s[2] for s in steps], dtype=torch.float64),
        offsets=torch.tensor(np.cumsum([0] + [len(e) for e in episodes])),
        terminated=ended,
        truncated=~ended,
        last_obs=last,
        horizon=horizon,
        state=obs if finite else None,
        last_state=last if finite else None,
    )


def enumerate_all(lists: list, initial: list[float]) -> tuple[Trajectories, Tensor]:
    """Every trajectory of the finite world with ρ_0(s_0) Π P(s_{t+1}, r_t|s_t, a_t)."""
    open_ = [([], s, p) for s, p in enumerate(initial)]
    done = []
    for t in range(H):
        grown = []
        for steps, s, p in open_:
            for a, k in itertools.product(range(A), range(len(lists[s][0]))):
                q, s_next, r, end = lists[s][a][k]
                new = ([*steps, (s, a, r)], int(s_next), p * q)
                if end or t == H - 1:
                    done.append((*new, end))
                else:
                    grown.append(new)
        open_ = grown
    episodes, last, p, ended = map(list, zip(*done, strict=True))
    return record(episodes, last, ended, H, finite=True), torch.tensor(p, dtype=torch.float64)


@functools.cache
def finite(kind: str = "table", theta_seed: int = 0, shift: float = 0.0) -> World:
    """The finite world under a softmax table or a perceptron with four hidden units."""
    lists, initial = mdp_lists(shift=shift)
    env = envs.environment(envs.FiniteMDP.from_lists(lists, initial), H, "tiny")
    name, options = {"table": ("softmax_table", {}), "mlp": ("mlp", {"hidden": (4,)})}[kind]
    policy = policies.prepare(policies.make(name, env, theta_seed=theta_seed, **options), torch.float64, "cpu")
    traj, dynamics = enumerate_all(lists, initial)
    world = World(env, policy, traj, dynamics, dynamics)
    return World(env, policy, traj, world.probability().detach(), dynamics)
