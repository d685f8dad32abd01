"""Is a mean vector zero, and how long is it: sign-multiplier inference on ‖β‖² from block means.

Observed is d̄ = β + e, a mean of independent blocks, possibly the difference of two such means (measurement and reference).
Row b of E is the centred contribution of block b to e, made unbiased in variance by 1/√(1 − weight). Random signs ε give
e* = Σ_b ε_b E_b, which has the estimated covariance of e. Everything below needs E only through the Gram matrix E Eᵀ and E d̄.

References:
    | Bootstrap and wild bootstrap for high dimensional linear models (Mammen, 1993)
    | Power-constrained limits (Cowan, Cranmer, Gross and Vitells, 2011), for the floor under the upper end
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from varlab import checks
from varlab.analysis.blocks import CentredBlocks
from varlab.analysis.intervals import Interval, student
from varlab.types import Moments

LEAST_DRAWS = 1999
"""Fewest sign draws: p-values down to 1/2,000."""


def random_signs(rng: np.random.Generator, draws: int, blocks: int) -> np.ndarray:
    """Return [draws, blocks] independent signs ±1 as float64."""
    return 2.0 * rng.integers(0, 2, size=(draws, blocks)) - 1.0


def contribution(weight: np.ndarray) -> np.ndarray:
    """Return [B] the factor w_b/√(1 − w_b) that makes a centred block the row E_b.

    Cov(x_b − x̄) is (1 − w_b) Cov x_b where Cov x_b ∝ 1/w_b, so Σ_b E_b E_bᵀ is unbiased for Cov x̄.

    Args:
        weight: [B] shares of the blocks, summing to 1.

    Returns:
        [B].
    """
    return weight / np.sqrt(1.0 - weight)


def pair_square(norm_sq: float, inner: np.ndarray, dev_sq: np.ndarray, weight: np.ndarray) -> float:
    """Return Σ_{b≠b'} w_b w_b' ⟨d_b, d_b'⟩ / (1 − Σ w²), unbiased for ‖E d_b‖² given the reference.

    With d_b = d̄ + a_b and Σ w_b a_b = 0 it equals ‖d̄‖² − (2 Σ w_b² ⟨d̄, a_b⟩ + Σ w_b² ‖a_b‖²)/(1 − Σ w²).

    Args:
        norm_sq: ‖d̄‖².
        inner: [B] ⟨d̄, a_b⟩.
        dev_sq: [B] ‖a_b‖².
        weight: [B].

    Returns:
        The U-statistic, which may be negative.
    """
    w_sq = np.square(weight)
    return float(norm_sq - w_sq.dot(2.0 * inner + dev_sq) / (1.0 - w_sq.sum()))


def pair_square_leave_one_out(norm_sq: float, inner: np.ndarray, dev_sq: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return [B] :func:`pair_square` over all blocks but one; arguments as there."""
    h = weight / (1.0 - weight)  # without block b the mean moves by −h_b a_b
    moved = norm_sq - 2.0 * h * inner + h**2 * dev_sq
    each = np.square(weight) * (norm_sq + 2.0 * inner + dev_sq)  # w_c² ‖d_c‖², which no other block enters
    rest = (1.0 - weight) ** 2
    diagonal = (each.sum() - each) / rest
    share = (np.square(weight).sum() - np.square(weight)) / rest
    return (moved - diagonal) / (1.0 - share)


class SignResult(NamedTuple):
    """p-value of β = 0 and the interval of ‖β‖²."""

    p_value: float
    interval: Interval


def sign_multiplier(
    norm_sq: float,
    inner: np.ndarray,
    gram: np.ndarray,
    signs: np.ndarray,
    degrees: float,
    level: float = 0.95,
    tolerance: float = 0.0,
    null: np.ndarray | None = None,
) -> SignResult:
    """Test β = 0 by random signs, and find the interval of ‖β‖² the same way, cross term included.

    The p-value is the share of draws with ‖Σ ε_b x_b‖² ≥ ‖d̄‖², (1 + #)/(1 + draws), where d̄ = Σ x_b and the x_b are centred at
    what they are under β = 0 (:func:`null_gram`) and not at their own mean: exact where blocks are symmetric about β = 0.

    Under ‖β‖² = θ, ‖d̄‖² is distributed like θ + 2√θ⟨u, e*⟩ + ‖e*‖² with u the direction of β. Each draw is solved for √θ; the
    ends are the (1 ∓ level)/2 quantiles of the roots, the lower one 0 unless the p-value is below (1 − level)/2.

    u is not known, and d̄/‖d̄‖ in its place covers as little as 76 % when few directions carry the noise: a short d̄ then points
    away from them. Hence (a) every draw uses the direction of d̄ + e' with e' another draw, (b) the spread along it is enlarged
    by one standard error of uᵀCov(e)u and to Student's t, and (c) for the upper end ‖d̄‖² counts as no less than the median of
    ‖e*‖²: luck does not prove a bias smaller than the measurement could resolve. Simulated coverage is then 92 to 99 %.

    Args:
        norm_sq: ‖d̄‖².
        inner: [M] E d̄.
        gram: [M, M] E Eᵀ.
        signs: [draws, M].
        degrees: degrees of freedom of the variance along one direction.
        level: coverage.
        tolerance: a difference of squares that is rounding, not evidence.
        null: [M, M] Gram matrix of the x_b; ``gram`` if None.

    Returns:
        The p-value in (0, 1], and both ends, 0 or more.
    """
    turned = signs @ gram
    q = np.einsum("dm,dm->d", turned, signs)
    under = q if null is None else np.einsum("dm,dm->d", signs @ null, signs)
    p_value = (1 + np.count_nonzero(under >= norm_sq - tolerance)) / (1 + signs.shape[0])
    along = signs @ inner  # ⟨d̄, e*⟩
    length_sq = norm_sq + 2.0 * np.roll(along, 1) + np.roll(q, 1)
    cross = along + np.einsum("dm,dm->d", turned, np.roll(signs, 1, axis=0))
    positive = length_sq > 0
    x = np.divide(cross, np.sqrt(length_sq, where=positive, out=np.ones_like(q)), where=positive, out=np.zeros_like(q))
    across = np.maximum(q - np.square(x), 0.0)
    x = x * _enlarge(norm_sq, inner, gram) * student(level, degrees) / student(level, np.inf)

    def roots(square: float) -> np.ndarray:
        # a draw longer than d̄ for every θ has no root: it speaks for θ = 0
        return np.where(square >= across, np.maximum(np.sqrt(np.maximum(square - across, 0.0)) - x, 0.0), 0.0)

    low = np.quantile(roots(norm_sq), 0.5 - 0.5 * level) if p_value < 0.5 - 0.5 * level else 0.0
    high = np.quantile(roots(max(norm_sq, float(np.median(q)))), 0.5 + 0.5 * level)
    return SignResult(float(p_value), Interval(float(low**2), float(high**2)))


def null_gram(share: np.ndarray, toward: np.ndarray, gram: np.ndarray, inner: np.ndarray, norm_sq: float) -> np.ndarray:
    """Return the Gram matrix of x_b = share_b (dev_b + toward_b d̄), the blocks about their common mean under β = 0.

    With an exact reference ``toward`` is 1: the blocks less the reference. With a sampled one, the common mean of both sets is
    estimated between them, at λ of the way from the reference: ``toward`` is 1 − λ for the measurement and −λ for the reference.

    Args:
        share: [M] weight of each block, negative for the reference.
        toward: [M] see above.
        gram: [M, M] ⟨dev_b, dev_c⟩.
        inner: [M] ⟨dev_b, d̄⟩.
        norm_sq: ‖d̄‖².

    Returns:
        [M, M]; its entries sum to ‖d̄‖².
    """
    x = gram + toward[:, None] * inner + inner[:, None] * toward + np.outer(toward, toward) * norm_sq
    return share[:, None] * x * share


def _enlarge(norm_sq: float, inner: np.ndarray, gram: np.ndarray) -> float:
    """Return √(1 + se/v) with v = uᵀCu, C = EᵀE and u = d̄/‖d̄‖; se = 2‖C^{1/2}(C − v)u‖/‖d̄‖ is v's error through u."""
    if norm_sq <= 0:
        return 1.0
    g = inner / np.sqrt(norm_sq)
    v = g.dot(g)
    return float(np.sqrt(1.0 + 2.0 * np.linalg.norm(gram @ g - v * g) / np.sqrt(norm_sq) / v)) if v > 0 else 1.0


class Equality(NamedTuple):
    """Test of E g_i = E g_j: p-value, debiased ‖E g_i − E g_j‖² (may be negative) and its interval."""

    p_value: float
    difference_sq: float
    low: float
    high: float


def equality_test(
    moments: Moments, i: int, j: int, rng: np.random.Generator, draws: int = LEAST_DRAWS, level: float = 0.95
) -> Equality:
    """Test that two choices have the same mean, on paired differences of block means.

    No reference enters, so common random numbers make it far sharper than two bias tests.

    Args:
        moments: block moments.
        i: first choice.
        j: second choice.
        rng: generator of the sign draws.
        draws: sign draws, at least 1,999.
        level: coverage of the interval.

    Returns:
        The p-value of equality, and ‖E g_i − E g_j‖² with its interval.
    """
    checks.positive_int("draws", draws, least=LEAST_DRAWS)
    blocks = CentredBlocks.of(moments.count, moments.mean[:, i] - moments.mean[:, j])
    d = blocks.mean
    norm_sq, inner = float(d @ d), blocks.dev @ d
    factor = contribution(blocks.weight)
    gram, signs = factor[:, None] * blocks.gram * factor, random_signs(rng, draws, len(factor))
    null = null_gram(blocks.weight, np.ones_like(factor), blocks.gram, inner, norm_sq)
    rounding = 1e-26 * float(np.square(moments.mean[:, [i, j]]).sum(axis=(1, 2)).mean())
    value = pair_square(norm_sq, inner, blocks.dev_sq, blocks.weight)
    p_value, ends = sign_multiplier(norm_sq, factor * inner, gram, signs, len(factor) - 1, level, rounding, null)
    return Equality(p_value, value, *ends)


def equivalent(row: Mapping, margin: float = 0.1) -> bool:
    """Say whether the bias is proven small: bias_sq_high < (margin · ‖∇J‖)².

    Args:
        row: a row of :func:`summarise`.
        margin: largest bias that counts as none, as a share of ‖∇J‖.

    Returns:
        True where proven; False where not, or where ‖∇J‖ itself is not resolved from 0.
    """
    return bool(row["bias_sq_high"] < (margin * row["grad_norm"]) ** 2 and row["grad_norm_low"] > 0)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust the p-values of a family of tests; rejecting adjusted p ≤ α keeps the family-wise error at α.

    The r-th smallest of m becomes max over s ≤ r of min(1, (m − s + 1) p_(s)).

    References:
        | A simple sequentially rejective multiple test procedure (Holm, 1979)

    Args:
        p_values: [m]; NaN entries are no tests and stay NaN.

    Returns:
        [m] adjusted p-values in the order given.
    """
    p = np.asarray(p_values, dtype=np.float64)
    out = np.full(p.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return out
