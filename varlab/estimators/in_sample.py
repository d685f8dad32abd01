"""Φ_t = G_t − b̂_t with b̂ fitted on the very trajectories whose gradient is measured: biased, and better in looks than in truth.

b̂ has seen the action through the rewards that followed it, so that E[z_t b̂_t] is not 0. The unit is what is fitted: g of a unit
of G trajectories depends on all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.step_baselines import CLASSES, NUMBERS, counted, solve_normal_equations, states, step_features
from varlab.types import Chunk


@register
@dataclass(frozen=True)
class InSampleBaseline(Estimator):
    """Φ_t = G_t − b̂_t(s_t) with b̂ the regression of G_t on a class over the steps of the unit itself.

    By class: ``constant`` the mean of G_t over the unit's steps, ``time`` over its trajectories alive at t, ``state`` over its
    visits of s at t (a step alone in its cell gets Φ = 0), ``features`` linear in o, o², t/H, (t/H)², (t/H)³ and 1, ``value``
    affine in V_t(s_t), a critic recalibrated on the data it judges.

    Its bias is that of the steps' own share in b̂. In one-step episodes of one start the constant gives
    E g = (1 − 1/G) ∇J exactly; d features take the share d/G or so. Source: Variance Reduction Techniques for Gradient Estimates
    in Reinforcement Learning (Greensmith, Bartlett, Baxter, 2004), which fits baselines on separate data; Reinforcement Learning
    of Motor Skills with Policy Gradients (Peters and Schaal, 2008), which fits them on the same.

    Attributes:
        of: constant, time, state, features or value.
    """

    of: str = "constant"
    name = "in_sample_baseline"
    unbiased = "biased"
    batchwise = True
    formula = "G_t − b̂_t(s_t), b̂ fitted on the same trajectories"
    source = "Reinforcement Learning of Motor Skills with Policy Gradients (Peters and Schaal, 2008)"

    def __post_init__(self) -> None:
        """Check the class."""
        checks.one_of("class of in_sample_baseline", self.of, (*CLASSES, "value"))

    @property
    def needs(self) -> frozenset[str]:
        """V where the baseline is affine in it."""
        return frozenset({"v"}) if self.of == "value" else frozenset()

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b̂_t(s_t), [M].

        Args:
            batch: whole units of trajectories.

        Returns:
            Φ.

        Raises:
            InputError: for of=state where states are not counted.
        """
        g, traj = batch.reward_to_go, batch.traj
        if self.of in ("features", "value"):
            return g - _regression(batch, self._columns(batch))
        unit, cell = traj.episode // batch.unit, torch.zeros_like(traj.time)
        if self.of != "constant":
            cell = traj.time
        if self.of == "state":
            state = counted(states(traj), self.label, traj.env)
            cell = cell * (int(state.max()) + 1) + state
        _, cell = (unit * (int(cell.max()) + 1) + cell).unique(return_inverse=True)
        total = g.new_zeros(int(cell.max()) + 1).index_add_(0, cell, g)
        return g - (total / torch.bincount(cell))[cell]

    def _columns(self, batch: Batch) -> Tensor:
        """ψ [M, k]."""
        if self.of == "value":
            return torch.stack([batch.values.v, torch.ones_like(batch.values.v)], 1)
        traj = batch.traj
        discrete = traj.obs.dim() == 1 and not traj.obs.is_floating_point()
        return step_features(traj.obs, traj.time, traj.horizon, int(traj.obs.max()) + 1 if discrete else None)


def _regression(batch: Batch, psi: Tensor) -> Tensor:
    """Return the least-squares fit of G_t on ψ_t [M, k] within each unit, [M]."""
    offsets, g, out = batch.traj.offsets[:: batch.unit], batch.reward_to_go, torch.empty_like(batch.reward_to_go)
    size = max(1, NUMBERS // (int(offsets.diff().max()) * psi.shape[1] + psi.shape[1] ** 2))
    for index in torch.argsort(offsets.diff(), descending=True, stable=True).split(size):
        chunk = Chunk.of(offsets, index)
        x = psi[chunk.rows] * chunk.mask.unsqueeze(-1)
        beta = solve_normal_equations(x.transpose(1, 2) @ x, torch.einsum("utk,ut->uk", x, g[chunk.rows]))
        out[chunk.rows[chunk.mask]] = torch.einsum("utk,uk->ut", x, beta)[chunk.mask]
    return out
