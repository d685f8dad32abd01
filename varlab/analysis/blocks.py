"""Quadratic statistics of block means about their own mean: the pooled variance, and how many directions carry it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from varlab.types import Moments


@dataclass(frozen=True)
class CentredBlocks:
    """Blocks of one mean, about it.

    Attributes:
        count: [B] units n_b (trajectories, most often), float64.
        weight: [B] w_b = n_b/n.
        mean: [P] Σ_b w_b m_b.
        dev: [B, P] m_b − mean.
    """

    count: np.ndarray
    weight: np.ndarray
    mean: np.ndarray
    dev: np.ndarray

    @classmethod
    def of(cls, count: np.ndarray, block_mean: np.ndarray, low: np.ndarray | None = None) -> CentredBlocks:
        """Centre block means.

        Differences from the first block come first: they are exact where the means are close, and only to them is ``low`` added.

        Args:
            count: [B] trajectories per block.
            block_mean: [B, P].
            low: [B, P] what float64 left out of ``block_mean``.

        Returns:
            The blocks about their weighted mean.
        """
        weight = count / count.sum()
        apart = block_mean - block_mean[0]
        if low is not None:
            apart = apart + low
        shift = weight @ apart
        return cls(count.astype(np.float64), weight, block_mean[0] + shift, apart - shift)

    @classmethod
    def of_choice(cls, moments: Moments, k: int) -> CentredBlocks:
        """Centre the block means of choice k."""
        return cls.of(moments.units, moments.mean[:, k], None if moments.low is None else moments.low[:, k])

    @cached_property
    def gram(self) -> np.ndarray:
        """[B, B] ⟨dev_b, dev_c⟩, the one product of size P that every quadratic statistic shares."""
        return self.dev @ self.dev.T

    @property
    def dev_sq(self) -> np.ndarray:
        """[B] ‖dev_b‖²."""
        return np.diag(self.gram)

    @property
    def h(self) -> np.ndarray:
        """[B] without block b the mean moves by −h_b dev_b."""
        return self.weight / (1.0 - self.weight)


def pooled_variance(count: np.ndarray, trace_m2: np.ndarray, dev_sq: np.ndarray) -> tuple[float, np.ndarray]:
    """Unbiased trace of the covariance over all blocks, and without each block.

    V = (Σ_b trace_m2_b + Σ_b n_b ‖m_b − m̄‖²)/(n − 1). Without block b the second sum becomes
    Σ_{c≠b} n_c ‖m_c − m̄‖² − n_b²/(n − n_b) ‖m_b − m̄‖², because the mean of the others lies n_b/(n − n_b) (m̄ − m_b) away.

    Args:
        count: [B] trajectories n_b.
        trace_m2: [B] Σ_{i∈b} ‖g_i − m_b‖².
        dev_sq: [B] ‖m_b − m̄‖².

    Returns:
        V and [B] its leave-one-block-out values.
    """
    n = count.sum()
    each = trace_m2 + count * dev_sq
    total = each.sum()
    rest = n - count
    # rounding may leave −1e−17 where the other blocks do not vary at all
    return float(total / (n - 1)), np.maximum(total - each - count**2 / rest * dev_sq, 0.0) / (rest - 1)


def effective_directions(blocks: CentredBlocks, variance: float) -> float:
    """Number of directions that carry the variance, (tr Σ)²/tr Σ², between 1 and P up to sampling error.

    tr Σ² is the mean square of ⟨y_b, y_c⟩ over distinct blocks, y_b = √n_b (m_b − E m). With centred z_b in place of y_b the
    off-diagonal sum A = Σ_{b≠c} ⟨z_b, z_c⟩² and D = Σ ‖z_b‖⁴, s = Σ ‖z_b‖² give, without bias for blocks of equal size and
    any distribution, tr Σ² = [(B − 2)(A + D) + s²/(B − 1) − B D] / (B (B − 2)(B − 3)): centring makes distinct z_b dependent, and
    the last two terms undo that.

    References:
        | Estimations for some functions of covariance matrix in high dimension under non-normality (Himeno and Yamada, 2014)

    Args:
        blocks: block means about their own mean.
        variance: tr Σ of one trajectory.

    Returns:
        The ratio; nan where the variance is 0 or tr Σ² is not resolved from 0.
    """
    root = np.sqrt(blocks.count)
    gram = root[:, None] * blocks.gram * root
    b, diagonal = len(gram), np.diag(gram)
    first = (b - 2) * np.square(gram).sum() + diagonal.sum() ** 2 / (b - 1) - b * np.square(diagonal).sum()
    trace_sq = first / (b * (b - 2) * (b - 3))
    return float(variance**2 / trace_sq) if variance > 0 and trace_sq > 0 else math.nan
