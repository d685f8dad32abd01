"""What a learned V_φ regresses on: reward-to-go, or the λ-return of its own latest estimate.

    Ĝ_t = r_t + γ ((1 − λ) V_φ(s_{t+1}) + λ Ĝ_{t+1}),

which is the reward-to-go for λ = 1 and the one-step target r_t + γ V_φ(s_{t+1}) for λ = 0. Nothing follows termination, nor the
horizon, V_H ≡ 0; an episode that was cut before is followed by V_φ of the observation after its last step. Source: Learning to
Predict by the Methods of Temporal Differences (Sutton, 1988); Reinforcement Learning: An Introduction (Sutton and Barto, 2018).
"""

from __future__ import annotations

import torch
from torch import Tensor

from varlab.types import Trajectories

#: Numbers, padding included, of a grid of factors that are worked on at once.
GRID_NUMBERS = 2**22
#: Names of targets.
TARGETS = ("monte_carlo", "td_lambda")


def tail_sum(traj: Trajectories, x: Tensor, factor: float) -> Tensor:
    """Return y_t = x_t + factor · y_{t+1} within each episode, y_T = 0.

    Args:
        traj: says where episodes begin and end.
        x: [M] flat.
        factor: γ for reward-to-go, γλ for GAE.

    Returns:
        [M] flat.
    """
    if factor == 0.0:
        return x
    columns = traj.padded(x).T.contiguous()  # zeros after each end leave the sums alone
    for t in range(columns.shape[0] - 2, -1, -1):
        columns[t].add_(columns[t + 1], alpha=factor)
    return traj.flat(columns.T)


def tail_sums(traj: Trajectories, x: Tensor, factors: Tensor) -> Tensor:
    """Return :func:`tail_sum` of one x under many factors, from one pass over time.

    Args:
        traj: says where episodes begin and end.
        x: [M] flat.
        factors: [k].

    Returns:
        [M, k] flat.
    """
    columns = traj.padded(x).T
    size = max(1, GRID_NUMBERS // columns.numel())
    found = []
    for some in factors.split(size):
        sums = columns.unsqueeze(2).repeat(1, 1, len(some))
        for t in range(columns.shape[0] - 2, -1, -1):
            sums[t].addcmul_(sums[t + 1], some)
        found.append(traj.flat(sums.transpose(0, 1)))
    return torch.cat(found, 1)


def lambda_returns(traj: Trajectories, v: Tensor, v_last: Tensor, gamma: float, lam: float) -> Tensor:
    """Return Ĝ_t at every step.

    Args:
        traj: N trajectories of M steps.
        v: [M] float64 V(s_t).
        v_last: [N] float64 V(s_T) at the observation after the last step, whatever follows it.
        gamma: γ.
        lam: λ.

    Returns:
        [M] float64.
    """
    ahead = torch.empty_like(v)
    ahead[:-1] = (1 - lam) * v[1:]
    over = traj.terminated | (traj.length >= traj.horizon)
    ahead[traj.last_row] = torch.where(over, 0.0, v_last)  # in place of both V(s_T) and Ĝ_T
    return tail_sum(traj, traj.reward + gamma * ahead, gamma * lam)
