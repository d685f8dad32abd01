"""Baselines of least variance: b minimises tr Cov of the whole trajectory's g, or, by another name, of its steps one by one.

With g_0 the gradient without baseline and w_t the weight of step t, g = g_0 − Σ_t w_t b_t(s_t) z_t and

    E‖g‖² = E‖g_0‖² − 2 E Σ_t w_t b_t ⟨z_t, g_0⟩ + E Σ_t w_t² b_t² ‖z_t‖²:

products of two steps t < u are left out because b_t, z_t and b_u are known when a_u is drawn and E[z_u | s_u] = 0. The mean of g
does not depend on b, so the minimum over a class is weighted least squares (:mod:`varlab.estimators.step_baselines`); for
b_t(s_t) = ψ_tᵀ β the normal equations are A β = c, A = E Σ_t w_t² ‖z_t‖² ψ_t ψ_tᵀ and c = E Σ_t w_t ψ_t ⟨z_t, g_0⟩.

Expectations are means over the critic stream, whose episodes run to the horizon; the exact oracle takes population values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, FitBatch, register, weight
from varlab.estimators.recursion import Recursion
from varlab.estimators.registry import make
from varlab.estimators.score_products import by_parameter, inner_products, norms, with_scores
from varlab.estimators.step_baselines import CLASSES, Rows, StepBaseline, counted

if TYPE_CHECKING:
    from varlab.oracles.world import World

#: What a baseline of least variance is subtracted from.
BASES = ("reward_to_go", "total_return")


@register
@dataclass(frozen=True)
class OptimalBaseline(Estimator):
    """Φ_t = G_t − b_t(s_t), or R_γ − b_t(s_t), with the b of least tr Cov g in a class; unbiased, as b does not see the action.

    By class, with S = Σ_t w_t z_t:

    * ``constant``: b = E⟨S, g_0⟩ / E‖S‖², which is E[‖S‖² R_γ] / E‖S‖² for the total return. As E‖S‖² = E Σ_t w_t² ‖z_t‖² the
      latter, of smaller spread, is averaged. The excess of any other b is (b − b*)² E‖S‖².
    * ``time``: b_t = E[w_t ⟨z_t, g_0⟩] / E[w_t² ‖z_t‖²].
    * ``state``: b_t(s) = E[w_t 1{s_t = s} ⟨z_t, g_0⟩] / E[w_t² 1{s_t = s} ‖z_t‖²], on finite worlds.
    * ``features``: linear in o, o², t/H, (t/H)², (t/H)³ and 1.
    * ``parameter``: one b_p = E[S_p g_0p] / E[S_p²] for each parameter, 0 for one that never moves: g = g_0 − b ∘ S.

    A time or state that the critic stream never reached takes the constant. Source: Variance Reduction Techniques for Gradient
    Estimates in Reinforcement Learning (Greensmith, Bartlett, Baxter, 2004) and The Optimal Reward Baseline for Gradient-Based
    Reinforcement Learning (Weaver and Tao, 2001) for the constant; Reinforcement Learning of Motor Skills with Policy Gradients
    (Peters and Schaal, 2008) for one per parameter and time.

    Attributes:
        of: constant, time, state, features or parameter.
        base: reward_to_go or total_return.
        fitted: b_t(s_t).
        by_parameter: [P] b_p.
        discounted: whether w_t = γ^t; as in the measurement it was fitted for.
    """

    of: str = "constant"
    base: str = "reward_to_go"
    fitted: StepBaseline | None = field(default=None, repr=False, compare=False)
    by_parameter: Tensor | None = field(default=None, repr=False, compare=False)
    discounted: bool = field(default=True, repr=False, compare=False)
    name = "optimal_baseline"
    fits = True
    formula = "G_t − b_t(s_t), or R_γ − b_t(s_t), with b of least tr Cov g"
    source = (
        "Variance Reduction Techniques for Gradient Estimates in Reinforcement Learning (Greensmith, Bartlett, Baxter, 2004), "
        "Reinforcement Learning of Motor Skills with Policy Gradients (Peters and Schaal, 2008)"
    )

    def __post_init__(self) -> None:
        """Check the class and what it is subtracted from."""
        checks.one_of("class of optimal_baseline", self.of, (*CLASSES, "parameter"))
        checks.one_of("base of optimal_baseline", self.base, BASES)

    @property
    def weighted(self) -> bool:
        """Whether the step weight applies: not to the total return."""
        return self.base == "reward_to_go"

    @property
    def coefficients(self) -> Tensor | None:
        """[P] −b_p."""
        return None if self.by_parameter is None else -self.by_parameter

    def companion(self, batch: Batch) -> Tensor:
        """Return w_t [M]."""
        return batch.discount if self.discounted and self.weighted else torch.ones_like(batch.traj.reward)

    def fit(self, batch: FitBatch) -> OptimalBaseline:
        """Take b from the critic stream.

        Args:
            batch: trajectories with the policy's scores.

        Returns:
            The fitted estimator.

        Raises:
            InputError: without scores, or for of=state where states are not counted.
        """
        batch = with_scores(batch, self.label)
        made = replace(self, discounted=batch.discount_weighting)
        w, weights = made.companion(batch), weight(make(self.base), batch, batch.discount_weighting)
        if self.of == "parameter":
            square, product = by_parameter(batch, w, weights)
            return replace(made, by_parameter=torch.where(square > 0, product / torch.where(square > 0, square, 1.0), 0.0))
        rows = Rows.of(batch.traj, batch.env)
        if self.of == "state":
            counted(rows.state, self.label, batch.traj.env)
        norm, inner = inner_products(batch, weights)
        return replace(made, fitted=StepBaseline.fit(self.of, w**2 * norm, w * inner, rows))

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b_t(s_t) or R_γ − b_t(s_t), [M]; without b where there is one for each parameter."""
        plain = make(self.base).phi(batch)
        return plain if self.fitted is None else plain - self.fitted.at(batch.traj)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        total = not self.weighted
        plain = Recursion(world.reward, world.gamma, total=total)
        if self.of == "parameter":
            b = world.score_moments(self.base).best_by_parameter if self.by_parameter is None else self.by_parameter
            return replace(plain, by_parameter=np.asarray(b))
        table = self._population(world) if self.fitted is None else self.fitted.table(world.mdp)
        if total and self.of != "constant":
            return replace(plain, later=lambda t: table[t])
        return replace(plain, subtract=lambda t: table[t])

    def _population(self, world: World) -> np.ndarray:
        """b_t(s) [H, S] of a finite world."""
        moments = world.score_moments(self.base)
        return best_table(self.of, moments.norm, moments.product, world)


@register
@dataclass(frozen=True)
class ScoreWeightedBaseline(Estimator):
    """Φ_t = G_t − b_t(s_t) with b = E[‖z_t‖² G_t] / E[‖z_t‖²], the best for the terms of g one by one.

    It minimises Σ_t E‖w_t z_t (G_t − b_t)‖² (with weights w_t² in the constant of all steps) and leaves out that the terms of one
    trajectory are correlated, so that its g can vary more than with V, or without a baseline. On one-step worlds it is
    ``optimal_baseline``. Source: Variance Reduction for Policy Gradient with Action-Dependent Factorized Baselines (Wu et al.,
    2018), for states.

    Attributes:
        of: constant, time or state.
        fitted: b_t(s_t).
    """

    of: str = "constant"
    fitted: StepBaseline | None = field(default=None, repr=False, compare=False)
    name = "score_weighted_baseline"
    fits = True
    formula = "G_t − b_t(s_t), b = E[‖z_t‖² G_t] / E[‖z_t‖²]"
    source = (
        "Variance Reduction for Policy Gradient with Action-Dependent Factorized Baselines (Wu, Rajeswaran, Duan, Kumar, Bayen, "
        "Kakade, Mordatch, Abbeel, 2018)"
    )

    def __post_init__(self) -> None:
        """Check the class."""
        checks.one_of("class of score_weighted_baseline", self.of, CLASSES[:3])

    def fit(self, batch: FitBatch) -> ScoreWeightedBaseline:
        """Take b from the critic stream.

        Args:
            batch: trajectories with the policy's scores.

        Returns:
            The fitted estimator.

        Raises:
            InputError: without scores, or for of=state where states are not counted.
        """
        batch = with_scores(batch, self.label)
        rows = Rows.of(batch.traj, batch.env)
        if self.of == "state":
            counted(rows.state, self.label, batch.traj.env)
        a = norms(batch) * (batch.discount**2 if batch.discount_weighting else 1.0)
        return replace(self, fitted=StepBaseline.fit(self.of, a, a * batch.reward_to_go, rows))

    def phi(self, batch: Batch) -> Tensor:
        """Return G_t − b_t(s_t), [M]."""
        return batch.reward_to_go - self.fitted.at(batch.traj)

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        if self.fitted is None:
            moments = world.score_moments("reward_to_go")
            table = best_table(self.of, moments.norm, moments.own, world)
        else:
            table = self.fitted.table(world.mdp)
        return Recursion(world.reward, world.gamma, subtract=lambda t: table[t])


def best_table(of: str, a: np.ndarray, c: np.ndarray, world: World) -> np.ndarray:
    """Return the b_t(s) [H, S] of a class that minimises Σ_t Σ_s (a b² − 2 c b), for a and c [H, S]."""
    rows = Rows.grid(world.mdp, world.horizon)
    return StepBaseline.fit(of, torch.from_numpy(a.ravel()), torch.from_numpy(c.ravel()), rows).table(world.mdp)
