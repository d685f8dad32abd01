"""How means of more and more trajectories near the gradient: distance to the reference and cosine, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from varlab.analysis import intervals
from varlab.types import Moments, Reference

FEW_DIRECTIONS = 10
"""Below this many effective directions the closed form of the cosine is labelled approximate."""


def group_sizes(blocks: int) -> list[int]:
    """Return the sizes 1, 2, 5, 10, 25, 50, 100, 250, 500, … of groups that fit into ``blocks`` blocks.

    Args:
        blocks: B.

    Returns:
        The sizes, ascending.
    """
    sizes = [1, 2, 5] + [s * 10**e for e in range(1, 7) for s in (1, 2.5, 5)]
    return [int(s) for s in sizes if s <= blocks]


def running_table(moments: Moments, references: Mapping[str, Reference]) -> pd.DataFrame:
    r"""Tabulate how the mean of n trajectories nears the reference.

    For groups of m consecutive, disjoint blocks the distance is √(mean over groups of ‖ḡ_group − ∇J_ref‖²), with a jackknife
    interval over the groups on the log scale (none for a single group). The expected square is
    bias² + variance/n + E‖∇J_ref − ∇J‖²; ``predicted`` is the root of its estimate, a negative bias² counted as 0.

    Args:
        moments: B blocks of K choices.
        references: the reference of each objective.

    Returns:
        One row per Φ, objective, kind and n: columns phi, objective, kind (``groups`` or ``path``, the cumulative mean), groups,
        n, distance, distance_low, distance_high, predicted.
    """
    rows = []
    for objective, reference in references.items():
        error = reference_error(reference)
        for k, phi in enumerate(moments.names):
            variance, offset = pooled_variance(moments, k), moments.mean[:, k].astype(float) - reference.grad
            bias_sq = _norm_sq(_mean(offset, moments.count)) - variance / moments.n - error
            same = {"phi": phi, "objective": objective}
            for size in group_sizes(len(moments.count)):
                squares, counts = [], []
                for first in range(0, len(moments.count) - size + 1, size):
                    part = slice(first, first + size)
                    squares.append(_norm_sq(_mean(offset[part], moments.count[part])))
                    counts.append(moments.count[part].sum())
                low, high = _mean_interval(np.array(squares))
                rows.append(
                    {
                        **same,
                        "kind": "groups",
                        "groups": len(squares),
                        "n": float(np.mean(counts)),
                        "distance": np.sqrt(np.mean(squares)),
                        "distance_low": np.sqrt(low),
                        "distance_high": np.sqrt(high),
                    }
                )
            n = moments.count.cumsum()
            path = np.sqrt(np.square((offset * moments.count[:, None]).cumsum(0) / n[:, None]).sum(1))
            rows += [{**same, "kind": "path", "groups": 1, "n": float(m), "distance": d} for m, d in zip(n, path, strict=True)]
            for row in rows[-len(n) - len(group_sizes(len(n))) :]:
                row["predicted"] = np.sqrt(max(bias_sq, 0.0) + variance / row["n"] + error)
    columns = ["phi", "objective", "kind", "groups", "n", "distance", "distance_low", "distance_high", "predicted"]
    return pd.DataFrame(rows, columns=columns)


def cosine_table(moments: Moments, references: Mapping[str, Reference], summary: pd.DataFrame) -> pd.DataFrame:
    r"""Tabulate the cosine between a batch mean of N trajectories and ∇J, in closed form and measured.

    The closed form is ρ_N = ⟨E g, ∇J⟩ / (‖∇J‖ √(‖E g‖² + variance/N)), each part estimated without bias: ⟨ḡ, ∇J_ref⟩,
    ‖ḡ‖² − variance/n, and ‖∇J_ref‖² less the reference's own error. Its band is the jackknife over blocks, and over the
    reference's blocks where it is sampled, of log ρ_N^{−2}, which moves with NSR/N for an unbiased Φ and with the angle of the
    bias otherwise; the upper end is at most 1. Measured cosines are ⟨ḡ_group, ∇J_ref⟩ / (‖ḡ_group‖ ‖∇J‖) with the same debiased
    ‖∇J‖, which takes the reference's error out of their mean, averaged over disjoint groups of consecutive blocks with a t
    interval.

    Args:
        moments: B blocks of K choices.
        references: the reference of each objective.
        summary: gives ``batch_size``, added to the grid of N, and ``effective_directions`` where it has that column.

    Returns:
        One row per Φ, objective, kind (``closed form`` or ``measured``) and N: columns phi, objective, kind, batch_size, groups,
        cosine, cosine_low, cosine_high, effective_directions, note (``approximate`` below ten effective directions).
    """
    rows = []
    settings = pd.to_numeric(summary.get("batch_size", pd.Series(dtype=float)), errors="coerce").dropna()
    sizes = np.unique(np.concatenate([np.geomspace(1, moments.n, 33), [s for s in settings if 1 <= s <= moments.n]]))
    for objective, reference in references.items():
        norm_sq = _norm_sq(reference.grad) - reference_error(reference)
        for k, phi in enumerate(moments.names):
            said = summary[(summary["phi"] == phi) & (summary["objective"] == objective)]
            directions = float(said["effective_directions"].iloc[0]) if "effective_directions" in said and len(said) else np.nan
            same = {"phi": phi, "objective": objective, "effective_directions": directions}
            same["note"] = "approximate" if directions < FEW_DIRECTIONS else ""
            pieces, drops = _pieces(moments, k, reference)
            for size in sizes:
                value, low, high = _cosine(pieces, drops, size)
                rows.append(
                    {**same, "kind": "closed form", "batch_size": size, "cosine": value, "cosine_low": low, "cosine_high": high}
                )
            for size in group_sizes(len(moments.count)):
                cosines, counts = [], []
                for first in range(0, len(moments.count) - size + 1, size):
                    part = slice(first, first + size)
                    mean = _mean(moments.mean[part, k], moments.count[part])
                    scale = np.sqrt(_norm_sq(mean) * norm_sq) if norm_sq > 0 else np.nan
                    cosines.append(mean @ reference.grad / scale if scale > 0 else np.nan)
                    counts.append(moments.count[part].sum())
                half = np.nan
                if len(cosines) > 1:
                    half = intervals.student(0.95, len(cosines) - 1) * np.std(cosines, ddof=1) / np.sqrt(len(cosines))
                centre = float(np.mean(cosines))
                rows.append(
                    {
                        **same,
                        "kind": "measured",
                        "batch_size": float(np.mean(counts)),
                        "groups": len(cosines),
                        "cosine": centre,
                        "cosine_low": centre - half,
                        "cosine_high": centre + half,
                    }
                )
    columns = [
        "phi",
        "objective",
        "kind",
        "batch_size",
        "groups",
        "cosine",
        "cosine_low",
        "cosine_high",
        "effective_directions",
        "note",
    ]
    return pd.DataFrame(rows, columns=columns)


def pooled_variance(moments: Moments, k: int) -> float:
    """Return tr Cov g of choice k from all trajectories: Σ_i ‖g_i − ḡ‖² / (n − 1).

    Args:
        moments: B blocks.
        k: index of the choice.

    Returns:
        The variance.
    """
    between = moments.count @ np.square(moments.mean[:, k] - _mean(moments.mean[:, k], moments.count)).sum(1)
    return float((moments.trace_m2[:, k].sum() + between) / (moments.n - 1))


def reference_error(reference: Reference) -> float:
    """Return the estimate of E‖∇J_ref − ∇J‖² from the reference's blocks of equal weight, Σ_b ‖r_b − r̄‖² / (B(B − 1)).

    Args:
        reference: sampled or exact.

    Returns:
        The expected square error, 0 for an exact reference.
    """
    if reference.block_mean is None:
        return 0.0
    blocks = len(reference.block_mean)
    return float(np.square(reference.block_mean - reference.block_mean.mean(0)).sum() / (blocks * (blocks - 1)))


@dataclass(frozen=True)
class _Pieces:
    """⟨E g, ∇J⟩, ‖E g‖², tr Cov g and ‖∇J‖²: numbers, or one per block left out."""

    inner: np.ndarray
    mean_sq: np.ndarray
    variance: np.ndarray
    norm_sq: np.ndarray

    def log_inverse_square(self, size: float) -> np.ndarray:
        """Return log ρ_N^{−2}, nan where an estimate of a square is not positive."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.log(self.norm_sq * (self.mean_sq + self.variance / size) / np.square(self.inner))


def _pieces(moments: Moments, k: int, reference: Reference) -> tuple[_Pieces, list[_Pieces]]:
    """Return the parts of ρ_N, and the same without each block of the moments and (if sampled) without each of the reference."""
    c, m, trace = moments.count.astype(float), moments.mean[:, k].astype(float), moments.trace_m2[:, k]
    norm_sq = _norm_sq(reference.grad) - reference_error(reference)

    def of(n: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        length = np.square(mean).sum(-1)
        variance = (squares - n * length) / (n - 1)
        return length - variance / n, variance

    total, squares = (c[:, None] * m).sum(0), trace + c * np.square(m).sum(1)  # Σ_i g_i and Σ_i ‖g_i‖² of each block
    mean = total / c.sum()
    whole = _Pieces(np.asarray(mean @ reference.grad), *of(c.sum(), mean, squares.sum()), np.asarray(norm_sq))
    left = c.sum() - c
    without = (total - c[:, None] * m) / left[:, None]
    drops = [_Pieces(without @ reference.grad, *of(left, without, squares.sum() - squares), np.full(len(c), norm_sq))]
    if reference.block_mean is not None:
        r, blocks = reference.block_mean, len(reference.block_mean)
        rest = (r.sum(0) - r) / (blocks - 1)
        spread = np.square(r).sum() - np.square(r).sum(1) - (blocks - 1) * np.square(rest).sum(1)
        kept = np.square(rest).sum(1) - spread / ((blocks - 1) * (blocks - 2))
        full = [np.full(blocks, float(v)) for v in (whole.mean_sq, whole.variance)]
        drops.append(_Pieces(rest @ mean, *full, kept))
    return whole, drops


def _cosine(whole: _Pieces, drops: list[_Pieces], size: float) -> tuple[float, float, float]:
    """Return ρ_N and its 95 % interval."""
    centre = float(whole.log_inverse_square(size))
    sign = float(np.sign(whole.inner))
    value = sign * np.exp(-centre / 2)
    logs = [d.log_inverse_square(size) for d in drops]
    one_sign = all((np.sign(d.inner) == sign).all() for d in drops)
    if one_sign:
        ends, back = logs, lambda z: sign * np.exp(-z / 2)
    else:  # so near to a right angle that the logarithm has no meaning
        ends, back, centre = [np.sign(d.inner) * np.exp(-z / 2) for d, z in zip(drops, logs, strict=True)], lambda z: z, value
    parts = [intervals.jackknife_variance(z) for z in ends]
    if not np.isfinite([centre, *parts]).all():
        return float(value), np.nan, np.nan
    half = intervals.student(0.95, intervals.welch_satterthwaite(parts, [len(z) - 1 for z in ends])) * np.sqrt(sum(parts))
    low, high = sorted((back(centre - half), back(centre + half)))
    return float(value), float(max(low, -1.0)), float(min(high, 1.0))


def _mean(x: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.average(x, axis=0, weights=count)


def _norm_sq(x: np.ndarray) -> float:
    return float(np.square(x).sum())


def _mean_interval(x: np.ndarray) -> tuple[float, float]:
    """Return the log jackknife interval of the mean of positive, independent numbers; nan for fewer than two."""
    if len(x) < 2:
        return np.nan, np.nan
    return intervals.log_interval(float(x.mean()), (x.sum() - x) / (len(x) - 1))
