"""Values that a user gives as functions of observation, action and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from varlab import checks
from varlab.envs.finite import FiniteMDP
from varlab.types import Trajectories, Values


def at_nodes(q: Callable[[Tensor, Tensor, Tensor], Tensor], traj: Trajectories) -> Tensor:
    """Return q(obs, action, t) at the nodes of every step, [M, J]."""
    m, j = traj.nodes.weight.shape
    obs, t = (x.repeat_interleave(j, 0) for x in (traj.obs, traj.time))
    return q(obs, traj.nodes.action.flatten(0, 1), t).reshape(m, j)


def slope_at_mean(q: Callable[[Tensor, Tensor, Tensor], Tensor], traj: Trajectories, source: str) -> Tensor:
    """Return ∂q(obs, a, t)/∂a at the mean action of every step, by automatic differentiation.

    Args:
        q: (obs [M, ...], action [M, D], t [M]) → [M], row by row.
        traj: trajectories whose nodes carry the mean action.
        source: name for messages.

    Returns:
        [M, D] float64.

    Raises:
        InputError: for discrete actions, or a q that cannot be differentiated.
    """
    if traj.nodes is None or traj.nodes.mean is None:
        raise checks.InputError(
            f"Continuous actions with a mean were expected for the slope of Q on {traj.env}, but they have none; name a Φ that "
            "needs no q_slope."
        )
    with torch.enable_grad():
        mean = traj.nodes.mean.detach().requires_grad_()
        total = q(traj.obs, mean, traj.time).sum()
        if not total.requires_grad:
            raise checks.InputError(
                f"A Q that torch can differentiate in the action was expected of the source {source}, but its result does not "
                "depend on the action that way; compute it by torch operations on the action."
            )
        (slope,) = torch.autograd.grad(total, mean)
    return slope.double()


@dataclass(frozen=True)
class FunctionValues:
    """V_t(s) and Q_t(s, a) by formula.

    Attributes:
        v: (obs [m, ...], t [m]) → [m], or None.
        q: (obs [m, ...], action [m, ...], t [m]) → [m], or None.
        source: name that the rows carry.
        steps: environment steps spent to obtain them.
    """

    v: Callable[[Tensor, Tensor], Tensor] | None = None
    q: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    source: str = "user"
    steps: int = 0

    def table(self, mdp: FiniteMDP, horizon: int) -> tuple[Tensor | None, Tensor | None]:
        """Return V [H + 1, S] and Q [H, S, A] on the states of a finite MDP, None for a function that was not given."""
        seen, n = mdp.seen, mdp.num_states
        v = q = None
        if self.v is not None:
            v = torch.stack([self.v(seen, torch.full((n,), t)).double() for t in range(horizon + 1)])
        if self.q is not None:
            pairs = [[(torch.full((n,), a), torch.full((n,), t)) for a in range(mdp.num_actions)] for t in range(horizon)]
            q = torch.stack([torch.stack([self.q(seen, *pair).double() for pair in row], 1) for row in pairs])
        return v, q

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Evaluate at the visited steps.

        Args:
            traj: trajectories.
            need: which of ``v``, ``q``, ``q_nodes`` and ``q_slope`` are wanted.

        Returns:
            Values at every step, float64.

        Raises:
            InputError: if a function that is needed was not given.
        """
        for name in sorted({x.partition("_")[0] for x in need}):
            if getattr(self, name) is None:
                raise checks.InputError(
                    f"A function {name} was expected because one Φ needs it, but FunctionValues was given none; pass {name}=…"
                )
        return Values(
            v=self.v(traj.obs, traj.time).double() if "v" in need else None,
            v_last=self.v(traj.last_obs, traj.length).double() if "v" in need else None,
            v_stale=self.v(traj.obs[traj.last_row], traj.length).double() if "v" in need else None,
            q=self.q(traj.obs, traj.action, traj.time).double() if "q" in need else None,
            q_nodes=at_nodes(self.q, traj).double() if "q_nodes" in need else None,
            q_slope=slope_at_mean(self.q, traj, self.source) if "q_slope" in need else None,
            source=self.source,
            steps=self.steps,
        )
