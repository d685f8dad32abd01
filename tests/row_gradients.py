"""Gradients of single units as a measurement makes them: rows, chunks, scores; and small worlds to make them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from finite_worlds import random_mdp
from torch import Tensor, nn
from torch.distributions import Categorical

from varlab import envs, policies, scores, terms
from varlab.estimators import Batch, Estimator, resolve
from varlab.rollout import rollout
from varlab.types import Trajectories, Values

HORIZON = 6


class Twice(nn.Module):
    """A policy that only torch.func can score: its table is used twice."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(states, actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def forward(self, obs: Tensor) -> Categorical:
        return Categorical(logits=self.table[obs] * torch.sigmoid(self.table).mean())


class Masked(nn.Module):
    """A policy that may not take action 1 in state 0: its logit there is −∞."""

    def __init__(self, states: int, actions: int) -> None:
        super().__init__()
        self.logits = nn.Embedding(states, actions)
        self.logits.weight.data = torch.randn(states, actions, generator=torch.Generator().manual_seed(1))

    def forward(self, obs: Tensor) -> Categorical:
        forbidden = (obs == 0).unsqueeze(-1) & (torch.arange(self.logits.embedding_dim) == 1)
        return policies.base.categorical(self.logits(obs).masked_fill(forbidden, -torch.inf))


def finite(kind: str, actions: int = 3, horizon: int = HORIZON) -> tuple[envs.Environment, nn.Module]:
    """A random finite MDP of three states that pays at every step, and a policy in float64."""
    env = envs.environment(random_mdp(0, actions=actions, ending=0.2), horizon)
    made = {"twice": lambda: Twice(3, actions), "masked": lambda: Masked(3, actions)}.get(
        kind, lambda: policies.make(kind, env, theta_seed=1, hidden=(4,))
    )()
    return env, policies.prepare(made, torch.float64, torch.device("cpu"))


def sample(env: envs.Environment, policy: nn.Module, n: int, cut: int | None = None, seed: int = 0) -> Trajectories:
    """N trajectories."""
    return rollout(env, policy, n, np.random.SeedSequence(seed), cut=cut)


def reader(source: Callable | None, gamma: float, at_cut: str = "bootstrap") -> terms.Reader:
    """What a measurement reads along trajectories."""
    cut = frozenset() if at_cut == "terminal" else frozenset({"v"})
    return lambda traj, asks: Batch(traj, Values() if source is None else source(traj, asks | cut), gamma, at_cut)


def assembled(
    policy: nn.Module,
    phi: Sequence[str | Estimator],
    traj: Trajectories,
    source: Callable | None,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    at_cut: str = "bootstrap",
    unit: int = 1,
) -> list[terms.Terms]:
    """The rows of the chosen estimators."""
    return terms.assemble(resolve(phi), traj, policy, reader(source, gamma, at_cut), discount_weighting, unit)


def maps(policy: nn.Module, made: Sequence[terms.Terms]) -> list[scores.ScoreMap]:
    """One score map for each of the terms."""
    obs, action = made[0].obs[:8], made[0].action[:8, 0]
    return [scores.make(policy, obs, action) for _ in made]


def each(policy: nn.Module, made: Sequence[terms.Terms], size: int = 7) -> Tensor:
    """The gradient of every unit and choice, [U, K, P]."""
    units, choices = len(made[0].offsets) - 1, made[0].weights.shape[2]
    out = torch.full((units, choices, policies.base.num_parameters(policy)), torch.nan, dtype=torch.float64)
    for index, batch, phi in terms.chunks(made, maps(policy, made), size, torch.float64):
        for columns, g in batch.blocks(phi):
            out[index[:, None, None], torch.arange(choices)[:, None], columns] = g
    return out


def gradients(
    policy: nn.Module, phi: Sequence[str | Estimator], traj: Trajectories, *arguments: object, **more: object
) -> Tensor:
    """[U, K, P] for the arguments of :func:`assembled`."""
    return each(policy, assembled(policy, phi, traj, *arguments, **more))


def per_trajectory(traj: Trajectories, x: Tensor, theta: Sequence[Tensor]) -> Tensor:
    """∂(Σ_t x_t)/∂θ of every trajectory by differentiation, one at a time, [N, P], for x [M]."""
    rows = []
    for a, b in zip(traj.offsets[:-1].tolist(), traj.offsets[1:].tolist(), strict=True):
        grads = torch.autograd.grad(x[a:b].sum(), theta, retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-11) -> None:
    """Assert equality to rounding."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
