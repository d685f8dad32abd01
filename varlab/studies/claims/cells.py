"""Rows of a study that each hold one estimate, and the way back from rows to the estimate that a claim reads."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy.stats

from varlab import checks
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.studies.claims.verdicts import Effect


def row(label: str, effect: Effect | float, **more: object) -> dict[str, object]:
    """Return a row: label, what else it is known by, and value, value_low, value_high, n and log of the effect.

    Args:
        label: of the series or point.
        effect: an estimate; a plain number is exact.
        **more: further columns, such as panel and x. A row whose panel is empty is in no figure.

    Returns:
        The row.
    """
    e = effect if isinstance(effect, Effect) else Effect.exact(float(effect))
    return {"label": label, **more, "value": e.value, "value_low": e.low, "value_high": e.high, "n": e.n, "log": e.log}


def cell(rows: pd.DataFrame, **where: object) -> Effect:
    """Return the estimate of the one row whose columns have these values.

    Args:
        rows: of a study.
        **where: column → value.

    Returns:
        The estimate.

    Raises:
        InputError: if no row fits, or several do.
    """
    found = rows
    for column, wanted in where.items():
        found = found[found[column] == wanted]
    if len(found) != 1:
        raise checks.InputError(f"One row with {where} was expected, but {len(found)} are there; run the study again.")
    one = found.iloc[0]
    return Effect(float(one["value"]), float(one["value_low"]), float(one["value_high"]), int(one["n"]), bool(one["log"]))


def ratio(above: Effect, below: Effect) -> Effect:
    """Return the exact ratio of two exact effects.

    Raises:
        InputError: if one of them is sampled: a ratio of estimates needs their joint interval.
    """
    if not (above.is_exact and below.is_exact):
        raise checks.InputError("Two exact effects were expected for a ratio, but one is sampled; make the ratio in the study.")
    return Effect.exact(above.value / below.value)


def mean_of(sample: np.ndarray) -> Effect:
    """Return the mean of independent draws [n] with its t interval."""
    n = len(sample)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * sample.std(ddof=1) / math.sqrt(n))
    mean = float(sample.mean())
    return Effect(mean, mean - half, mean + half, n)


def geometric_mean_of(sample: np.ndarray) -> Effect:
    """Return the geometric mean of independent positive draws [n], with the t interval of the mean logarithm."""
    e = mean_of(np.log(sample))
    return Effect(math.exp(e.value), math.exp(e.low), math.exp(e.high), e.n, log=True)


def curves(xlabel: str, ylabel: str, log: str = "", line: float | None = None, columns: int = 2):  # noqa: ANN201
    """Return a drawing function for a study: the rows with a panel, by :func:`varlab.analysis.estimates.draw`."""

    def draw(rows: pd.DataFrame, style: object = None) -> styles.Figure:
        shown = rows[rows["panel"] != ""]
        return estimates.draw(shown, style, xlabel=xlabel, ylabel=ylabel, log=log, line=line, columns=columns)

    return draw
