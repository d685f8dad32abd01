"""Φ standardised over the steps of its batch, as training codes do it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varlab.estimators.base import Batch, Estimator
from varlab.estimators.normalised import standardise
from varlab.estimators.wrapped import Wrapped


@dataclass(frozen=True)
class Standardised(Wrapped):
    """(Φ_t − mean Φ) / (std Φ + 1e-8), mean and std over all steps of the batch (std with n in the denominator).

    It is biased: subtracting the batch's own mean shrinks the gradient, and long episodes weigh more in mean and std. The
    quotient changes the scale from batch to batch. Source: Spinning Up in Deep RL, Vanilla Policy Gradient (Achiam, 2018).

    Attributes:
        inner: the Φ that is standardised.
    """

    inner: Estimator = None
    name = "standardised"
    unbiased = "biased"
    batchwise = True
    target = "direction"
    formula = "(Φ_t − mean Φ) / (std Φ + 1e-8)"
    source = "Spinning Up in Deep RL, Vanilla Policy Gradient (Achiam, 2018)"

    @property
    def label(self) -> str:
        """The name of the Φ inside."""
        return f"standardised({self.inner.label})"

    def phi(self, batch: Batch) -> Tensor:
        """Return the standardised Φ_t, [M]."""
        return standardise(batch, self.inner.phi(batch))
