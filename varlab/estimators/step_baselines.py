"""Functions b_t(s_t) of time and state that weighted least squares fits: constant, per time, per state and time, or linear.

Each class minimises Σ_r (a_r b_r² − 2 c_r b_r) over rows r, one for each step, with weights a_r ≥ 0. With a_r = 1 and c_r = G_r
that is regression on the reward-to-go; other weights give the baselines of least variance (:mod:`varlab.estimators.optimal`).

The linear class has the features of the linear value function of Benchmarking Deep Reinforcement Learning for Continuous Control
(Duan, Chen, Houthooft, Schulman, Abbeel, 2016), with time in units of the horizon: o, o², t/H, (t/H)², (t/H)³ and 1, o² entry by
entry. A discrete observation is one-hot, its own square, so that o² is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP
from varlab.policies.base import features
from varlab.types import Trajectories

#: Classes of functions of time and state.
CLASSES = ("constant", "time", "state", "features")
#: Added to the diagonal of normal equations scaled to a diagonal of ones, whose trace is the number of features.
RIDGE = 1e-12
#: Numbers in the features that are made at once.
NUMBERS = 2**22


@dataclass(frozen=True)
class Rows:
    """What functions of time and state see in m rows.

    Attributes:
        time: [m] t.
        obs: [m, ...] observations.
        state: [m] index of the state, or None where states are not counted.
        horizon: H.
        num_states: S, or 0.
        classes: number of values of a discrete observation, or None.
    """

    time: Tensor
    obs: Tensor
    state: Tensor | None
    horizon: int
    num_states: int
    classes: int | None

    @classmethod
    def of(cls, traj: Trajectories, env: Environment) -> Rows:
        """Return one row for each step."""
        classes = env.num_features if env.discrete_observations else None
        num_states = env.finite.num_states if env.finite is not None else classes or 0
        return cls(traj.time, traj.obs, states(traj), env.horizon, num_states, classes)

    @classmethod
    def grid(cls, mdp: FiniteMDP, horizon: int) -> Rows:
        """Return one row for each time and state of a finite MDP, H · S in all, times in the outer loop."""
        n = mdp.num_states
        time, state = torch.arange(horizon).repeat_interleave(n), torch.arange(n).repeat(horizon)
        return cls(time, mdp.seen[state], state, horizon, n, n if mdp.observations is None else None)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield (rows, ψ [rows, k]) a few at a time."""
        width = len(step_features(self.obs[:1], self.time[:1], self.horizon, self.classes)[0])
        size = max(1, NUMBERS // width)
        for i in range(0, len(self.time), size):
            part = slice(i, i + size)
            yield part, step_features(self.obs[part], self.time[part], self.horizon, self.classes)


def states(traj: Trajectories) -> Tensor | None:
    """Return the state of each step [M]: that of a finite MDP, else a discrete observation; None where there is neither."""
    if traj.state is not None:
        return traj.state
    return traj.obs if traj.obs.dim() == 1 and not traj.obs.is_floating_point() else None


def counted(state: Tensor | None, label: str, env: str) -> Tensor:
    """Return the states where they are counted.

    Raises:
        InputError: where they are not.
    """
    if state is None:
        raise checks.InputError(
            f"Finitely many states were expected for {label}, but {env} shows real numbers; set of=features, which is linear in "
            "them."
        )
    return state


def step_features(obs: Tensor, time: Tensor, horizon: int, classes: int | None) -> Tensor:
    """Return ψ(s, t) = (o, o², t/H, (t/H)², (t/H)³, 1), [m, k] float64; without o² where o is one-hot.

    Args:
        obs: [m, ...].
        time: [m].
        horizon: H.
        classes: number of values of a discrete observation, or None.

    Returns:
        The features.
    """
    o, t = features(obs, classes, torch.float64), time.double().unsqueeze(1) / horizon
    return torch.cat([o, *([o**2] if classes is None else []), t, t**2, t**3, torch.ones_like(t)], 1)


def solve_normal_equations(a: Tensor, c: Tensor) -> Tensor:
    """Return β with A β = c, for A [..., k, k] positive semidefinite in units where its diagonal is 1, plus :data:`RIDGE`.

    A feature that never differs from 0 gets β = 0.

    Args:
        a: [..., k, k].
        c: [..., k].

    Returns:
        [..., k].
    """
    size = a.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(size > 0, size, 1.0).rsqrt()
    scaled = scale.unsqueeze(-1) * a * scale.unsqueeze(-2) + RIDGE * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return scale * torch.linalg.solve(scaled, (scale * c).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class StepBaseline:
    """A fitted b_t(s_t).

    Attributes:
        of: one of :data:`CLASSES`.
        value: [] b, [H] b_t, [H, S] b_t(s), or [k] β.
        horizon: H.
        classes: number of values of a discrete observation, or None.
    """

    of: str
    value: Tensor
    horizon: int
    classes: int | None = None

    @classmethod
    def fit(cls, of: str, a: Tensor, c: Tensor, rows: Rows) -> StepBaseline:
        """Minimise Σ_r (a_r b_r² − 2 c_r b_r) over a class.

        Times and states that no row reaches take the best constant.

        Args:
            of: the class.
            a: [m] weights, not negative.
            c: [m].
            rows: what functions of the class see.

        Returns:
            The minimiser.
        """
        if of == "features":
            normal, right = 0.0, 0.0
            for part, psi in rows.chunks():
                normal = normal + psi.T @ (a[part, None] * psi)
                right = right + psi.T @ c[part]
            return cls(of, solve_normal_equations(normal, right), rows.horizon, rows.classes)
        constant = _ratio(c.sum(), a.sum(), c.new_zeros(()))
        if of == "constant":
            return cls(of, constant, rows.horizon)
        shape = (rows.horizon,) if of == "time" else (rows.horizon, rows.num_states)
        cell = rows.time if of == "time" else rows.time * rows.num_states + rows.state
        sums = a.new_zeros(2, int(np.prod(shape))).index_add_(1, cell, torch.stack([c, a]))
        return cls(of, _ratio(*sums, constant).reshape(shape), rows.horizon)

    def at(self, traj: Trajectories) -> Tensor:
        """Return b_t(s_t) at every step, [M]."""
        if self.of == "constant":
            return self.value.expand(traj.steps)
        if self.of == "time":
            return self.value[traj.time]
        if self.of == "state":
            return self.value[traj.time, states(traj)]
        rows = Rows(traj.time, traj.obs, None, self.horizon, 0, self.classes)
        return torch.cat([psi @ self.value for _, psi in rows.chunks()])

    def table(self, mdp: FiniteMDP) -> np.ndarray:
        """Return b_t(s) [H, S] on the states of a finite MDP."""
        shape = (self.horizon, mdp.num_states)
        if self.of == "features":
            b = torch.cat([psi @ self.value.cpu() for _, psi in Rows.grid(mdp, self.horizon).chunks()]).reshape(shape)
        else:
            b = self.value.cpu() if self.of != "time" else self.value.cpu().unsqueeze(1)
        return b.expand(shape).numpy()


def _ratio(c: Tensor, a: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(a > 0, c / torch.where(a > 0, a, 1.0), otherwise)
