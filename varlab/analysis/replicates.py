"""A number together with its values without each block: functions of several such numbers keep an interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from varlab.analysis import intervals


@dataclass(frozen=True)
class Replicated:
    """A smooth statistic of independent blocks.

    Attributes:
        value: of all blocks.
        without: [B] of all blocks but one.
        n: independent draws behind it.
    """

    value: float
    without: np.ndarray
    n: int

    @classmethod
    def mean(cls, x: np.ndarray, blocks: int) -> Replicated:
        """Return the mean of independent draws.

        Args:
            x: [N] draws.
            blocks: B, into which they fall in order, as equal in size as can be.

        Returns:
            Their mean.
        """
        sums, counts = totals(x, blocks)
        return cls(float(sums.sum() / counts.sum()), (sums.sum() - sums) / (counts.sum() - counts), len(x))

    def __add__(self, other: Replicated) -> Replicated:
        """Return the sum."""
        return combine(np.add, self, other)

    def __sub__(self, other: Replicated) -> Replicated:
        """Return the difference."""
        return combine(np.subtract, self, other)

    def __truediv__(self, other: Replicated) -> Replicated:
        """Return the ratio."""
        return combine(np.divide, self, other)

    def scaled(self, factor: float) -> Replicated:
        """Return ``factor`` times the number."""
        return combine(lambda x: factor * x, self)

    def interval(self, log: bool = False, level: float = 0.95) -> intervals.Interval:
        """Return the jackknife interval.

        Args:
            log: whether it is computed on the logarithm, for numbers that are positive with and without every block; where one
                is not, it is computed on the number itself.
            level: coverage.

        Returns:
            Both ends; NaN where a value is not finite.
        """
        if not (np.isfinite(self.value) and np.isfinite(self.without).all()):
            return intervals.Interval(np.nan, np.nan)
        positive = self.value > 0 and bool((self.without > 0).all())
        return intervals.jackknife_interval(
            self.value, [self.without], level, intervals.LOG if log and positive else intervals.LINEAR
        )


def combine(f: Callable[..., np.ndarray], *numbers: Replicated) -> Replicated:
    """Return a function of numbers that share their blocks."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(f(*(np.float64(x.value) for x in numbers)))
        return Replicated(value, np.asarray(f(*(x.without for x in numbers))), min(x.n for x in numbers))


def totals(x: np.ndarray, blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum [B, ...] and the number [B] of the draws x [N, ...] in each of B consecutive blocks."""
    edges = np.linspace(0, len(x), blocks + 1).round().astype(int)
    return np.add.reduceat(x, edges[:-1], axis=0), np.diff(edges).astype(np.float64)


def squared_mean(x: np.ndarray, blocks: int) -> Replicated:
    """Return ‖E x‖² without the bias of noise: the mean of ⟨x_i, x_j⟩ over pairs i ≠ j of independent draws x [N, P]."""
    sums, counts = totals(x, blocks)
    squares, _ = totals(np.square(x).sum(1), blocks)
    whole, n, all_squares = sums.sum(0), counts.sum(), squares.sum()
    left, m = whole - sums, n - counts
    without = (np.square(left).sum(1) - (all_squares - squares)) / (m * (m - 1))
    return Replicated(float((whole @ whole - all_squares) / (n * (n - 1))), without, len(x))
