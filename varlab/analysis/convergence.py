"""How means of more and more trajectories near the gradient: distance to the reference and cosine, predicted and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from varlab.analysis import intervals
from varlab.analysis.blocks import CentredBlocks, pooled_variance
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
            own, offset = CentredBlocks.of_choice(moments, k), moments.mean[:, k] - reference.grad
            variance = moments.unit * pooled_variance(own.count, moments.trace_m2[:, k], own.dev_sq)[0]
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
    ‖ḡ‖² − variance/n, and ‖∇J_ref‖² less the reference's own error. Its band is that of the summary's ``cosine``, at every N:
    the jackknife over blocks, and over the reference's blocks where it is sampled, on Fisher's z scale, and [−1, 1] for rows
    flagged ``gradient-not-resolved``. Measured cosines are ⟨ḡ_group, ∇J_ref⟩ / (‖ḡ_group‖ ‖∇J‖) with the same debiased ‖∇J‖,
    which takes the reference's error out of their mean, averaged over disjoint groups of consecutive blocks with a t interval.

    Args:
        moments: B blocks of K choices.
        references: the reference of each objective.
        summary: gives ``batch_size``, added to the grid of N, ``effective_directions`` where it has that column, and flags.

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
            resolved = not said.get("flag", pd.Series(dtype=str)).astype(str).str.contains("gradient-not-resolved").any()
            same["note"] = "approximate" if directions < FEW_DIRECTIONS else ""
            pieces, drops = _pieces(moments, k, reference)
            for size in sizes:
                value, low, high = _cosine(pieces, drops, size, resolved)
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
        "phi", "objective", "kind", "batch_size", "groups", "cosine", "cosine_low", "cosine_high", "effective_directions", "note",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def reference_error(reference: Reference) -> float:
    """Return the unbiased estimate of E‖∇J_ref − ∇J‖² from the spread of the reference's blocks.

    Args:
        reference: sampled or exact.

    Returns:
        Σ_b w_b ‖r_b − r̄‖² / (B − 1) with weights w_b = n_b/n; 0 for an exact reference.
    """
    blocks = _reference_blocks(reference)
    return 0.0 if blocks is None else float(blocks.weight @ blocks.dev_sq / (len(blocks.weight) - 1))


def _reference_blocks(reference: Reference) -> CentredBlocks | None:
    if reference.block_mean is None:
        return None
    count = np.ones(len(reference.block_mean)) if reference.block_count is None else reference.block_count
    return CentredBlocks.of(np.asarray(count), reference.block_mean)


@dataclass(frozen=True)
class _Pieces:
    """⟨E g, ∇J⟩, ‖E g‖², tr Cov g and ‖∇J‖²: numbers, or one per block left out."""

    inner: float | np.ndarray
    mean_sq: float | np.ndarray
    variance: float | np.ndarray
    norm_sq: float | np.ndarray

    def cosine(self, size: float) -> np.ndarray:
        """Return ρ_N, nan where the estimate of a square is not positive."""
        square = self.norm_sq * (self.mean_sq + self.variance / size)
        positive = (self.norm_sq > 0) & (square > 0)
        return np.where(positive, self.inner, np.nan) / np.sqrt(np.where(positive, square, 1.0))


def _pieces(moments: Moments, k: int, reference: Reference) -> tuple[_Pieces, list[_Pieces]]:
    """Return the parts of ρ_N, and the same without each block of the moments and (if sampled) without each of the reference."""
    own, grad = CentredBlocks.of_choice(moments, k), reference.grad
    variance, variances = (moments.unit * x for x in pooled_variance(own.count, moments.trace_m2[:, k], own.dev_sq))
    count, h, mean = moments.count, own.h, own.mean
    n = moments.n
    inner, length = mean @ grad, mean @ mean
    norm_sq = _norm_sq(grad) - reference_error(reference)
    whole = _Pieces(inner, length - variance / n, variance, norm_sq)
    lengths = length - 2 * h * (own.dev @ mean) + h**2 * own.dev_sq
    drops = [_Pieces(inner - h * (own.dev @ grad), lengths - variances / (n - count), variances, norm_sq)]
    blocks = _reference_blocks(reference)
    if blocks is not None:
        h, each = blocks.h, blocks.weight * blocks.dev_sq
        noise = (each.sum() - each - h * each) / (1 - blocks.weight) / (len(each) - 2)
        squares = grad @ grad - 2 * h * (blocks.dev @ grad) + h**2 * blocks.dev_sq - noise
        drops.append(_Pieces(inner - h * (blocks.dev @ mean), whole.mean_sq, variance, squares))
    return whole, drops


def _cosine(whole: _Pieces, drops: list[_Pieces], size: float, resolved: bool) -> tuple[float, float, float]:
    """Return ρ_N and its 95 % interval, by the rules of :func:`varlab.analysis.statistics.summarise`."""
    value, sources = float(whole.cosine(size)), [d.cosine(size) for d in drops]
    if np.isnan(value):
        return np.nan, np.nan, np.nan
    if not (resolved and all(np.isfinite(x).all() for x in sources)):
        return float(np.clip(value, -1, 1)), -1.0, 1.0
    if abs(value) < 1 and all((np.abs(x) < 1).all() for x in sources):
        return value, *intervals.jackknife_interval(value, sources, scale=intervals.FISHER)
    ends = intervals.jackknife_interval(value, sources, scale=intervals.LINEAR, skew=False)
    low, high = np.clip(ends, -1, 1)  # an estimate beyond 1 is sampling error of a cosine near 1
    return float(np.clip(value, -1, 1)), float(low), float(high)


def _mean(x: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.average(x, axis=0, weights=count)


def _norm_sq(x: np.ndarray) -> float:
    return float(np.square(x).sum())


def _mean_interval(x: np.ndarray) -> tuple[float, float]:
    """Return the log jackknife interval of the mean of positive, independent numbers; nan for fewer than two.

    Without the correction for skewness, which so few groups cannot estimate.
    """
    if len(x) < 2 or not (x > 0).all():
        return np.nan, np.nan
    return intervals.jackknife_interval(float(x.mean()), [(x.sum() - x) / (len(x) - 1)], skew=False)
