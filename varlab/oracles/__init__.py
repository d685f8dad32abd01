"""Exact moments of an estimator, without sampling."""

from varlab.oracles.exact import ExactMoments, exact

__all__ = ["ExactMoments", "exact"]
