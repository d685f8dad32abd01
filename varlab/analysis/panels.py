"""Panels: each is one function ``DataFrame -> Axes`` that draws the numbers and intervals of a table, and saves nothing.

Every bar and band is a 95 % interval of the number at its centre, never the spread of the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, SymmetricalLogLocator

from varlab.analysis import marks, tables
from varlab.analysis import style as styles


def variance_by_phi(
    table: pd.DataFrame, ax: Axes | None = None, style: object = None, names: Sequence[str] | None = None
) -> Axes:
    """Draw the variance of every Φ, one row each in the order of the source text, on a logarithmic axis.

    Args:
        table: rows of a summary, one environment; a Φ that occurs once per objective is drawn once.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        names: the Φ that get a row, so that panels side by side share theirs; None for those of the table.

    Returns:
        The Axes: point and 95 % interval, and a thin upright tick at ``exact_variance`` where it is known.
    """
    rows = table.drop_duplicates(["phi", "variance"])
    names = styles.order(rows["phi"] if names is None else names)
    with styles.context(style) as s:
        ax = ax or styles.axes(s.column, s.font_size / 72 * (1.75 * len(names) + 4.5))
        for row in rows.to_dict("records"):
            y = names.index(row["phi"])
            marks.point(ax, row, y, "variance", along="x", caps=True)
            exact = row.get("exact_variance")
            if exact is not None and np.isfinite(exact):
                ax.vlines(exact, y - 0.38, y + 0.38, color="black", linewidth=0.8 * s.line_width, zorder=2.6, label="exact")
        ax.set_yticks(range(len(names)), [styles.label(p) for p in names])
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y")
        ax.set_xlabel(styles.QUANTITIES["variance"])
        marks.log(ax, "x", marks.span(rows, "variance") | set(marks.column(rows, "exact_variance")))
    return ax


def bias_against_variance(table: pd.DataFrame, ax: Axes | None = None, style: object = None, legend: bool = True) -> Axes:
    """Draw squared bias against variance, with 95 % intervals both ways.

    The vertical axis is linear around zero and logarithmic beyond, so estimates at or below zero stay in view; an interval that
    reaches zero ends in an arrow head there. Above the grey line bias² = variance/N, bias outweighs noise in the mean squared
    error of a batch of N trajectories.

    Args:
        table: rows of a summary, one environment and objective.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        legend: whether to name the Φ beside the axes.

    Returns:
        The Axes.
    """
    with styles.context(style) as s:
        ax = ax or styles.axes(s.text, 0.5 * s.text)
        unit = marks.linear_width(table)
        ax.set_yscale("symlog", linthresh=unit, linscale=0.6)
        ax.axhline(0, color="black", linewidth=0.6, zorder=1)
        for row in table.to_dict("records"):
            marks.point(ax, row, row["bias_sq"], "variance", along="x")
            marks.point(ax, row, row["variance"], "bias_sq", along="y")
            color = styles.look(row["phi"]).color
            if row["bias_sq_low"] <= 0 < row["bias_sq_high"]:
                ax.plot(row["variance"], 0, marker=7, color=color, markersize=0.8 * s.marker_size, zorder=2)
            if row["bias_sq"] < min(row["bias_sq_low"], 0):  # a thread from the interval to an estimate below it
                ax.vlines(
                    row["variance"], row["bias_sq"], 0, color=color, linewidth=0.5 * s.line_width, linestyle=":", zorder=1.5
                )
        marks.log(ax, "x", marks.span(table, "variance"))
        top = max(float(np.nanmax(marks.column(table, "bias_sq_high"), initial=0)), unit)
        bottom = min(float(np.nanmin(marks.column(table, "bias_sq"), initial=0)), 0.0)
        ax.set_ylim(1.8 * bottom - 0.5 * unit, 3 * top)
        ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=unit))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(marks.numbers(unit, top))
        marks.equal_parts(ax, marks.single(table, "batch_size"))
        ax.set_xlabel(styles.QUANTITIES["variance"])
        ax.set_ylabel(styles.QUANTITIES["bias_sq"])
        if legend:
            marks.legend(ax, table["phi"])
    return ax


def running_distance(table: pd.DataFrame, ax: Axes | None = None, style: object = None, legend: bool = True) -> Axes:
    """Draw the distance of a mean of n trajectories from the reference, against n, both logarithmic.

    Intervals over fewer than ten groups are in the table but not drawn: they would cover everything else.

    Args:
        table: rows of :func:`varlab.analysis.tables.running_table`, one environment and objective.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        legend: whether to name the Φ beside the axes.

    Returns:
        The Axes: root-mean-square distance of disjoint groups with 95 % intervals (points), the prediction
        √(bias² + variance/n + reference error) (lines), the path of one cumulative mean (faint), and a line of slope −1/2.
    """
    with styles.context(style) as s:
        ax = ax or styles.axes(s.text, 0.5 * s.text)
        names = styles.order(table["phi"])
        for i, phi in enumerate(names):
            look = styles.look(phi)
            mine = table[table["phi"] == phi].sort_values("n")
            groups, path = mine[mine["kind"] == "groups"], mine[mine["kind"] == "path"]
            ax.plot(
                path["n"], path["distance"], color=look.color, linewidth=0.5 * s.line_width, alpha=0.25, zorder=1.5, label="path"
            )
            ax.plot(groups["n"], groups["predicted"], color=look.color, zorder=2, label="predicted")
            dodge = 1.013 ** (i - (len(names) - 1) / 2)  # intervals of one n stand side by side
            for row in marks.with_enough(groups, "distance"):
                marks.point(ax, row, row["n"] * dodge, "distance", along="y")
        groups = table[table["kind"] == "groups"]
        marks.log(ax, "x", set(table["n"]), margin=1.25)
        marks.log(ax, "y", set(groups["distance"]) | set(groups["predicted"]), margin=1.3)
        marks.slope(ax, groups)
        ax.set_xlabel("trajectories $n$ in the mean")
        ax.set_ylabel(r"$\Vert$mean of $n$ $-\ \nabla J\Vert$")
        if legend:
            marks.legend(ax, names)
    return ax


def cosine_against_batch_size(table: pd.DataFrame, ax: Axes | None = None, style: object = None, legend: bool = True) -> Axes:
    r"""Draw the cosine between a batch mean and ∇J against the batch size N.

    Intervals over fewer than ten groups are in the table but not drawn: they would cover everything else.

    Args:
        table: rows of :func:`varlab.analysis.tables.cosine_table`, one environment and objective.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        legend: whether to name the Φ beside the axes.

    Returns:
        The Axes: closed form ρ_N with its 95 % band (dashed where it is approximate), measured means with 95 % intervals.
    """
    with styles.context(style) as s:
        ax = ax or styles.axes(s.text, 0.5 * s.text)
        names = styles.order(table["phi"])
        for i, phi in enumerate(names):
            look = styles.look(phi)
            mine = table[table["phi"] == phi].sort_values("batch_size")
            closed, measured = mine[mine["kind"] == "closed form"], mine[mine["kind"] == "measured"]
            dashed = (closed.get("note", pd.Series(dtype=str)) == "approximate").any()
            ax.plot(
                closed["batch_size"], closed["cosine"], "--" if dashed else "-", color=look.color, zorder=2, label="closed form"
            )
            ax.fill_between(
                closed["batch_size"],
                closed["cosine_low"],
                closed["cosine_high"],
                color=look.color,
                alpha=0.07,
                linewidth=0,
                zorder=1,
            )
            for row in marks.with_enough(measured, "cosine"):
                marks.point(ax, row, row["batch_size"] * 1.013 ** (i - (len(names) - 1) / 2), "cosine", along="y")
        marks.log(ax, "x", set(table["batch_size"]), margin=1.15)
        low = float(np.nanmin(np.append(table["cosine"], 0.0)))
        ax.set_ylim(low - 0.03 if low < 0 else 0.0, 1.03)
        ax.axhline(1, color=marks.GREY, linewidth=0.5, zorder=1)
        ax.grid(axis="y")
        ax.set_xlabel("batch size $N$ (trajectories)")
        ax.set_ylabel(r"cosine of batch mean and $\nabla J$")
        if legend:
            marks.legend(ax, names)
    return ax


def swept(
    table: pd.DataFrame,
    x: str,
    y: str = "variance",
    hue: str = "phi",
    ax: Axes | None = None,
    style: object = None,
    legend: bool = True,
) -> Axes:
    """Draw a positive quantity of many runs against a swept setting, on a logarithmic axis.

    Runs that differ in their seed alone are faint points; the line through their geometric means joins the values of ``x``. A run
    that stands alone shows its own 95 % interval. Runs that share a sampled reference are not independent in what refers to it,
    so for bias_sq, mse, nsr and cosine they get no line.

    Args:
        table: rows of :func:`varlab.analysis.tables.gather`, one facet.
        x: the setting on the horizontal axis; evenly spaced when it takes at most twelve values.
        y: the quantity.
        hue: the column whose values get a line each.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        legend: whether to name the lines beside the axes.

    Returns:
        The Axes.
    """
    with styles.context(style) as s:
        ax = ax or styles.axes(s.text, 0.5 * s.text)
        levels = sorted(table[x].dropna().unique(), key=lambda v: (isinstance(v, str), v))
        even = len(levels) <= 12 or isinstance(levels[0], str)
        at = {v: float(i) if even else float(v) for i, v in enumerate(levels)}
        names = styles.order(map(str, table[hue]))
        width = 0.5 / max(len(names) - 1, 1) if even else 0.0
        for i, name in enumerate(names):
            mine = table[table[hue].astype(str) == name]
            look = styles.look(name)
            centre, place = [], []
            for value, cell in mine.groupby(x, sort=True):
                where = at[value] + width * (i - (len(names) - 1) / 2)
                for row in cell.to_dict("records"):
                    if len(cell) == 1:
                        marks.point(ax, {**row, "phi": name}, where, y, along="y", caps=True)
                    else:
                        ax.plot(
                            where,
                            row[y],
                            look.marker,
                            color=look.color,
                            markerfacecolor=look.face,
                            alpha=0.5,
                            gid="run",
                            zorder=2,
                        )
                if tables.poolable(cell, y):
                    centre.append(float(np.exp(np.log(cell[y]).mean())))
                    place.append(where)
            mark = "_" if mine.groupby(x).size().max() > 1 else ""
            size = 1.8 * s.marker_size
            ax.plot(place, centre, marker=mark, markersize=size, color=look.color, gid="geometric mean", label=name, zorder=1.8)
        if even:
            ax.set_xticks(range(len(levels)), [f"{v:g}" if isinstance(v, float) else str(v) for v in levels])
            ax.set_xlim(-0.5, len(levels) - 0.5)
            for i in range(len(levels) - 1):
                ax.axvline(i + 0.5, color="#e4e4e4", linewidth=0.5, zorder=0)
        elif min(levels) > 0 and max(levels) / min(levels) > 30:
            marks.log(ax, "x", set(levels))
        heights = [line.get_ydata() for line in ax.lines if line.get_gid() is not None]  # intervals of pooled runs are not drawn
        marks.log(ax, "y", {float(v) for v in np.concatenate(heights)})
        ax.set_xlabel(styles.SETTINGS.get(x, x.replace("_", " ")))
        ax.set_ylabel(styles.QUANTITIES.get(y, y.replace("_", " ")))
        if legend:
            marks.legend(ax, names)
    return ax
