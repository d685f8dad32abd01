"""The figures that most studies need: estimates with their intervals in a column, and curves with bands.

Rows have ``label`` (or ``phi``), ``value``, ``value_low``, ``value_high`` and, where it is known, ``exact``; ``panel`` parts them
into panels. With a column ``x`` they are drawn as curves over it, else as points below each other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from varlab.analysis import marks
from varlab.analysis import style as styles

#: Markers and greys of series that are not named after a Φ.
SERIES = (
    ("#332288", "o"), ("#CC6677", "s"), ("#117733", "^"), ("#997700", "D"), ("#56B4E9", "v"), ("#882255", "P"), ("#777777", "X"),
)  # fmt: skip


def named(label: str, rank: int) -> styles.Look:
    """Return the look of a series: that of its Φ, or one by its rank."""
    if styles.parse(label)[0] in styles.FAMILIES:
        return styles.look(label)
    color, marker = SERIES[rank % len(SERIES)]
    return styles.Look(color, marker, rank >= len(SERIES), styles.readable(label))


def draw(
    rows: pd.DataFrame,
    style: object = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    line: float | None = None,
    columns: int = 2,
) -> styles.Figure:
    """Draw the rows of a study, one panel for each value of ``panel``.

    Args:
        rows: as above.
        style: see :func:`varlab.analysis.style.make`.
        xlabel: of the axis along which points or curves run.
        ylabel: of the other one (curves).
        log: axes that are logarithmic: any of the letters x and y.
        line: a value to draw a dashed line at.
        columns: most panels in a row.

    Returns:
        The Figure.
    """
    panels = list(dict.fromkeys(rows["panel"])) if "panel" in rows else [None]
    curves = "x" in rows
    wide = min(columns, len(panels)) > 1
    names = list(dict.fromkeys(rows["label" if "label" in rows else "phi"]))
    with styles.context(style) as s:
        inch, width, across = s.font_size / 72, s.width(wide), s.across(min(columns, len(panels)), wide)
        down = -(-len(panels) // across)
        stacked = wide and width < s.text
        shape = 0.62 * (width if stacked else s.text / max(across, 1.6))
        tall = (shape if curves else inch * (1.7 * len(names) + 4.5)) * down
        figure = styles.Figure(figsize=(width, tall), layout="constrained")
        axs = figure.subplots(down, across, squeeze=False)
        for i, (ax, panel) in enumerate(zip(axs.flat, panels, strict=False)):
            here = rows if panel is None else rows[rows["panel"] == panel]
            (_curves if curves else _points)(ax, here, names, log, line, i % across == 0)
            if panel is not None:
                ax.set_title(styles.readable(str(panel)))
            if i >= len(panels) - across:
                ax.set_xlabel(styles.readable(xlabel))
            if curves and i % across == 0:
                ax.set_ylabel(styles.readable(ylabel))
        for ax in axs.flat[len(panels) :]:
            ax.remove()
        if curves and len(names) > 1:
            looks = [named(n, j) for j, n in enumerate(names)]
            keys = [Line2D([], [], color=k.color, marker=k.marker, markerfacecolor=k.face, label=k.label) for k in looks]
            figure.set_figheight(tall + inch * 1.7 * marks.below(figure, keys, 6))
    return figure


def _points(ax: Axes, rows: pd.DataFrame, names: list[str], log: str, line: float | None, first: bool) -> None:
    key = "label" if "label" in rows else "phi"
    for row in rows.to_dict("records"):
        rank = names.index(row[key])
        look = named(row[key], rank)
        if np.isfinite([row["value_low"], row["value_high"]]).all():
            ax.plot([row["value_low"], row["value_high"]], [rank, rank], color=look.color, marker="|", solid_capstyle="butt")
        ax.plot([row["value"]], [rank], look.marker, color=look.color, markerfacecolor=look.face)
        if np.isfinite(row.get("exact", np.nan)):
            ax.plot([row["exact"]] * 2, [rank - 0.38, rank + 0.38], color="black", linewidth=0.6)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(range(len(names)), [named(n, j).label for j, n in enumerate(names)] if first else [""] * len(names))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="both")
    values = {float(v) for c in ("value", "value_low", "value_high") for v in rows[c] if np.isfinite(v)}
    if "x" in log:
        marks.log(ax, "x", values | ({line} if line else set()))
    if line is not None:
        ax.axvline(line, color=marks.GREY, linestyle="--", linewidth=0.8, zorder=1)


def _curves(ax: Axes, rows: pd.DataFrame, names: list[str], log: str, line: float | None, first: bool) -> None:
    key = "label" if "label" in rows else "phi"
    for name, part in rows.groupby(key, sort=False):
        look, part = named(str(name), names.index(name)), part.sort_values("x")
        if np.isfinite(part[["value_low", "value_high"]]).all().all() and (part["value_high"] > part["value_low"]).any():
            ax.fill_between(part["x"], part["value_low"], part["value_high"], color=look.color, alpha=0.2, linewidth=0)
        ax.plot(part["x"], part["value"], color=look.color, marker=look.marker, markerfacecolor=look.face)
        if "exact" in part and part["exact"].notna().any():
            ax.plot(part["x"], part["exact"], color="black", linewidth=0.6, linestyle=":")
    if "x" in log:
        marks.log(ax, "x", {float(v) for v in rows["x"]}, margin=1.15)
    values = {float(v) for c in ("value", "value_low", "value_high") for v in rows[c] if np.isfinite(v)}
    if "y" in log:
        marks.log(ax, "y", values)
    ax.grid(axis="both")
    if line is not None:
        ax.axhline(line, color=marks.GREY, linestyle="--", linewidth=0.8, zorder=1)
