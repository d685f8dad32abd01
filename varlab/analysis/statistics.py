"""Mean, bias and variance of a gradient estimator, each with an interval, as pure functions of block moments.

For choice k with block means m_b (count n_b, weight w_b = n_b/n), m̄ = Σ w_b m_b and reference r̄ ≈ ∇J:

=====================  ==================================================================================================
variance               (Σ_b Σ_{i∈b} ‖g_i − m_b‖² + Σ_b n_b ‖m_b − m̄‖²)/(n − 1), unbiased for tr Cov
bias_sq                pairs of distinct blocks of m_b − r̄, less tr Cov r̄; unbiased, may be negative
mse                    bias_sq + variance/N at N = batch_size
nsr                    variance/‖∇J‖², ‖∇J‖² debiased for the reference's error
cosine                 ⟨E g, ∇J⟩/(‖∇J‖ √(‖E g‖² + variance/N)), squares debiased; (1 + nsr/N)^−1/2 where Φ is unbiased by proof
effective_directions   (tr Σ)²/tr Σ²
=====================  ==================================================================================================

Intervals: :func:`varlab.analysis.intervals.jackknife_interval` (log scale; Fisher's z for the cosine), except those of bias_sq
and ‖∇J‖², which invert a sign-multiplier test (:mod:`varlab.analysis.bias`). No difference of large norms is formed: every
leave-one-out value is a polynomial in centred block means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from varlab import checks
from varlab.analysis import bias as bias_room
from varlab.analysis.bias import LEAST_DRAWS, Equality, equality_test, equivalent, holm
from varlab.analysis.blocks import CentredBlocks, effective_directions, pooled_variance
from varlab.analysis.intervals import FISHER, LINEAR, Interval, degrees_of_freedom, jackknife_interval
from varlab.analysis.targets import Truth, across, transformed, truth_of
from varlab.types import Moments, Reference

__all__ = ["Equality", "effective_directions", "equality_test", "equivalent", "holm", "pooled_variance", "summarise"]

LEAST_BLOCKS = 8  # below it neither a block variance nor tr Σ² says anything
WHOLE_CIRCLE = Interval(-1.0, 1.0)
#: Trajectories per unit of kurtosis below which tests and intervals are flagged.
TAIL_LIMIT = 40


def summarise(
    moments: Moments,
    reference: Reference,
    *,
    batch_size: int,
    rng: np.random.Generator,
    draws: int = LEAST_DRAWS,
    level: float = 0.95,
    unbiased: Sequence[bool] | None = None,
    pilot_kurtosis: Sequence[float] | None = None,
    targets: Sequence[str] | None = None,
    matrices: Mapping[int, np.ndarray] | None = None,
) -> list[dict]:
    """Every statistic of every choice, with intervals.

    Args:
        moments: block moments of K choices of Φ on shared trajectories.
        reference: ∇J, exact or sampled on a stream of its own.
        batch_size: N of mse and cosine.
        rng: generator of the sign draws.
        draws: sign draws, at least 1,999.
        level: coverage of the intervals.
        unbiased: [K] which choices have E g = ∇J by proof: their cosine is (1 + nsr/N)^−1/2 and the interval of their mse that of
            variance/N, both sharper than from an estimated E g. None: no choice.
        pilot_kurtosis: [K] E‖g−ḡ‖⁴/(E‖g−ḡ‖²)² from other data than the measurement, for the flag ``heavy-tails``: the sample's
            own kurtosis is small just where the rare large gradients were not drawn, and its variance with it.
        targets: [K] ``gradient``, ``direction`` or ``natural``; None: all are compared with ∇J. Of ``direction`` the scale is
            free: bias_sq is that against the best multiple of ∇J, nsr is variance/‖E ĝ‖². Its variance_ratio is left empty,
            as that of ``natural``, which is compared with A ∇J.
        matrices: choice → A [P, P] of those whose target is ``natural``.

    Returns:
        K rows with grad_norm, variance, variance_ratio (paired; to ``moments.comparator``), bias_sq, mse, nsr, cosine, each with
        ``_low`` and ``_high``; bias_p_value, kurtosis, effective_directions; and flag, reasons joined by ``"; "``:
        ``gradient-not-resolved`` (‖∇J‖² not positive at ``level``: nsr_high is inf, the cosine's interval [−1, 1] or from 0 on),
        ``reference-limited`` (tr Cov of the reference above a tenth of variance/n), ``zero-variance``,
        ``comparator-zero-variance`` (no ratio), ``cosine-undefined`` (N too large for a debiased ‖E g‖²), ``heavy-tails``
        (n < :data:`TAIL_LIMIT` times the pilot's kurtosis: the bias test may reject too often, intervals may cover too little).
    """
    _check(moments, reference, batch_size, draws)
    signs = bias_room.random_signs(rng, draws, len(moments.count))
    plain = truth_of(reference, rng, draws, level)
    truths = {k: truth_of(transformed(reference, a), rng, draws, level) for k, a in (matrices or {}).items()}
    choices = [CentredBlocks.of_choice(moments, k) for k in range(len(moments.names))]
    variances = [_variance(c, moments.trace_m2[:, k]) for k, c in enumerate(choices)]
    comparator = variances[moments.comparator]
    n, size = int(moments.units.sum()), batch_size / moments.unit
    rows = []
    for k, (choice, (variance, loo)) in enumerate(zip(choices, variances, strict=True)):
        row: dict = {}
        flags = []
        truth, target = truths.get(k, plain), "gradient" if targets is None else targets[k]
        compared = across(choice, truth) if target == "direction" else (choice, truth)
        gradient = Interval(*(math.sqrt(max(end, 0.0)) for end in truth.square_interval))
        _put(row, "grad_norm", math.sqrt(max(truth.square, 0.0)), gradient)
        _put(row, "variance", variance, _positive(variance, [loo], level))
        if target == "gradient":
            _put(row, "variance_ratio", *_ratio((variance, loo), comparator, k == moments.comparator, level))
        else:  # in other units
            _put(row, "variance_ratio", math.nan, Interval(math.nan, math.nan))
        row |= _bias_rows(*compared, variance, loo, signs, size, level, row)
        free = target == "direction"
        _put(row, "nsr", *(_own_nsr(choice, variance, loo, level) if free else _nsr(variance, loo, truth, row, level)))
        proven = unbiased is not None and unbiased[k] and truth.square > 0
        if proven:
            row["mse_low"] = min(row["mse"], row["variance_low"] / size)
            row["mse_high"] = max(row["mse"], row["variance_high"] / size)
        m2c = moments.m2c[:, k].sum()
        row["kurtosis"] = float(n * moments.m4[:, k].sum() / m2c**2) if variance > 0 and m2c > 0 else math.nan
        if proven:
            cosine, interval = _unbiased_cosine(row, size)
        else:
            cosine, interval = _cosine(choice, truth, variance, loo, size, level)
        _put(row, "cosine", cosine, interval)
        row["effective_directions"] = effective_directions(choice, variance)
        if not truth.resolved:
            flags.append("gradient-not-resolved")
        if compared[1].noise > 0.1 * variance / n:
            flags.append("reference-limited")
        if variance == 0:
            flags.append("zero-variance")
        if comparator[0] == 0 and k != moments.comparator and target == "gradient":
            flags.append("comparator-zero-variance")
        if math.isnan(cosine) and truth.resolved:
            flags.append("cosine-undefined")
        if pilot_kurtosis is not None and n < TAIL_LIMIT * pilot_kurtosis[k]:
            flags.append("heavy-tails")
        row["flag"] = "; ".join(flags)
        for name in ("variance", "nsr"):  # of a unit so far
            row |= {end: moments.unit * row[end] for end in (name, f"{name}_low", f"{name}_high")}
        rows.append(row)
    return rows


def _put(row: dict, name: str, value: float, interval: Interval) -> None:
    """Write a value and its interval under ``name``, ``name_low`` and ``name_high``."""
    row[name], row[f"{name}_low"], row[f"{name}_high"] = float(value), interval.low, interval.high


def _check(moments: Moments, reference: Reference, batch_size: int, draws: int) -> None:
    """Guard the border of the room: shapes, finiteness, enough blocks, enough draws."""
    checks.positive_int("batch_size", batch_size)
    checks.positive_int("draws", draws, least=LEAST_DRAWS)
    blocks, parameters = moments.mean.shape[0], moments.mean.shape[2]
    checks.positive_int("the number of blocks of the measurement", blocks, least=LEAST_BLOCKS)
    if reference.grad.shape != (parameters,):
        raise checks.InputError(
            f"A reference gradient of shape ({parameters},) was expected, but it has shape {reference.grad.shape}; "
            "make the reference with the same policy."
        )
    if reference.block_mean is not None:
        checks.positive_int("the number of blocks of the reference", len(reference.block_mean), least=LEAST_BLOCKS)
    for what, x in (("moments", moments.mean), ("moments", moments.trace_m2), ("reference", reference.grad)):
        if not np.isfinite(x).all():
            raise checks.InputError(f"Finite {what} were expected, but a NaN or infinity came; look for its trajectory.")


def _variance(choice: CentredBlocks, trace_m2: np.ndarray) -> tuple[float, np.ndarray]:
    """Pooled variance; exactly 0 where what is left is the rounding of a constant gradient."""
    value, loo = pooled_variance(choice.count, trace_m2, choice.dev_sq)
    rounding = 1e-26 * float(choice.mean @ choice.mean)
    return (0.0, np.zeros_like(loo)) if value <= rounding else (value, loo)


def _positive(value: float, sources: list[np.ndarray], level: float) -> Interval:
    """Log jackknife; [0, 0] for 0, and the linear jackknife cut at 0 where a leave-one-out value is 0."""
    if value == 0:
        return Interval(0.0, 0.0)
    if all((x > 0).all() for x in sources):
        return jackknife_interval(value, sources, level)
    low, high = jackknife_interval(value, sources, level, LINEAR)
    return Interval(max(low, 0.0), high)


def _ratio(
    own: tuple[float, np.ndarray], comparator: tuple[float, np.ndarray], itself: bool, level: float
) -> tuple[float, Interval]:
    """Paired ratio of variances, by the jackknife on its logarithm."""
    if itself:
        return 1.0, Interval(1.0, 1.0)
    if comparator[0] == 0:
        return math.nan, Interval(math.nan, math.nan)
    value = own[0] / comparator[0]
    if own[0] == 0 or not ((own[1] > 0).all() and (comparator[1] > 0).all()):
        return value, Interval(0.0, 0.0 if own[0] == 0 else math.inf)
    # Tails of both cancel in part, and with them what the blocks show of skewness and kurtosis. Chosen by simulation: half of
    # the skewness where it narrows, and degrees of freedom between those of the ratio and of the heavier variance.
    loo = own[1] / comparator[1]
    shown, heavier = degrees_of_freedom(np.log(loo)), min(degrees_of_freedom(np.log(x[1])) for x in (own, comparator))
    return value, jackknife_interval(value, [loo], level, inward=0.5, degrees=2.0 / (1.0 / shown + 1.0 / heavier))


def _bias_rows(
    choice: CentredBlocks,
    truth: Truth,
    variance: float,
    loo: np.ndarray,
    signs: np.ndarray,
    batch_size: float,
    level: float,
    row: Mapping,
) -> dict:
    """bias_sq, bias_p_value and mse of one choice."""
    d = choice.mean - truth.grad
    norm_sq, inner = float(d @ d), choice.dev @ d
    value = bias_room.pair_square(norm_sq, inner, choice.dev_sq, choice.weight) - truth.noise
    value_loo = bias_room.pair_square_leave_one_out(norm_sq, inner, choice.dev_sq, choice.weight) - truth.noise
    factor, gram, along = bias_room.contribution(choice.weight), choice.gram, inner
    degrees = len(factor) - 1
    sources = [value_loo + loo / batch_size]
    if truth.blocks is not None:
        cross = choice.dev @ truth.blocks.dev.T
        gram = np.block([[gram, cross], [cross.T, truth.blocks.gram]])
        factor = np.concatenate([factor, -bias_room.contribution(truth.blocks.weight)])
        along = np.concatenate([along, truth.blocks.dev @ d])
        signs = np.concatenate([signs, truth.signs], axis=1)
        degrees = min(degrees, len(truth.blocks.count) - 1)
        # without reference block c, d̄ moves by +h_c e_c and tr Cov r̄ is that of the other blocks
        h, w_sq = truth.blocks.h, np.square(choice.weight)
        moved = norm_sq + 2 * h * (truth.blocks.dev @ d) + h**2 * truth.blocks.dev_sq
        diagonal = (w_sq.dot(2 * inner + choice.dev_sq) + 2 * h * (w_sq @ cross)) / (1 - w_sq.sum())
        sources.append(moved - diagonal - truth.noise_loo + variance / batch_size)
    share = choice.weight if truth.blocks is None else np.concatenate([choice.weight, -truth.blocks.weight])
    near = truth.noise / (truth.noise + variance / choice.count.sum()) if truth.noise else 0.0
    toward = np.where(share > 0, 1.0 - near, -near)
    null = bias_room.null_gram(share, toward, gram, along, norm_sq)
    gram, along = factor[:, None] * gram * factor, factor * along
    rounding = 1e-26 * float(choice.mean @ choice.mean + truth.grad @ truth.grad)
    out: dict = {}
    p_value, ends = bias_room.sign_multiplier(norm_sq, along, gram, signs, degrees, level, rounding, null)
    _put(out, "bias_sq", value, ends)
    out["bias_p_value"] = p_value
    mse = value + variance / batch_size
    if mse > 0 and all((x > 0).all() for x in sources):
        interval = jackknife_interval(mse, sources, level)
    else:  # a debiased square below zero has no logarithm: add the ends instead, which is conservative
        interval = Interval(ends.low + row["variance_low"] / batch_size, ends.high + row["variance_high"] / batch_size)
    _put(out, "mse", mse, interval)
    return out


def _nsr(variance: float, loo: np.ndarray, truth: Truth, row: Mapping, level: float) -> tuple[float, Interval]:
    """variance/‖∇J‖². Where ‖∇J‖² is not resolved from 0 the upper end is inf and the lower joins two extreme ends."""
    if not truth.resolved:
        value = variance / truth.square if truth.square > 0 else (math.inf if variance > 0 else math.nan)
        top = truth.square_interval.high
        return value, Interval(row["variance_low"] / top if top > 0 else math.nan, math.inf)
    sources = [loo / truth.square]
    if truth.square_loo is not None:
        sources.append(variance / truth.square_loo)
    return variance / truth.square, _positive(variance / truth.square, sources, level)


def _own_nsr(choice: CentredBlocks, variance: float, loo: np.ndarray, level: float) -> tuple[float, Interval]:
    """variance/‖E ĝ‖² of a choice of free scale, ‖E ĝ‖² debiased; the upper end is inf where it is not resolved from 0."""
    n, h, mean = choice.count.sum(), choice.h, choice.mean
    square = float(mean @ mean) - variance / n
    squares = mean @ mean - 2 * h * (choice.dev @ mean) + h**2 * choice.dev_sq - loo / (n - choice.count)
    if not (square > 0 and (squares > 0).all()):
        value = variance / square if square > 0 else (math.inf if variance > 0 else math.nan)
        return value, Interval(0.0, math.inf)
    return variance / square, _positive(variance / square, [loo / squares], level)


def _unbiased_cosine(row: Mapping, batch_size: float) -> tuple[float, Interval]:
    """ρ_N = (1 + nsr/N)^−1/2 where E g = ∇J, with the ends that nsr has."""
    value, low, high = (1.0 / math.sqrt(1.0 + row[name] / batch_size) for name in ("nsr", "nsr_high", "nsr_low"))
    return value, Interval(low, high)


def _cosine(
    choice: CentredBlocks, truth: Truth, variance: float, loo: np.ndarray, batch_size: float, level: float
) -> tuple[float, Interval]:
    """ρ_N with debiased squares; Fisher's z, or the linear jackknife cut at ±1 where some value reaches ±1."""
    if truth.square <= 0:
        return math.nan, WHOLE_CIRCLE
    n, h, m = choice.count.sum(), choice.h, choice.mean
    inner, length = float(m @ truth.grad), float(m @ m)
    spread = length - variance / n + variance / batch_size
    lengths = length - 2 * h * (choice.dev @ m) + h**2 * choice.dev_sq
    spread_loo = lengths - loo / (n - choice.count) + loo / batch_size
    if not (spread > 0 and (spread_loo > 0).all()):
        return math.nan, WHOLE_CIRCLE
    value = inner / math.sqrt(truth.square * spread)
    if not truth.resolved:
        return min(max(value, -1.0), 1.0), WHOLE_CIRCLE
    sources = [(inner - h * (choice.dev @ truth.grad)) / np.sqrt(truth.square * spread_loo)]
    if truth.blocks is not None:
        sources.append((inner - truth.blocks.h * (truth.blocks.dev @ m)) / np.sqrt(truth.square_loo * spread))
    if abs(value) < 1 and all((np.abs(x) < 1).all() for x in sources):
        return value, jackknife_interval(value, sources, level, FISHER)
    low, high = jackknife_interval(value, sources, level, LINEAR, skew=False)
    # an estimate beyond 1 is sampling error of a cosine near 1
    return min(max(value, -1.0), 1.0), Interval(min(max(low, -1.0), 1.0), min(max(high, -1.0), 1.0))
