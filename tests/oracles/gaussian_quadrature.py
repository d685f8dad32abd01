"""Linear systems by Gauss-Hermite product quadrature: every moment of a short trajectory as a finite sum.

Five nodes a dimension integrate polynomials of degree nine in each variable; squares of gradients have degree eight. States,
actions, rewards and scores come from plain step-by-step formulas; Φ comes from the estimators that measurements use.
"""

import itertools

import numpy as np
import torch

from varlab.estimators import Batch, weight
from varlab.types import Trajectories, Values


def factor(covariance):
    """A root of a covariance of any rank, by its singular values."""
    u, s, _ = torch.linalg.svd(covariance)
    return u[:, s > 1e-12] * s[s > 1e-12].sqrt()


def nodes(dims):
    """Points [N, dims] and weights [N]."""
    x, w = np.polynomial.hermite_e.hermegauss(5)
    points = torch.tensor(list(itertools.product(x, repeat=dims)), dtype=torch.float64).reshape(-1, dims)
    weights = torch.tensor([np.prod(c) for c in itertools.product(w / w.sum(), repeat=dims)], dtype=torch.float64)
    return points, weights


class Paths:
    """All quadrature paths of a linear policy: states, actions and rewards [N, H, …], scores [N, H, P], weights [N]."""

    def __init__(self, system, policy, horizon, first_action=None):
        w, c, log_std = (p.detach() for p in policy.parameters())
        start, push, d = factor(system.initial_covariance), factor(system.noise), system.action_dim
        k, m = start.shape[1], push.shape[1]
        xi, self.weight = nodes(k + horizon * d + (horizon - 1) * m)
        state, at = system.initial_mean + xi[:, :k] @ start.T, k
        rows = {name: [] for name in ("state", "action", "reward", "score")}
        for t in range(horizon):
            noise = xi[:, at : at + d]
            at += d
            action = state @ w.T + c + log_std.exp() * noise
            if t == 0 and first_action is not None:
                action = first_action.expand_as(action)
            cost = [s @ system.state_cost @ s + a @ system.action_cost @ a for s, a in zip(state, action, strict=True)]
            slope = noise / log_std.exp()
            score = torch.cat([(slope[:, :, None] * state[:, None, :]).flatten(1), slope, noise**2 - 1], 1)
            for name, x in zip(rows, (state, action, -torch.stack(cost), score), strict=True):
                rows[name].append(x)
            state = state @ system.a.T + action @ system.b.T
            if t < horizon - 1:
                state = state + xi[:, at : at + m] @ push.T
                at += m
        self.state, self.action, self.reward, self.score = (torch.stack(x, 1) for x in rows.values())
        n = len(self.weight)
        self.trajectories = Trajectories(
            obs=self.state.flatten(0, 1), action=self.action.flatten(0, 1), reward=self.reward.flatten(),
            offsets=torch.arange(n + 1) * horizon, terminated=torch.zeros(n, dtype=torch.bool),
            truncated=torch.ones(n, dtype=torch.bool), last_obs=state, horizon=horizon,
        )  # fmt: skip

    def expected_return(self, gamma):
        """E Σ γ^t r_t."""
        return float(self.weight @ (self.reward @ (gamma ** torch.arange(self.reward.shape[1], dtype=torch.float64))))

    def moments(self, estimator, gamma, weighted, source):
        """E g and diag Cov g, each [P]."""
        values = source(self.trajectories, estimator.needs) if estimator.needs else Values()
        phi = weight(estimator, Batch(self.trajectories, values, gamma), weighted).reshape(self.reward.shape)
        g = torch.einsum("nt,ntp->np", phi, self.score)
        mean = self.weight @ g
        return mean, self.weight @ (g - mean) ** 2
