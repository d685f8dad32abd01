"""How fast a positive quantity grows: the slope of its logarithm over that of a setting, such as variance over the horizon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from varlab import checks
from varlab.analysis import tables
from varlab.analysis.intervals import student


@dataclass(frozen=True)
class Slope:
    """A fitted power law y = e^a x^b.

    Attributes:
        value: b, by least squares.
        low: lower end of its interval.
        high: upper end.
        intercept: a.
        misfit_p_value: of the hypothesis that the points lie on a power law, from the weighted squares of the residuals; NaN for
            two points and for exact ones.
    """

    value: float
    low: float
    high: float
    intercept: float
    misfit_p_value: float


def fitted_slope(
    x: Sequence[float],
    value: Sequence[float],
    low: Sequence[float] | None = None,
    high: Sequence[float] | None = None,
    level: float = 0.95,
) -> Slope:
    """Fit log y = a + b log x to independent estimates of y.

    b = Σ w_i log y_i with the weights w_i = (log x_i − mean)/Σ(log x_j − mean)² of least squares, so the half width of its
    interval is √Σ (w_i h_i)², h_i the longer half of the interval of log y_i. It is an interval for the slope of the fitted line
    whether or not the points lie on one; ``misfit_p_value`` says whether they do.

    Args:
        x: [m] settings, positive and not all equal.
        value: [m] estimates of y, positive.
        low: [m] lower ends of their 95 % intervals, positive; None if the values are exact.
        high: [m] upper ends.
        level: coverage; intervals of y are scaled from 95 % as those of normal estimates are.

    Returns:
        The slope.

    Raises:
        InputError: if lengths differ, numbers are not positive, or x takes one value only.
    """
    ends = (value, value) if low is None or high is None else (low, high)
    at, y, below, above = (np.asarray(v, dtype=np.float64) for v in (x, value, *ends))
    if len({v.shape for v in (at, y, below, above)}) > 1 or len(np.unique(at)) < 2:
        raise checks.InputError(
            f"As many values as settings were expected, and two settings at least, but {len(y)} values came for "
            f"x = {at.tolist()}; measure at another setting."
        )
    if not all((np.isfinite(v) & (v > 0)).all() for v in (at, y, below, above)):
        raise checks.InputError(
            "Positive, finite settings, values and interval ends were expected for a slope of logarithms, but some are not; "
            "leave those points out or raise n."
        )
    at, y, below, above = (np.log(v) for v in (at, y, below, above))
    weight = (at - at.mean()) / ((at - at.mean()) ** 2).sum()
    half = np.maximum(above - y, y - below)
    scale = student(level, np.inf) / student(0.95, np.inf)
    middle, width = float(weight @ y), scale * float(np.sqrt(((weight * half) ** 2).sum()))
    return Slope(middle, middle - width, middle + width, float(y.mean() - middle * at.mean()), _misfit(at, y, half))


def _misfit(x: np.ndarray, y: np.ndarray, half: np.ndarray) -> float:
    """Return the p-value of the residuals of the weighted fit, chi-square with m − 2 degrees of freedom."""
    if len(x) < 3 or not (half > 0).all():
        return np.nan
    error = half / student(0.95, np.inf)
    design = np.stack([np.ones_like(x), x], 1) / error[:, None]
    residual = y / error - design @ np.linalg.lstsq(design, y / error, rcond=None)[0]
    return float(stats.chi2.sf(residual @ residual, len(x) - 2))


def slope_table(table: pd.DataFrame, x: str = "horizon", y: str = "variance", level: float = 0.95) -> pd.DataFrame:
    """Fit a slope over a swept setting for every Φ of many runs.

    Runs that differ in the seed alone are averaged (geometric mean, half widths of logarithms added in squares), each at its own
    value of ``x``.

    Args:
        table: rows of :func:`varlab.analysis.tables.gather`.
        x: the setting along which the slope is fitted.
        y: the positive quantity, with ``_low`` and ``_high``.
        level: coverage.

    Returns:
        One row per Φ and per value of every other setting that varies: these, points, slope, slope_low, slope_high, intercept,
        misfit_p_value (NaN where some value or end of an interval is not positive and finite) and shared_seed: whether two values
        of ``x`` used one seed. Their errors may then be correlated, which the interval does not know of; give each value a seed
        of its own for an interval that covers.

    Raises:
        InputError: if the table lacks a column, or two averaged runs share a sampled reference that the quantity refers to.
    """
    for column in (x, y, f"{y}_low", f"{y}_high"):
        checks.one_of("column of the table", column, map(str, table.columns))
    table = tables.sources(table)
    keys = [c for c in tables.varying(table) if c not in (x, "seed", "reference_seed", "env")]
    # What moves with x, as a cut does with the horizon, tells no runs apart.
    keys = [c for c in keys if table.groupby(["env", "phi", x])[c].nunique(dropna=False).max() > 1]
    keys = ["env", *keys, *(["objective"] if "objective" in table else []), "phi"]
    rows = []
    for where, cell in table.groupby(keys, sort=False, dropna=False):
        places = [_pooled(part, y) for _, part in cell.groupby(x)]
        at = sorted(cell[x].unique())
        if len(at) < 2:
            continue
        resolved = all(np.isfinite(place).all() for place in places)
        found = fitted_slope(at, *np.array(places).T, level) if resolved else Slope(*[np.nan] * 5)
        shared = "seed" in cell and cell.groupby("seed")[x].nunique().max() > 1
        said = {"slope": found.value, "slope_low": found.low, "slope_high": found.high, "intercept": found.intercept}
        said |= {"misfit_p_value": found.misfit_p_value, "shared_seed": bool(shared)}
        rows.append({**dict(zip(keys, where, strict=True)), "x": x, "y": y, "points": len(at), **said})
    if not rows:
        raise checks.InputError(f"Runs at two values of {x} at least were expected, but none vary it; sweep it with -m first.")
    return pd.DataFrame(rows)


def _pooled(part: pd.DataFrame, y: str) -> tuple[float, float, float]:
    """Return the geometric mean of runs that differ in seed alone, with its interval."""
    if len(part) > 1 and (part[y] > 0).all() and not tables.poolable(part, y):
        raise checks.InputError(
            f"Independent runs were expected, but {y} of {part['phi'].iloc[0]} has runs that share a sampled reference; give "
            "each run its own reference.seed, or fit the variance."
        )
    numbers = [part[c].to_numpy(dtype=np.float64) for c in (y, f"{y}_low", f"{y}_high")]
    if not all((np.isfinite(v) & (v > 0)).all() for v in numbers):
        return (np.nan,) * 3
    value, low, high = (np.log(v) for v in numbers)
    down, up = (np.sqrt(np.square(h).sum()) / len(part) for h in (value - low, high - value))
    return float(np.exp(value.mean())), float(np.exp(value.mean() - down)), float(np.exp(value.mean() + up))
