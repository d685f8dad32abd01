"""How heavy the tails of the gradients are: kurtosis, Hill's tail index and what the largest trajectories contribute, per Φ.

Everything is read off the per-trajectory squared norms s_i = ‖g_i − c_Φ‖², c_Φ the pilot's mean gradient, in one pass: sums of
s and s² per block, and the largest values with their blocks. Of these as many are kept as the top share and one block hold,
enough for the top share of all blocks and of all but any one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from varlab import checks
from varlab.analysis.intervals import Interval, positive_interval, share_interval
from varlab.analysis.statistics import TAIL_LIMIT

#: Share of the trajectories whose contribution is reported.
TOP = 0.01
#: Below this tail index of ‖g‖ its fourth moment is infinite: an estimated variance has no standard error.
FOURTH_MOMENT = 4.0
#: Fewest trajectories in the tail that Hill's estimator reads.
LEAST_TAIL = 10


class Tail:
    """Running sums and largest values of one Φ."""

    def __init__(self, n: int, blocks: int) -> None:
        """Begin with nothing.

        Args:
            n: values that will come in all.
            blocks: B, numbered from 0.
        """
        checks.positive_int("n", n)
        self.keep = max(math.ceil(TOP * n) + math.ceil(n / blocks), LEAST_TAIL + 1, math.isqrt(n) + 1)
        self.count, self.sums, self.squares = (np.zeros(blocks) for _ in range(3))
        self.top, self.top_block = np.empty(0), np.empty(0, dtype=np.int64)

    def add(self, norm_sq: np.ndarray, block: np.ndarray) -> None:
        """Add values.

        Args:
            norm_sq: [m] squared norms, 0 or more.
            block: [m] the block of each.
        """
        s, size = np.asarray(norm_sq, dtype=np.float64), len(self.count)
        self.count += np.bincount(block, minlength=size)
        self.sums += np.bincount(block, s, size)
        self.squares += np.bincount(block, s * s, size)
        values, owners = np.concatenate([self.top, s]), np.concatenate([self.top_block, block])
        if len(values) > self.keep:
            chosen = np.argpartition(values, len(values) - self.keep)[len(values) - self.keep :]
            values, owners = values[chosen], owners[chosen]
        self.top, self.top_block = values, owners

    def row(self, level: float = 0.95) -> dict[str, float]:
        """Return every statistic, with intervals.

        Args:
            level: coverage.

        Returns:
            kurtosis n Σ s²/(Σ s)²; top_share, what the largest 1 % (⌈n/100⌉ values) add to Σ s; each with ``_low`` and ``_high``
            from the jackknife over blocks; tail_index likewise (:func:`hill`); largest_ratio max s/Σ s, a number of this sample
            alone and so without an interval.
        """
        order = np.argsort(-self.top, kind="stable")
        top, owner = self.top[order], self.top_block[order]
        n, total = self.count.sum(), self.sums.sum()
        row = {"n": int(n), "largest_ratio": float(top[0] / total) if total > 0 else math.nan}
        rest, left, fourth = total - self.sums, n - self.count, self.squares.sum() - self.squares
        resolved = total > 0 and bool((rest > 0).all())
        kurtosis = float(n * self.squares.sum() / total**2) if total > 0 else math.nan
        ends = positive_interval(kurtosis, [left * fourth / rest**2], level) if resolved else (math.nan,) * 2
        row["kurtosis"], row["kurtosis_low"], row["kurtosis_high"] = kurtosis, *ends
        share = top_share(top, total, n)
        without = [top_share(top[owner != b], rest[b], left[b]) for b in range(len(rest))] if resolved else []
        ends = share_interval(share, [np.array(without)], level) if resolved else (math.nan,) * 2
        row["top_share"], row["top_share_low"], row["top_share_high"] = share, *ends
        index, ends = hill(np.sqrt(top), int(n), level=level)
        row["tail_index"], row["tail_index_low"], row["tail_index_high"] = index, *ends
        return row


def top_share(largest: np.ndarray, total: float, n: float, share: float = TOP) -> float:
    """Return what the largest ⌈share · n⌉ of n values contribute to their sum.

    Args:
        largest: at least that many of them, descending.
        total: the sum of all n.
        n: number of values.
        share: of the values.

    Returns:
        A number in [0, 1]; ``share`` where all are equal, NaN where the sum is 0.
    """
    return float(largest[: math.ceil(share * n - 1e-9)].sum() / total) if total > 0 else math.nan


def hill(largest: np.ndarray, n: int, k: int | None = None, level: float = 0.95) -> tuple[float, Interval]:
    """Estimate the tail index α of P(X > x) ∝ x^−α from the largest of n values.

    α̂ = k / Σ_{i≤k} log(X_(i)/X_(k+1)), X_(1) ≥ X_(2) ≥ …. For a Pareto tail 2kα/α̂ is chi-square with 2k degrees of freedom,
    which gives the interval. Moments of order α and more are infinite. Of a tail that is lighter than any power the
    estimate is large and grows with n.

    References:
        | A simple general approach to inference about the tail of a distribution (Hill, 1975)

    Args:
        largest: at least k + 1 of the largest values, descending.
        n: number of values in all.
        k: how many exceedances to use; ⌊√n⌋, at least :data:`LEAST_TAIL`, if None.
        level: coverage.

    Returns:
        α̂ and its interval; inf where the k + 1 largest values are equal, NaN where there are too few or X_(k+1) is 0.

    Raises:
        InputError: if the values are not in descending order.
    """
    x = np.asarray(largest, dtype=np.float64)
    if (np.diff(x) > 0).any():
        raise checks.InputError("The largest values were expected in descending order, but they rise; sort them first.")
    k = max(LEAST_TAIL, math.isqrt(n)) if k is None else checks.positive_int("k", k)
    if len(x) <= k or x[k] <= 0:
        return math.nan, Interval(math.nan, math.nan)
    excess = float(np.log(x[:k] / x[k]).sum())
    if excess == 0:
        return math.inf, Interval(math.inf, math.inf)
    low, high = stats.chi2.ppf([(1 - level) / 2, (1 + level) / 2], 2 * k)
    return k / excess, Interval(float(low / (2 * excess)), float(high / (2 * excess)))


def tail_table(
    parts: Iterable[pd.DataFrame], summary: pd.DataFrame, blocks: int | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Tabulate the tails of every Φ of a run.

    Args:
        parts: frames of per-trajectory scalars with ``block`` and ``norm_sq[Φ]``, such as
            :func:`varlab.storage.read_trajectories` gives, or a result's ``trajectories`` in a list; one row per unit.
        summary: the run's own; gives the Φ, n, what one unit holds, and the pilot's flag.
        blocks: B; 50 if None.
        level: coverage.

    Returns:
        One row per Φ: phi, n (units), the columns of :meth:`Tail.row`, and flag: ``heavy-tails`` where the summary says so (from
        the pilot) or n < :data:`varlab.analysis.statistics.TAIL_LIMIT` times this sample's kurtosis; ``fourth-moment`` where the
        tail index lies below 4 with its whole interval, so that no interval of the variance can be trusted.

    Raises:
        InputError: if the scalars have no column of a Φ, or are not those of the summary.
    """
    first = summary.drop_duplicates("phi")
    unit = _units(first.iloc[0])
    n = int(first["n"].iloc[0]) // unit
    tails: dict[str, Tail] = {phi: Tail(n, blocks or 50) for phi in first["phi"]}
    for part in parts:
        for phi, tail in tails.items():
            if f"norm_sq[{phi}]" not in part:
                raise checks.InputError(f"A column norm_sq[{phi}] was expected, but it is missing; read the run's own scalars.")
            tail.add(part[f"norm_sq[{phi}]"].to_numpy(), part["block"].to_numpy())
    seen = {int(tail.count.sum()) for tail in tails.values()}
    if seen != {n}:
        raise checks.InputError(f"Scalars of {n} units were expected, but those of {sorted(seen)} came; read the run's own.")
    rows = []
    for phi, tail in tails.items():
        row, said = {"phi": phi, **tail.row(level)}, summary.loc[summary["phi"] == phi, "flag"]
        flags = []
        if said.fillna("").str.contains("heavy-tails").any() or n < TAIL_LIMIT * row["kurtosis"]:
            flags.append("heavy-tails")
        if row["tail_index_high"] < FOURTH_MOMENT:
            flags.append("fourth-moment")
        rows.append({**row, "flag": "; ".join(flags)})
    return pd.DataFrame(rows)


def _units(row: pd.Series) -> int:
    """Return the trajectories of one unit."""
    sizes: Sequence[float] = [row[c] if c in row and pd.notna(row[c]) else 1 for c in ("group_size", "groups")]
    return int(sizes[0] * sizes[1])
