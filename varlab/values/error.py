"""A dial of critic error: V + ε e_V and Q + ε e_Q with fixed functions e of unit norm.

The norm is that of the policy's own visits, E[Σ_{t<H} e_t(s_t)²] / E[T] = 1 (for Q: e_t(s_t, a_t)²): the root-mean-square error
along its trajectories is ε, whatever the world. On a finite MDP e is a table of independent standard normal numbers, normalised
exactly, so that the exact oracles apply: the bias of a Φ linear in V and Q is linear in ε, its variance quadratic. Elsewhere e is
a smooth function of what is seen, of time and, for Q, of the action, a sum of random cosines normalised on the critic stream.
Source of the cosines: Random Features for Large-Scale Kernel Machines (Rahimi and Recht, 2007).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from varlab import rng
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP
from varlab.policies.base import features
from varlab.types import Trajectories, Values
from varlab.values.dynamic_programming import occupancy, policy_table
from varlab.values.functions import FunctionValues

#: Cosines in one smooth error.
COSINES = 64


@dataclass(frozen=True)
class TableError:
    """e_V [H + 1, S], 0 at t = H, and e_Q [H, S, A] on a finite MDP."""

    v: Tensor
    q: Tensor

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Look the errors up at the visited steps."""
        return Values(
            v=self.v[traj.time, traj.state] if "v" in need else None,
            v_last=self.v[traj.length, traj.last_state] if "v" in need else None,
            v_stale=self.v[traj.length, traj.state[traj.last_row]] if "v" in need else None,
            q=self.q[traj.time, traj.state, traj.action] if "q" in need else None,
            q_nodes=self.q[traj.time[:, None], traj.state[:, None], traj.nodes.action] if "q_nodes" in need else None,
        )


@dataclass(frozen=True)
class WithError:
    """A source of values with ε times a fixed error added.

    Attributes:
        base: the source.
        error: (trajectories, names asked for) → e.
        size: ε.
        source: name that rows carry, such as ``exact+0.5e(seed=0)``.
    """

    base: Callable[[Trajectories, frozenset[str]], Values]
    error: TableError | FunctionValues
    size: float
    source: str

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Evaluate base and error at the visited steps.

        Args:
            traj: trajectories.
            need: which of ``v``, ``q``, ``q_nodes`` and ``q_slope`` are wanted.

        Returns:
            Values of the base, with ε e added to each of them.
        """
        found, wrong = self.base(traj, need), self.error(traj, need)
        names = ("v", "v_last", "v_stale", "q", "q_nodes", "q_slope")
        given = {name: x for name in names if (x := getattr(found, name)) is not None}
        return replace(found, **{name: x + self.size * getattr(wrong, name) for name, x in given.items()}, source=self.source)

    def __getattr__(self, name: str) -> object:
        """Whatever else the base offers: its steps, whether it needs saved states; ``table`` where both have tables."""
        if name.startswith("__") or name == "base":
            raise AttributeError(name)
        if name != "table":
            return getattr(self.base, name)
        if not isinstance(self.error, TableError):
            raise AttributeError(name)
        table = self.base.table

        def with_error(mdp: FiniteMDP, horizon: int) -> tuple[Tensor | None, Tensor | None]:
            added = zip(table(mdp, horizon), (self.error.v, self.error.q), strict=True)
            return tuple(None if x is None else x + self.size * e.to(x.device) for x, e in added)

        return with_error


def with_error(
    base: Callable[[Trajectories, frozenset[str]], Values],
    size: float,
    seed: int,
    *,
    env: Environment,
    policy: nn.Module,
    stream: Callable[[], Trajectories],
    device: torch.device,
) -> WithError:
    """Add ε times the error of a seed to a source of values.

    Args:
        base: the source.
        size: ε.
        seed: of the error; V and Q have errors of their own.
        env: the world.
        policy: whose visits the norm is of.
        stream: gives trajectories of the policy, asked for where the world is not finite.
        device: where tensors live.

    Returns:
        The source with errors.
    """
    error = table_error(env, policy, seed, device) if env.finite is not None else smooth_error(env, stream(), seed)
    return WithError(base, error, size, f"{getattr(base, 'source', 'user')}+{size:g}e(seed={seed})")


@torch.no_grad()
def table_error(env: Environment, policy: nn.Module, seed: int, device: torch.device) -> TableError:
    """Return tables of standard normal numbers with Σ_{t,s} d_t(s) e_t(s)² / Σ_{t,s} d_t(s) = 1, d the policy's visits.

    Args:
        env: a finite world.
        policy: whose visits they are.
        seed: of the numbers.
        device: where the tables are looked up.

    Returns:
        Errors of V and of Q; the latter with π(a | s) in the sum.
    """
    mdp, streams = env.finite, rng.Streams(seed)
    pi = policy_table(policy, mdp).cpu()
    visits = occupancy(mdp, pi, env.horizon)
    v, q = (
        torch.from_numpy(rng.numpy_generator(streams.sequence("error", part)).standard_normal(shape))
        for part, shape in enumerate((visits.shape, (*visits.shape, mdp.num_actions)))
    )
    v /= ((visits * v**2).sum() / visits.sum()).sqrt()
    q /= ((visits[:, :, None] * pi * q**2).sum() / visits.sum()).sqrt()
    return TableError(torch.cat([v, torch.zeros_like(v[:1])]).to(device), q.to(device))


def smooth_error(env: Environment, traj: Trajectories, seed: int) -> FunctionValues:
    """Return sums of random cosines whose mean square over the steps of ``traj`` is 1.

    e(x) = c √(2/D) Σ_d w_d cos(⟨ω_d, x⟩ + b_d), with x the observation in units of its spread on ``traj``, t in units of the
    horizon and, for Q, the action (one-hot, or in units of its spread); ω, w standard normal and b uniform on [0, 2π).

    Args:
        env: the world.
        traj: trajectories of the policy.
        seed: of the cosines.

    Returns:
        Errors of V and of Q.
    """
    streams, device = rng.Streams(seed), traj.obs.device
    classes = env.num_features if env.discrete_observations else None

    def spread(x: Tensor) -> tuple[Tensor, Tensor]:
        scale = x.std(0, correction=0)
        return x.mean(0), torch.where(scale > 0, scale, 1.0)

    center, scale = spread(features(traj.obs, classes, torch.float64))
    middle, width = (0.0, 1.0) if env.discrete_actions else spread(traj.action.double())

    def seen(obs: Tensor, t: Tensor) -> Tensor:
        x = (features(obs, classes, torch.float64) - center) / scale
        return torch.cat([x, t.double().unsqueeze(1) / env.horizon], 1)

    def chosen(action: Tensor) -> Tensor:
        return features(action, env.num_actions if env.discrete_actions else None, torch.float64).sub(middle).div(width)

    def cosines(part: int, size: int) -> Callable[[Tensor], Tensor]:
        generator = rng.numpy_generator(streams.sequence("error", part))
        omega, weight = generator.standard_normal((size, COSINES)), generator.standard_normal(COSINES)
        phase = generator.uniform(0.0, 2 * np.pi, COSINES)
        omega, weight, phase = (torch.from_numpy(x).to(device) for x in (omega, weight, phase))
        return lambda x: torch.cos(x @ omega + phase) @ weight * (2 / COSINES) ** 0.5

    size = len(center) + 1
    of_v, of_q = cosines(0, size), cosines(1, size + env.num_actions)
    states = seen(traj.obs, traj.time)
    norms = [of_v(states), of_q(torch.cat([states, chosen(traj.action)], 1))]
    c_v, c_q = (float(e.square().mean().sqrt()) for e in norms)
    return FunctionValues(
        v=lambda obs, t: of_v(seen(obs, t)) / c_v,
        q=lambda obs, action, t: of_q(torch.cat([seen(obs, t), chosen(action)], 1)) / c_q,
    )
