"""Mean squared error against batch size: MSE_N = ‖E g − ∇J‖² + tr Cov g / N for every choice of Φ, from block moments.

Two estimates share trajectories and reference, so that their ratio is sharper than either: :func:`ratio` leaves blocks out of
both at once. It takes choices of different measurements too, such as two discounts, if these used the same seed, n and reference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from varlab import checks
from varlab.analysis.bias import pair_square, pair_square_leave_one_out
from varlab.analysis.blocks import CentredBlocks, pooled_variance
from varlab.analysis.intervals import LINEAR, Interval, jackknife_interval
from varlab.analysis.targets import mean_noise
from varlab.types import Moments, Reference


@dataclass(frozen=True)
class Estimate:
    """A statistic with what it would be without any one block.

    Attributes:
        value: the statistic.
        own: [B] without each block of the measurement.
        other: [B'] without each block of the reference; None if that is exact.
    """

    value: float
    own: np.ndarray
    other: np.ndarray | None = None

    @property
    def sources(self) -> list[np.ndarray]:
        """Both sets of leave-one-out values."""
        return [self.own] if self.other is None else [self.own, self.other]

    def interval(self, level: float = 0.95) -> Interval:
        """Return the jackknife interval, on the logarithm where all values are positive."""
        if self.value > 0 and all((x > 0).all() for x in self.sources):
            return jackknife_interval(self.value, self.sources, level)
        return jackknife_interval(self.value, self.sources, level, LINEAR)


def ratio(above: Estimate, below: Estimate) -> Estimate:
    """Return the ratio of two estimates of the same blocks.

    Args:
        above: numerator.
        below: denominator.

    Returns:
        The ratio, blocks left out of both at once.

    Raises:
        InputError: if the two do not have the same blocks.
    """
    for a, b in ((above.own, below.own), (above.other, below.other)):
        if np.shape(a) != np.shape(b):
            raise checks.InputError(
                "Two estimates from the same blocks were expected for a ratio, but their numbers of blocks differ; measure both "
                "with the same seed and n, and against the same reference."
            )
    other = None if above.other is None else above.other / below.other
    return Estimate(above.value / below.value, above.own / below.own, other)


def squared_errors(moments: Moments, reference: Reference, sizes: Sequence[float]) -> dict[tuple[str, float], Estimate]:
    """Estimate MSE_N of every choice at every batch size.

    Args:
        moments: of K choices.
        reference: ∇J with blocks of its own, or exact.
        sizes: batch sizes N, in trajectories.

    Returns:
        (name of the choice, N) → estimate, free of bias.
    """
    out = {}
    for k, name in enumerate(moments.names):
        at = squared_error_at(moments, k, reference)
        out |= {(name, size): at(size) for size in sizes}
    return out


def squared_error_at(
    moments: Moments, k: int, reference: Reference, relative: bool = False, unbiased: bool = False
) -> Callable[[float], Estimate]:
    """Return MSE_N of one choice as a function of N.

    Args:
        moments: of K choices.
        k: the choice.
        reference: ∇J with blocks of its own, or exact.
        relative: whether to divide by ‖∇J‖², debiased for the reference's error.
        unbiased: whether E g = ∇J by proof: MSE_N is then variance/N, sharper than with an estimated bias.

    Returns:
        Batch size N in trajectories → estimate.

    Raises:
        InputError: if a relative error is asked for and ‖∇J‖² is not positive, with and without each block of the reference.
    """
    grad, blocks = np.asarray(reference.grad, dtype=np.float64), None
    square, squares = float(grad @ grad), None
    if reference.block_mean is not None:
        count = np.ones(len(reference.block_mean)) if reference.block_count is None else np.asarray(reference.block_count)
        blocks = CentredBlocks.of(count, reference.block_mean)
        noise, noises = mean_noise(blocks)
        squares = square - 2 * blocks.h * (blocks.dev @ grad) + blocks.h**2 * blocks.dev_sq - noises
        square -= noise
    if relative and not (square > 0 and (squares is None or (squares > 0).all())):
        raise checks.InputError(
            "A gradient that stands out from the reference's error was expected for a relative error, but ‖∇J‖² is not positive; "
            "raise reference.n."
        )
    choice = CentredBlocks.of_choice(moments, k)
    variance = pooled_variance(choice.count, moments.trace_m2[:, k], choice.dev_sq)

    def at(size: float) -> Estimate:
        found = _estimate(choice, variance, grad, blocks, size / moments.unit)
        if unbiased:
            value, own = (moments.unit * x / size for x in variance)
            found = Estimate(value, own, None if found.other is None else np.full_like(found.other, value))
        if not relative:
            return found
        return Estimate(found.value / square, found.own / square, None if found.other is None else found.other / squares)

    return at


def error_table(
    moments: Moments,
    reference: Reference,
    sizes: Sequence[float],
    relative: bool = True,
    unbiased: Collection[str] = (),
    level: float = 0.95,
) -> pd.DataFrame:
    """Tabulate MSE_N of every choice, with the numbers that its name sets.

    Args:
        moments: of K choices, such as ``gae(lam=…)`` for a grid of λ.
        reference: ∇J with blocks of its own, or exact.
        sizes: batch sizes N, in trajectories.
        relative: whether to divide by ‖∇J‖².
        unbiased: names of the choices with E g = ∇J by proof; see :func:`squared_error_at`.
        level: coverage.

    Returns:
        One row per choice and N: phi, lam (NaN where the name has none), batch_size, mse, mse_low, mse_high and best: whether no
        other choice has a smaller mse at that N.
    """
    rows = []
    for k, phi in enumerate(moments.names):
        lam = re.search(r"lam=([0-9.eE+-]+)", phi)
        at = squared_error_at(moments, k, reference, relative, phi in unbiased)
        for size in sizes:
            found = at(size)
            ends = found.interval(level)
            row = {"phi": phi, "lam": float(lam[1]) if lam else np.nan, "batch_size": float(size)}
            rows.append({**row, "mse": found.value, "mse_low": ends.low, "mse_high": ends.high})
    table = pd.DataFrame(rows)
    return table.assign(best=table["mse"] == table.groupby("batch_size")["mse"].transform("min"))


def _estimate(
    choice: CentredBlocks, variance: tuple[float, np.ndarray], grad: np.ndarray, blocks: CentredBlocks | None, size: float
) -> Estimate:
    """Pairs of distinct blocks of d = m − r̄, less the noise of r̄, plus variance/N."""
    d, (total, loo) = choice.mean - grad, variance
    norm_sq, inner = float(d @ d), choice.dev @ d
    square = pair_square(norm_sq, inner, choice.dev_sq, choice.weight)
    squares = pair_square_leave_one_out(norm_sq, inner, choice.dev_sq, choice.weight)
    if blocks is None:
        return Estimate(square + total / size, squares + loo / size)
    noise, noise_loo = mean_noise(blocks)
    # Without block c of the reference d moves by h_c e_c, and the pairs of the measurement's blocks with it.
    w_sq, h = np.square(choice.weight), blocks.h
    moved = norm_sq + 2 * h * (blocks.dev @ d) + h**2 * blocks.dev_sq
    diagonal = (w_sq.dot(2 * inner + choice.dev_sq) + 2 * h * (w_sq @ choice.dev @ blocks.dev.T)) / (1 - w_sq.sum())
    other = moved - diagonal - noise_loo + total / size
    return Estimate(square - noise + total / size, squares - noise + loo / size, other)

