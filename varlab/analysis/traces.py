"""tr Cov of the gradient from pairs of independent trajectories, without a gradient or a mean of P numbers.

For independent g and g' of one distribution

    E ½‖g − g'‖² = tr Cov g,    E ⟨g, g'⟩ = ‖E g‖²,

so that two numbers for each pair and choice of Φ give the variance and ‖E g‖² without bias, whatever P is. Nothing but sums of
such numbers is kept. The price is a little precision: over n trajectories the variance of the estimate is, for a Gaussian, that
of n/2 pairs in place of n − 1 degrees of freedom, at most twice that of the sample variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from varlab.analysis.intervals import LINEAR, Interval, jackknife_interval, paired_ratio, positive_interval
from varlab.analysis.statistics import TAIL_LIMIT

#: ½‖g − g'‖² below this share of E‖g‖² is rounding of the products it is made of.
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


class TraceBlock:
    """Sums over the pairs of one block.

    Attributes:
        pairs: how many.
        norm_sq: [K] Σ (‖g‖² + ‖g'‖²)/2, float64.
        inner: [K] Σ ⟨g, g'⟩.
        half_sq: [K] Σ ½‖g − g'‖².
        fourth: [K] Σ (½‖g − g'‖²)².
    """

    def __init__(self, choices: int, device: torch.device | str = "cpu") -> None:
        """Begin an empty block of K choices."""
        self.pairs = 0
        self.norm_sq, self.inner, self.half_sq, self.fourth = torch.zeros(4, choices, dtype=torch.float64, device=device)

    def add(self, norm_sq: Tensor, inner: Tensor) -> None:
        """Add pairs.

        Args:
            norm_sq: [C, K] ‖g_i‖²; rows 2j and 2j + 1 are a pair.
            inner: [C / 2, K] their inner products.
        """
        norm_sq, inner = norm_sq.double().unflatten(0, (-1, 2)).mean(1), inner.double()
        half_sq = (norm_sq - inner).clamp_(min=0.0)
        self.pairs += len(inner)
        self.norm_sq += norm_sq.sum(0)
        self.inner += inner.sum(0)
        self.half_sq += half_sq.sum(0)
        self.fourth += half_sq.square().sum(0)

    def merge(self, other: TraceBlock) -> None:
        """Add the pairs of another block."""
        self.pairs += other.pairs
        for name in ("norm_sq", "inner", "half_sq", "fourth"):
            getattr(self, name).add_(getattr(other, name))


def kurtosis(block: TraceBlock) -> np.ndarray:
    """Return at least E‖g−ḡ‖⁴/(E‖g−ḡ‖²)², [K], nan where nothing varies.

    With independent g and g', E‖g−g'‖⁴ = 2 E‖g−ḡ‖⁴ + 2 (tr Σ)² + 4 tr Σ², so that it is 2κ − 1 − 2 tr Σ²/(tr Σ)², κ the ratio
    E(½‖g−g'‖²)²/(E ½‖g−g'‖²)². The last term, between 0 and 2, is left out.

    Args:
        block: of a pilot.

    Returns:
        2κ − 1.
    """
    half_sq, fourth = block.half_sq.cpu().numpy(), block.fourth.cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(half_sq > 0, 2.0 * block.pairs * fourth / half_sq**2 - 1.0, math.nan)


def rows(
    blocks: Sequence[TraceBlock],
    names: Sequence[str],
    comparator: int,
    *,
    unit: int = 1,
    level: float = 0.95,
    rounding: float = ROUNDING[torch.float32],
    pilot_kurtosis: Sequence[float] | None = None,
) -> list[dict]:
    """Return variance, its paired ratio, ‖E g‖² and the noise-to-signal ratio of every choice, with intervals.

    Args:
        blocks: at least 8, of pairs of units.
        names: labels of the K choices.
        comparator: index of the one that ratios are to.
        unit: trajectories of a unit; variances are those of one trajectory.
        level: coverage.
        rounding: of :data:`ROUNDING`.
        pilot_kurtosis: of :func:`kurtosis`, for the flag ``heavy-tails``.

    Returns:
        K rows with phi, n, variance, variance_ratio, mean_sq (‖E g‖²; may be negative), nsr (variance/‖E g‖²), each with
        ``_low`` and ``_high``, and flag (``zero-variance``, ``mean-not-resolved``, ``heavy-tails``).
    """
    pairs = np.array([b.pairs for b in blocks], dtype=np.float64)
    sums = {name: torch.stack([getattr(b, name) for b in blocks]).cpu().numpy() for name in ("norm_sq", "inner", "half_sq")}
    total = pairs.sum()
    values = {name: x.sum(0) / total for name, x in sums.items()}
    left_out = {name: (x.sum(0) - x) / (total - pairs)[:, None] for name, x in sums.items()}  # [B, K]
    variance = []
    for k in range(len(names)):
        zero = values["half_sq"][k] <= rounding * values["norm_sq"][k]
        variance.append((0.0, np.zeros(len(pairs))) if zero else (values["half_sq"][k], left_out["half_sq"][:, k]))
    out = []
    for k, name in enumerate(names):
        (value, loo), square, squares = variance[k], values["inner"][k], left_out["inner"][:, k]
        found = {
            "variance": (unit * value, Interval(*(unit * end for end in positive_interval(value, [loo], level)))),
            "variance_ratio": paired_ratio((value, loo), variance[comparator], k == comparator, level),
            "mean_sq": (square, jackknife_interval(square, [squares], level, LINEAR)),
        }
        resolved = found["mean_sq"][1].low > 0 and bool((squares > 0).all())
        ratio = unit * value / square if square > 0 else math.inf if value > 0 else math.nan
        found["nsr"] = (
            ratio,
            positive_interval(ratio, [unit * loo / squares], level)
            if resolved
            else Interval(found["variance"][1].low / found["mean_sq"][1].high if found["mean_sq"][1].high > 0 else 0.0, math.inf),
        )
        flags = ["zero-variance"] if value == 0 else []
        flags += [] if resolved else ["mean-not-resolved"]
        if pilot_kurtosis is not None and 2 * total < TAIL_LIMIT * pilot_kurtosis[k]:
            flags.append("heavy-tails")
        row: dict = {"phi": name, "n": int(2 * unit * total)}
        for what, (x, ends) in found.items():
            row |= {what: float(x), f"{what}_low": float(ends.low), f"{what}_high": float(ends.high)}
        out.append(row | {"flag": "; ".join(flags)})
    return out
