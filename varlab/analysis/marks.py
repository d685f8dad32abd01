"""Marks and axes that the figures share: points with intervals, legends, logarithmic axes with ticks that can be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from varlab.analysis import style as styles

GREY = "#8a8a8a"
FEWEST_GROUPS = 10


def point(ax: Axes, row: Mapping[str, object], other: float, what: str, along: str, caps: bool = False) -> None:
    """Draw one estimate with its interval, horizontal (``along="x"``) or upright; caps show one narrower than its marker."""
    look = styles.look(str(row["phi"]))
    value, low, high = (float(row.get(c, np.nan)) for c in (what, f"{what}_low", f"{what}_high"))

    def at(*values: float) -> tuple[list[float], list[float]]:
        return (list(values), [other] * len(values)) if along == "x" else ([other] * len(values), list(values))

    # gid carries the number's name, so that an artist can be told from its neighbours.
    same = {"color": look.color, "label": str(row["phi"])}
    if np.isfinite([low, high]).all():
        cap = ("|" if along == "x" else "_") if caps else ""
        width = 0.6 * rcParams["lines.linewidth"]
        ax.plot(
            *at(low, high), marker=cap, markeredgewidth=width, gid=f"{what} interval", zorder=2.4, solid_capstyle="butt", **same
        )
    edge = 0.8 if look.hollow else 0.4 if look.marker == "*" else 0.0
    size = rcParams["lines.markersize"] * (0.8 if caps else 1.0) * (1.35 if look.marker == "*" else 1.0)
    ax.plot(*at(value), look.marker, markerfacecolor=look.face, markeredgewidth=edge, markersize=size, gid=what, zorder=3, **same)


def with_enough(rows: pd.DataFrame, what: str) -> list[dict[str, object]]:
    """Return the rows as records, without the intervals that rest on fewer than :data:`FEWEST_GROUPS` groups."""
    few = {f"{what}_low": np.nan, f"{what}_high": np.nan}
    return [row if row["groups"] >= FEWEST_GROUPS else {**row, **few} for row in rows.to_dict("records")]


def handles(names: Sequence[str]) -> list[Line2D]:
    """Return legend entries, one per Φ."""
    looks = [styles.look(p) for p in styles.order(names)]
    return [Line2D([], [], color=k.color, marker=k.marker, markerfacecolor=k.face, label=k.label) for k in looks]


def handle(label: str, color: str, marker: str = "", linestyle: str = "-") -> Line2D:
    """Return the legend entry of a curve that is not one of a Φ."""
    return Line2D([], [], color=color, marker=marker, linestyle=linestyle, label=label)


def legend(ax: Axes, names: Sequence[str]) -> None:
    """Name the Φ to the right of the axes, where no data can be hidden."""
    ax.legend(handles=handles(names), loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0, handletextpad=0.5)


def below(figure: Figure, keys: Sequence[Line2D], most: int, **spacing: float) -> int:
    """Put a legend below all panels, in as many columns as fit the page.

    Args:
        figure: with its width set.
        keys: the entries.
        most: columns.
        spacing: of the legend, as matplotlib names it.

    Returns:
        The number of its rows.
    """
    rows = -(-len(keys) // most)
    while True:  # columns of equal length, so that no single entry is left over
        legend = figure.legend(
            handles=keys, loc="outside lower center", ncols=-(-len(keys) // rows), handletextpad=0.4, **spacing
        )
        if rows == len(keys) or legend.get_window_extent().width <= figure.bbox.width:
            return rows
        legend.remove()
        rows += 1


def column(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return the finite numbers of a column, none if it is missing."""
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float) if name in table else np.empty(0)
    return values[np.isfinite(values)]


def span(table: pd.DataFrame, what: str) -> set[float]:
    """Return a number's finite values and ends of intervals."""
    return {float(v) for c in (what, f"{what}_low", f"{what}_high") for v in column(table, c)}


def single(table: pd.DataFrame, name: str) -> float | None:
    """Return the value of a column that takes one, else None."""
    values = set(column(table, name))
    return values.pop() if len(values) == 1 else None


def log(ax: Axes, axis: str, values: set[float], margin: float = 1.3) -> None:
    """Make an axis logarithmic around the positive values, with enough ticks to read at least two."""
    good = [v for v in values if np.isfinite(v) and v > 0]
    if not good:  # nothing that a logarithm could show
        return
    margin = max(margin, (max(good) / min(good)) ** 0.04)  # a marker at the end of many decades stays whole
    low, high = min(good) / margin, max(good) * margin
    getattr(ax, f"set_{axis}scale")("log")
    getattr(ax, f"set_{axis}lim")(low, high)
    decades = np.log10(high / low)
    one = getattr(ax, f"{axis}axis")
    if decades >= 2:
        every = max(1, int(np.ceil(decades / 7)))
        one.set_major_locator(LogLocator(base=10**every))
        one.set_minor_locator(LogLocator(base=10, subs=range(2, 10) if every == 1 else (1.0,), numticks=99))
    else:
        many = (1, 2, 5) if 1e-3 <= low and high < 1e5 else (1, 3)  # powers of ten are wide
        subs = many if decades > 0.8 else (1, 1.5, 2, 3, 4, 5, 6, 8) if decades > 0.35 else np.arange(1, 10, 0.5)
        ticks = [m * 10.0**e for e in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1) for m in subs]
        one.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
        one.set_minor_locator(NullLocator())
    one.set_major_formatter(numbers(low, high))
    one.set_minor_formatter(NullFormatter())


def numbers(smallest: float, largest: float) -> FuncFormatter:
    """Return how an axis writes its ticks: plain where all sizes lie in [0.001, 100,000), else all as powers of ten."""
    plain = smallest >= 9.9e-4 and largest < 1e5

    def write(value: float, _: object = None) -> str:
        if value == 0 or plain:
            return f"{value:g}".replace("-", "−")
        exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
        mantissa = abs(value) / 10.0**exponent
        front = "" if np.isclose(mantissa, 1) else rf"{mantissa:g}\times "
        return rf"${'-' if value < 0 else ''}{front}10^{{{exponent}}}$"

    return FuncFormatter(write)


def linear_width(table: pd.DataFrame) -> float:
    """Return where the symmetric axis turns from linear to logarithmic: a power of ten below most upper ends."""
    high = column(table, "bias_sq_high")
    high = high[high > 0]
    return float(10 ** np.floor(np.log10(np.quantile(high, 0.25)))) if high.size else 1.0


def equal_parts(ax: Axes, batch_size: float | None) -> None:
    """Draw bias² = variance/N across the axes."""
    if not batch_size or ax.get_xscale() != "log":
        return
    x = np.geomspace(*ax.get_xlim(), 64)
    y = x / batch_size
    low, high = ax.get_ylim()
    inside = (y > low) & (y < high)
    if inside.any():
        ax.plot(x[inside], y[inside], "--", color=GREY, linewidth=0.7, zorder=1, label="equal parts")
        end = np.flatnonzero(inside)[-1]
        right = end < 40  # whether there is room to the right of the line's end
        ax.annotate(
            f"bias$^2$ = variance/{batch_size:g}",
            (x[end], y[end]),
            xytext=(4 if right else -2, 0 if right else -8),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top",
            color="#5f5f5f",
            fontsize="small",
            zorder=1.5,  # above its line, below the estimates
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )


def slope(ax: Axes, groups: pd.DataFrame) -> None:
    """Draw the n^{-1/2} decay above the data and name it."""
    n = np.array([groups["n"].min(), groups["n"].max()], dtype=float)
    at = groups[groups["n"] == n[0]]["distance"].max() * 1.5
    y = at * np.sqrt(n[0] / n)
    ax.plot(n, y, "--", color=GREY, linewidth=0.8, zorder=1, label="slope")
    ax.set_ylim(top=max(ax.get_ylim()[1], at * 1.6))
    middle = np.sqrt(n[0] * n[1])
    ax.annotate(
        r"$\propto n^{-1/2}$",
        (middle, at * np.sqrt(n[0] / middle)),
        xytext=(3, 3),
        textcoords="offset points",
        color="#5f5f5f",
        va="bottom",
        ha="left",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )
