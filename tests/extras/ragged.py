"""Random batches in two forms at once: as varlab's ragged trajectories, and as the grid of steps that other libraries keep.

A grid is what parallel environments give: each of its rows is one environment, in which episodes follow each other; the last
episode of a row ends with the row. Four ends occur: termination, truncation inside a row, the end of a row, and the horizon,
where the objective ends, so that other libraries are told of a termination.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from varlab.estimators import Batch
from varlab.types import Trajectories, Values

#: rows, steps of a row, longest episode: one long row, many rows, short episodes, episodes of one or two steps.
SHAPES = ((1, 300, 40), (8, 60, 24), (5, 37, 6), (16, 12, 2))


@dataclass(frozen=True)
class Grid:
    """Steps of ``rows`` environments; every tensor is [rows, steps, 1].

    ``following`` is the value of the observation that followed a step, its own and not that of the next episode's start;
    ``over`` says that nothing follows.
    """

    reward: Tensor
    value: Tensor
    following: Tensor
    done: Tensor
    over: Tensor

    def of(self, flat):
        """Return flat steps [M] in the form of the grid."""
        return flat.reshape(self.reward.shape)


def make(shape, gamma, at_cut="bootstrap", seed=0, dtype=torch.float64):
    """Return (Batch, Grid) with the same random numbers; ``dtype`` float32 rounds them so that both hold the same ones."""
    rows, steps, horizon = shape
    draw = torch.Generator().manual_seed(seed)

    def normal(n):
        return torch.randn(n, generator=draw, dtype=torch.float64).to(dtype).double()

    length = []
    for _ in range(rows):
        left = steps
        while left:
            length.append(min(left, int(torch.randint(1, horizon + 1, (1,), generator=draw))))
            left -= length[-1]
    length = torch.tensor(length)
    n, m = len(length), rows * steps
    terminated = torch.rand(n, generator=draw) < 0.5
    traj = Trajectories(
        obs=torch.arange(m)[:, None],
        action=torch.zeros(m, dtype=torch.int64),
        reward=normal(m),
        offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        terminated=terminated,
        truncated=~terminated,
        last_obs=torch.zeros(n, 1),
        horizon=horizon,
    )
    values = Values(v=normal(m), v_last=normal(n), v_stale=normal(n))

    last = traj.last_row
    following = values.v.roll(-1)
    following[last] = values.v_last
    done, over = torch.zeros(2, m, dtype=torch.bool)
    done[last] = True
    over[last] = terminated | (length == horizon)
    grid = (x.reshape(rows, steps, 1) for x in (traj.reward, values.v, following, done, over))
    return Batch(traj, values, gamma, at_cut), Grid(*grid)


def count_ends(batch, grid):
    """Return how many episodes are terminated, stopped at the horizon, cut inside a row, and cut by the end of a row."""
    traj = batch.traj
    at_horizon = traj.truncated & (traj.length == traj.horizon)
    cut = traj.truncated & ~at_horizon
    row_end = (traj.last_row + 1) % grid.reward.shape[1] == 0
    return [int(kind.sum()) for kind in (traj.terminated, at_horizon, cut & ~row_end, cut & row_end)]


def apart(a, b):
    """Return the largest difference in units of the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def close(made, expected, tolerance=1e-6):
    """Assert the same shape, and no difference above ``tolerance`` times the largest entry."""
    assert made.shape == expected.shape
    assert apart(made.double(), expected.double()) <= tolerance
