"""Confidence intervals of smooth statistics of B independent blocks: jackknife, skewness correction, and their combination.

A statistic comes with its value and its B leave-one-block-out values. The pseudo-values B·value − (B − 1)·value_(b) behave
like B independent observations whose mean is the statistic, so their spread and skewness give a studentised interval.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from varlab import checks


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


def jackknife_variance(leave_one_out: ArrayLike) -> float:
    """Return the delete-one jackknife variance (B − 1)/B Σ_b (x_(b) − mean)² of a statistic.

    Source: Bias and confidence in not-quite large samples (Tukey, 1958).

    Args:
        leave_one_out: [B] the statistic without block b.

    Returns:
        The variance, 0 or more.
    """
    x = np.asarray(leave_one_out, dtype=np.float64)
    return float((x.size - 1) / x.size * np.square(x - x.mean()).sum())


def jackknife_covariance(x: ArrayLike, y: ArrayLike) -> float:
    """Return the delete-one jackknife covariance of two statistics of the same blocks.

    Args:
        x: [B] first statistic without block b.
        y: [B] second statistic without block b.

    Returns:
        (B − 1)/B Σ_b (x_(b) − mean)(y_(b) − mean).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return float((x.size - 1) / x.size * ((x - x.mean()) * (y - y.mean())).sum())


def jackknife_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Return the jackknife correlation of two statistics of the same blocks; 0 where one of them does not vary.

    Args:
        x: [B] first statistic without block b.
        y: [B] second statistic without block b.

    Returns:
        A number in [−1, 1].
    """
    spread = np.sqrt(jackknife_variance(x) * jackknife_variance(y))
    return float(np.clip(jackknife_covariance(x, y) / spread, -1.0, 1.0)) if spread > 0 else 0.0


def welch_satterthwaite(variances: ArrayLike, degrees: ArrayLike) -> float:
    """Return the effective degrees of freedom (Σ v_i)² / Σ v_i²/ν_i of a sum of independent variance estimates.

    Source: The generalization of "Student's" problem when several different population variances are involved (Welch, 1947).

    Args:
        variances: [m] estimated variances v_i.
        degrees: [m] their degrees of freedom ν_i.

    Returns:
        The degrees of freedom; the sum of ν_i where every variance is 0.
    """
    v, nu = np.asarray(variances, dtype=np.float64), np.asarray(degrees, dtype=np.float64)
    if v.sum() <= 0:
        return float(nu.sum())
    v = v / v.sum()  # scale first: squares of small variances underflow
    return float(1.0 / np.square(v).dot(1.0 / nu))


def student(level: float, degrees: float) -> float:
    """Return the two-sided Student quantile: P(|T| ≤ q) = level.

    Args:
        level: coverage, between 0 and 1.
        degrees: degrees of freedom.

    Returns:
        q.
    """
    level = checks.in_range("level", level, 0.5, 1 - 1e-9)
    return float(stats.t.ppf(0.5 + 0.5 * level, degrees))


def log_interval(value: float, leave_one_out: ArrayLike, level: float = 0.95) -> Interval:
    """Jackknife interval of a positive statistic on the log scale, exp(log x ± t_{B−1} se).

    Args:
        value: x > 0.
        leave_one_out: [B] values without block b, all > 0.
        level: coverage.

    Returns:
        Both ends; (nan, nan) where a value is not positive.
    """
    x = np.asarray(leave_one_out, dtype=np.float64)
    if not (value > 0 and (x > 0).all()):
        return Interval(float("nan"), float("nan"))
    half = student(level, x.size - 1) * np.sqrt(jackknife_variance(np.log(x)))
    return Interval(float(value * np.exp(-half)), float(value * np.exp(half)))


def skew_corrected(value: float, leave_one_out: ArrayLike, level: float = 0.95) -> Interval:
    """Jackknife interval of a positive statistic, corrected for the skewness of its pseudo-values.
    """
    x = np.asarray(leave_one_out, dtype=np.float64)
    blocks = x.size
    se = np.sqrt(jackknife_variance(x))
    if not se > 0:
        return Interval(float(value), float(value))
    q = student(level, blocks - 1)
    a = float(stats.skew(-x, bias=False)) / np.sqrt(blocks)
    upper_t, lower_t = (_hall_inverse(t, a) for t in (q, -q))
    return Interval(*(float(_shift(value, -se * t)) for t in (upper_t, lower_t)))


def _shift(value, step):
    r = step / value
    # log(1 + r) to second order keeps the end positive where r <= -1/2
    return value * (1 + r) if r > -0.5 else value * 0.5 * np.exp(2 * (r + 0.5))


def _hall_inverse(x: float, a: float) -> float:
    if abs(a) < 1e-6:
        return x
    return 3.0 / a * (np.cbrt(1.0 + a * (x - a / 6.0)) - 1.0)
