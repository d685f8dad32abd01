"""Estimators that look at every action, for tests: action-dependent baselines, right or wrong, and averages over actions.

Their tables are given, so that the oracle and the enumeration read the same numbers and share nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from varlab.estimators import Estimator
from varlab.estimators.recursion import Recursion


@dataclass(frozen=True)
class WithActions(Estimator):
    """z_t (Φ_t − b_t(s_t, a_t)) + Σ_a ∇π(a | s_t) ψ_t(s_t, a), Φ_t that of another estimator, or 0.

    Attributes:
        base: the other estimator, or None.
        b: [H, S, A] or None.
        psi: [H, S, A] or None; equal to b it puts back what b took.
    """

    base: Estimator | None = None
    b: Tensor | None = field(default=None, repr=False)
    psi: Tensor | None = field(default=None, repr=False)
    name = "with_actions"
    formula = source = "here"

    @property
    def label(self):
        base = "0" if self.base is None else self.base.label
        return f"{base}{'' if self.b is None else ' − b'}{'' if self.psi is None else ' + b' if self.psi is self.b else ' + ψ'}"

    @property
    def needs(self):
        return frozenset() if self.base is None else self.base.needs

    def phi(self, batch):
        traj = batch.traj
        phi = torch.zeros_like(traj.reward) if self.base is None else self.base.phi(batch)
        return phi if self.b is None else phi - self.b[traj.time, traj.state, traj.action]

    def recursion(self, world):
        base = self.base and self.base.recursion(world)
        subtract, expected = self.b, self.psi
        if base is not None and base.subtract is not None:
            assert subtract is None
        return Recursion(
            (lambda t: np.zeros((*world.pi.shape, 1))) if base is None else base.local,
            0.0 if base is None else base.carry,
            window=None if base is None else base.window,
            subtract=(base and base.subtract) if subtract is None else lambda t: subtract[t].numpy(),
            expected=None if expected is None else lambda t: expected[t].numpy(),
        )


def tables(seed: int, horizon: int, states: int, actions: int) -> tuple[Tensor, Tensor]:
    """Two random tables [H, S, A] of mean 1."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(1 + torch.randn(2, horizon, states, actions, generator=draw, dtype=torch.float64))
