"""A Φ made of another one: what it needs, how it is weighted and what it takes from other data are those of the Φ inside."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from torch import Tensor, nn

from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator


class Wrapped(Estimator):
    """An estimator with a field ``inner``, the Φ inside; a subclass says what becomes of its Φ_t."""

    inner: Estimator

    @property
    def needs(self) -> frozenset[str]:
        """What the Φ inside needs."""
        return self.inner.needs

    @property
    def weighted(self) -> bool:
        """Whether w_t = γ^t applies to the Φ inside."""
        return self.inner.weighted

    @property
    def fits(self) -> bool:
        """Whether the Φ inside takes numbers from the critic stream."""
        return self.inner.fits

    @property
    def coefficients(self) -> Tensor | None:
        """Those of the Φ inside."""
        return self.inner.coefficients

    @property
    def matrix(self) -> Tensor | None:
        """What the gradient of the Φ inside is multiplied by."""
        return self.inner.matrix

    def bind(self, env: Environment, policy: nn.Module) -> Self:
        """Bind the Φ inside."""
        return replace(self, inner=self.inner.bind(env, policy))

    def fit(self, batch: Batch) -> Self:
        """Fit the Φ inside."""
        return replace(self, inner=self.inner.fit(batch))
