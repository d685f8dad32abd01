"""Normalisations over a whole unit: advantages standardised over its steps, and the gradient as a mean over steps.

Both divide by a number of the unit itself, so that E g is no multiple of ∇J; as the unit grows the number becomes a constant and
the direction of E g that of the estimator inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, register
from varlab.estimators.bootstrapped import GAE
from varlab.estimators.group import TINY, whole_units
from varlab.estimators.nodes import NodeEstimator
from varlab.estimators.registry import parse
from varlab.estimators.wrapped import Wrapped

VANILLA = "Spinning Up in Deep RL: Vanilla Policy Gradient (Achiam, 2018)"


def at_least_two(estimator: Estimator, batch: Batch) -> None:
    """Check that a unit has at least two trajectories.

    Raises:
        InputError: if it has one, or the trajectories do not fill whole units.
    """
    if batch.unit < 2:
        raise checks.InputError(
            f"Units of at least 2 trajectories were expected for {estimator.label}, but group_size and groups are both 1; set "
            "groups=100 or another number."
        )
    whole_units(estimator, batch)


def per_unit(batch: Batch, x: Tensor) -> Tensor:
    """Return Σ x [N / unit] over the steps of each unit, for x [M]."""
    return x.new_zeros(len(batch.traj) // batch.unit).index_add_(0, batch.traj.episode // batch.unit, x)


def standardise(batch: Batch, x: Tensor) -> Tensor:
    """Return (x − mean x) / (std x + 1e-8) [M], mean and std over all steps of each unit; std divides by their number."""
    unit, count = batch.traj.episode // batch.unit, per_unit(batch, torch.ones_like(x))
    centred = x - (per_unit(batch, x) / count)[unit]
    std = (per_unit(batch, centred.square()) / count).sqrt()
    return centred / (std + TINY)[unit]


@register
@dataclass(frozen=True)
class NormalisedAdvantage(Estimator):
    """Φ_t = (A_t − mean A) / (std A + 1e-8) with A the advantage of gae, mean and std over all steps of the unit.

    std divides by the number of steps. The mean contains A_t itself and is no baseline; divided by std the scale is that of no
    gradient. As the unit grows, mean and std become constants, and E g a multiple of the mean of gae. Source: Spinning Up in
    Deep RL: Vanilla Policy Gradient (Achiam, 2018), which adds nothing to std.

    Attributes:
        lam: λ of gae, in [0, 1].
    """

    lam: float = 0.95
    name = "normalised_advantage"
    needs = frozenset({"v"})
    unbiased = "biased"
    batchwise = True
    target = "direction"
    formula = "(A_t − mean A) / (std A + 1e-8), A_t = Σ_l (γλ)^l δ_{t+l}"
    source = VANILLA

    def __post_init__(self) -> None:
        """Check λ."""
        object.__setattr__(self, "lam", checks.in_range(f"lam of {self.name}", self.lam, 0.0, 1.0))

    def phi(self, batch: Batch) -> Tensor:
        """Return the standardised advantage, [M].

        Raises:
            InputError: if the unit is one trajectory.
        """
        at_least_two(self, batch)
        return standardise(batch, GAE(self.lam).phi(batch))


@register
@dataclass(frozen=True)
class StepMean(Wrapped):
    """Φ_t = N Φ'_t / Σ_i T_i: the gradient as a mean over the N trajectories' steps, g = Σ_i Σ_t w_t z_t Φ'_t / Σ_i T_i.

    A loss averaged over steps has this gradient. It is a ratio of two means: E g is no multiple of ∇J where lengths and gradients
    are correlated, with an error of order 1/N in direction; as the unit grows it tends to E[Σ_t w_t z_t Φ'_t] / E T. Source:
    Spinning Up in Deep RL, Part 3: Intro to Policy Optimization (Achiam, 2018), in its code; with group_normalised inside it is
    the loss of DAPO: An Open-Source LLM Reinforcement Learning System at Scale (Yu et al., 2025).

    Attributes:
        of: Φ' by name, such as ``gae(lam=0.95)``.
        inner: Φ' itself, with the numbers that it took from the critic stream.
    """

    of: str = "reward_to_go"
    inner: Estimator | None = field(default=None, repr=False, compare=False)
    name = "step_mean"
    unbiased = "biased"
    batchwise = True
    target = "direction"
    formula = "N Φ'_t / Σ_i T_i"
    source = "Spinning Up in Deep RL, Part 3: Intro to Policy Optimization (Achiam, 2018)"

    def __post_init__(self) -> None:
        """Read the name of Φ'.

        Raises:
            InputError: if it is no Φ of which a mean over steps can be taken.
        """
        if self.inner is not None:
            return
        inner = parse(str(self.of))
        if isinstance(inner, (NodeEstimator, StepMean)) or inner.target == "natural":
            raise checks.InputError(
                f"A Φ that weighs the scores of the steps taken was expected inside step_mean, but it is {inner.label}; name for "
                "instance reward_to_go."
            )
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "of", inner.label)

    def phi(self, batch: Batch) -> Tensor:
        """Return N Φ'_t / Σ_i T_i, [M].

        Raises:
            InputError: if the unit is one trajectory.
        """
        return self._per_step(batch, self.inner.phi(batch))

    def companion(self, batch: Batch) -> Tensor:
        """Return that of Φ', divided in the same way."""
        return self._per_step(batch, self.inner.companion(batch))

    def _per_step(self, batch: Batch, x: Tensor) -> Tensor:
        at_least_two(self, batch)
        mean_length = per_unit(batch, torch.ones_like(x)) / batch.unit
        return x / mean_length[batch.traj.episode // batch.unit]
