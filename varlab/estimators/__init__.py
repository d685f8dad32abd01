"""Estimators: which weight Φ_t each score receives."""

from varlab.estimators import (  # noqa: F401  (importing registers)
    action_values,
    baselines,
    bootstrapped,
    control_variates,
    doubly_robust,
    factorised,
    group,
    in_sample,
    natural,
    normalised,
    off_policy,
    optimal,
    returns,
    taylor,
)
from varlab.estimators.base import AT_CUT, REGISTRY, TARGETS, Batch, Estimator, FitBatch, register, tail_sum, weight
from varlab.estimators.baselines import Baseline
from varlab.estimators.nodes import NodeEstimator
from varlab.estimators.registry import SOURCE_TEXT, make, parse, resolve

__all__ = [
    "AT_CUT",
    "REGISTRY",
    "SOURCE_TEXT",
    "TARGETS",
    "Baseline",
    "Batch",
    "Estimator",
    "FitBatch",
    "NodeEstimator",
    "make",
    "parse",
    "register",
    "resolve",
    "tail_sum",
    "weight",
]
