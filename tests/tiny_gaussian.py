"""A Gaussian world whose expectations are finite sums: s' = F s + G a, r = u·a − |s|² − |a|², two steps, two starts.

The policy is linear with a diagonal Gaussian over two-dimensional actions. Rewards, scores and values are polynomials in the
actions' noise, so five Gauss-Hermite nodes a dimension give means and variances of gradients without error. ∇J comes through
the actions (a = W s + c + σ ε), not through the score.
"""

from __future__ import annotations

import functools
import itertools

import gymnasium
import numpy as np
import torch
from tiny_world import World, record
from torch import Tensor

from varlab import envs, policies

F = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
G = torch.tensor([[0.5, 0.1], [0.0, 0.7]], dtype=torch.float64)
U = torch.tensor([0.6, -0.4], dtype=torch.float64)
STARTS = torch.tensor([[1.0, -0.5], [-0.3, 0.8]], dtype=torch.float64)
START_PROBABILITY = torch.tensor([0.7, 0.3], dtype=torch.float64)


def paid(s: Tensor, a: Tensor) -> Tensor:
    """r(s, a)."""
    return a @ U - s.square().sum(-1) - a.square().sum(-1)


@functools.cache
def nodes() -> tuple[Tensor, Tensor, Tensor]:
    """Starts [N, 2], noise [N, 2, 2] of both steps, weights [N]."""
    x, w = np.polynomial.hermite_e.hermegauss(5)
    noise = torch.tensor(list(itertools.product(x, repeat=4)), dtype=torch.float64).reshape(-1, 2, 2)
    weight = torch.tensor([np.prod(c) for c in itertools.product(w / w.sum(), repeat=4)], dtype=torch.float64)
    m = len(weight)
    return STARTS.repeat_interleave(m, 0), noise.repeat(2, 1, 1), torch.kron(START_PROBABILITY, weight)


def linear_paths(theta: list[Tensor]) -> list[Tensor]:
    """s_0, a_0, s_1, a_1, s_2 at every node."""
    w, c, log_std = theta
    s, noise, _ = nodes()
    out = [s]
    for t in range(2):
        out.append(out[-1] @ w.T + c + log_std.exp() * noise[:, t])
        out.append(out[-2] @ F.T + out[-1] @ G.T)
    return out


def linear_rewards(theta: list[Tensor], gamma: float) -> Tensor:
    """R_γ [N] at every node, differentiable in θ."""
    s0, a0, s1, a1, _ = linear_paths(theta)
    return paid(s0, a0) + gamma * paid(s1, a1)


def linear_values(world: World, gamma: float) -> tuple:
    """V_t(s) and Q_t(s, a) in closed form."""
    w, c, log_std = (p.detach() for p in world.theta)
    cov = G @ torch.diag((2 * log_std).exp()) @ G.T

    def soon(s: Tensor) -> Tensor:
        return paid(s, s @ w.T + c) - (2 * log_std).exp().sum()

    def v(s: Tensor, t: Tensor) -> Tensor:
        onward = soon(s @ F.T + (s @ w.T + c) @ G.T) - torch.trace((torch.eye(2) + w.T @ w) @ cov)
        return torch.where(t < 2, soon(s), 0.0) + torch.where(t < 1, gamma * onward, 0.0)

    def q(s: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return paid(s, a) + gamma * v(s @ F.T + a @ G.T, t + 1)

    return v, q


class LinearSimulator:
    """The Gaussian world as a simulator; its only chance is the start."""

    def reset(self, n: int, seed: np.random.SeedSequence) -> Tensor:
        """Draw the starts."""
        u = torch.as_tensor(np.random.default_rng(seed).random(n))
        self.s = STARTS[(u >= START_PROBABILITY[0]).long()]
        return self.s

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance."""
        reward, self.s = paid(self.s, action), self.s @ F.T + action @ G.T
        return self.s, reward, torch.zeros(len(reward), dtype=torch.bool)

    def keep(self, alive: Tensor) -> None:
        """Nothing ends early."""
        self.s = self.s[alive]


@functools.cache
def gaussian() -> World:
    """The Gaussian world under a linear diagonal Gaussian policy with two action dimensions."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    env = envs.Environment("tiny linear", 2, box, box, lambda device: LinearSimulator())
    policy = policies.prepare(policies.make("linear", env, theta_seed=1), torch.float64, "cpu")
    with torch.no_grad():
        policy.log_std.value.copy_(torch.tensor([-0.5, -0.2]))
        s0, a0, s1, a1, s2 = (x.numpy() for x in linear_paths(list(policy.parameters())))
        reward = [paid(torch.as_tensor(s), torch.as_tensor(a)).tolist() for s, a in ((s0, a0), (s1, a1))]
    episodes = [[(s0[i], a0[i], reward[0][i]), (s1[i], a1[i], reward[1][i])] for i in range(len(s0))]
    traj = record(episodes, s2, [False] * len(s0), 2, finite=False)
    return World(env, policy, traj, nodes()[2], pathwise=linear_rewards, action_values=linear_values)
