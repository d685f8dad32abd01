"""What a calibration says: rules that the cells must keep, as a table in words and as a figure."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from varlab.analysis import captions, marks
from varlab.analysis import style as styles

#: Coverage that a trusted cell keeps, and that no trusted cell leaves.
GOOD, OUTER = (0.93, 0.97), (0.91, 0.985)
#: Share of flagged repeats from which a cell counts as flagged.
FLAGGED = 0.9
COVERED = ("variance", "variance_ratio", "bias_sq", "nsr", "cosine")
TITLES = {
    "variance": "variance", "variance_ratio": "variance ratio", "bias_sq": "bias²", "nsr": "NSR", "cosine": "cosine",
    "mse": "MSE", "false_alarms": "false alarms", "power": "power",
}  # fmt: skip


class Rule(NamedTuple):
    """A rule, whether it holds, and what was found."""

    text: str
    holds: bool
    found: str


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that count as coverage: neither an interval that is exact by identity, nor bias² where it is unresolved."""
    counted = table["statistic"].isin(COVERED) & ~table["constant"].astype(bool)
    return table[counted & ~unresolved(table)]


def unresolved(table: pd.DataFrame) -> pd.Series:
    """Say which rows are of a bias² of at most 9 tr Cov/n: its lower end is often 0, which covers, only too little can fail."""
    return (table["statistic"] == "bias_sq") & (table["exact"] <= 9 * table["noise"])


def rules(table: pd.DataFrame) -> list[Rule]:
    """Hold a calibration to its rules.

    Args:
        table: rows of :func:`varlab.studies.calibration.calibrate`.

    Returns:
        The rules in order.
    """
    counted, default = cells(table), table["n"].max()
    flagged = counted["flagged"] >= FLAGGED
    trusted, large = counted[~flagged], counted[counted["n"] == default]
    inside = trusted["coverage"].between(*GOOD).mean()
    low, high = trusted["coverage"].min(), trusted["coverage"].max()
    poor = counted[(counted["coverage"] < GOOD[0]) & ~flagged]
    share = (large["flagged"] >= FLAGGED).mean()
    light = large[(large["flagged"] >= FLAGGED) & (large["kurtosis"] < 50)]
    zero = table[unresolved(table)]["coverage"].min()
    alarms = table[(table["statistic"] == "false_alarms") & (table["flagged"] < FLAGGED)]["coverage"]
    power = table[table["statistic"] == "power"]["coverage"].min()
    # What flags leave is a share of the repeats: three standard errors of its coverage are luck.
    left = (1 - trusted["flagged"]) * trusted["repeats"]
    luck = 3 * (trusted["coverage"] * (1 - trusted["coverage"]) / left).pow(0.5) * (trusted["flagged"] > 0)
    spoilt = (trusted["unflagged_coverage"] - trusted["coverage"] + luck).min()
    heavy = counted[(counted["kurtosis"] > 30) & (counted["n"] / counted["kurtosis"] < 50)]
    return [
        Rule("at least 98 % of the unflagged cells cover 93 to 97 %", inside >= 0.98, f"{inside:.1%} of {len(trusted)}"),
        Rule(
            "no unflagged cell covers less than 91 or more than 98.5 %",
            OUTER[0] <= low and high <= OUTER[1], f"{low:.1%} to {high:.1%}",
        ),
        Rule("every cell that covers less than 93 % is flagged", poor.empty, f"{len(poor)} are not"),
        Rule(f"at most 20 % of the cells at n = {default:,} are flagged", share <= 0.2, f"{share:.1%}"),
        Rule("none of them with kurtosis below 50", light.empty, f"{len(light)} are"),
        Rule(
            "flags do not lower the coverage of what they leave (by more than three standard errors)",
            spoilt >= 0, f"{spoilt:+.1%} to spare",
        ),
        Rule("where the bias is zero or not resolved, bias² covers at least 93 %", zero >= GOOD[0], f"{zero:.1%} at least"),
        Rule(
            "unflagged cells have 3 to 7 % false alarms",
            bool(alarms.between(0.03, 0.07).all()), f"{alarms.min():.1%} to {alarms.max():.1%}",
        ),
        Rule("power at ‖bias‖ = 3 √(tr/n) at least 80 %", power >= 0.8, f"{power:.1%} at least"),
        Rule("some cells have kurtosis above 30 and n/kurtosis below 50", len(heavy) > 0, f"{len(heavy)} cells"),
    ]  # fmt: skip


def rules_to_markdown(table: pd.DataFrame) -> str:
    """Return the rules with what was found."""
    lines = ["| rule | holds | found |", "|---|---|---|"]
    lines += [f"| {r.text} | {'yes' if r.holds else '**no**'} | {r.found} |" for r in rules(table)]
    return "\n".join(lines) + "\n"


def to_markdown(table: pd.DataFrame) -> str:
    """Return, per world and n, the range over Φ of coverage, false alarms and power in %."""
    lines = [f"Ranges over Φ in % of {table['repeats'].iloc[0]:,} repeats; flagged: share of flagged repeats.", ""]
    lines += ["| world | n | kurtosis | " + " | ".join(TITLES.values()) + " | flagged |", "|---|" + "---:|" * (len(TITLES) + 3)]
    for (world, n), part in table.groupby(["world", "n"], sort=False):
        own = part[~part["constant"].astype(bool)]
        shown = [_range(100 * own[own["statistic"] == s]["coverage"]) for s in TITLES]
        ends = _range(part["kurtosis"]), _range(100 * part["flagged"])
        lines.append(f"| {world} | {n:,} | {ends[0]} | " + " | ".join(shown) + f" | {ends[1]} |")
    return "\n".join(lines) + "\n"


def _range(x: pd.Series) -> str:
    low, high = (f"{v:.1f}" for v in (x.min(), x.max()))
    return "" if x.empty else low if low == high else f"{low}–{high}"


def draw(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw coverage and false alarms: one panel per statistic and n, one line per world, one mark per Φ.

    Args:
        table: rows of :func:`varlab.studies.calibration.calibrate`.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure; the band is 93 to 97 % (3 to 7 % for false alarms), the line the nominal value, small grey marks are flagged.
    """
    sizes = sorted(table["n"].unique())
    listed = [list(dict.fromkeys(table[table["n"] == n]["world"])) for n in sizes]
    panels = [*COVERED, "false_alarms"]
    with styles.context(style) as s:
        line = s.font_size / 72
        rows = [1.7 * len(worlds) + 3 for worlds in listed]
        height = line * (sum(rows) + 5)
        figure = styles.Figure(figsize=(s.text, height), layout="constrained")
        axs = figure.subplots(len(sizes), len(panels), sharey="row", squeeze=False, height_ratios=rows)
        for i, (n, worlds) in enumerate(zip(sizes, listed, strict=True)):
            for j, statistic in enumerate(panels):
                ax, alarms = axs[i, j], statistic == "false_alarms"
                nominal, band = (5, (3, 7)) if alarms else (95, (93, 97))
                ax.axvspan(*band, color=marks.GREY, alpha=0.18, linewidth=0)
                ax.axvline(nominal, color=marks.GREY, linewidth=0.6)
                here = table[(table["n"] == n) & (table["statistic"] == statistic) & ~table["constant"].astype(bool)]
                for row in here.to_dict("records"):
                    names = list(dict.fromkeys(table[table["world"] == row["world"]]["phi"]))
                    offset = 0.6 * ((names.index(row["phi"]) + 0.5) / len(names) - 0.5)
                    flagged = row["flagged"] >= FLAGGED
                    spot = {"phi": row["phi"], "coverage": 100 * row["coverage"]}
                    marks.point(ax, spot, worlds.index(row["world"]) + offset, "coverage", along="x")
                    if flagged:
                        ax.lines[-1].set(color=marks.GREY, markerfacecolor="none", markeredgewidth=0.8)
                ax.set_xlim(*((0, 10) if alarms else (90, 100)))
                ax.set_xticks([0, 5, 10] if alarms else [90, 95, 100])
                ax.tick_params(axis="y", length=0)
                if i == 0:
                    ax.set_title(TITLES[statistic])
                if j == 0:
                    ax.set_ylabel(f"n = {n:,}")
                    ax.set_yticks(range(len(worlds)), worlds)
                    ax.set_ylim(len(worlds) - 0.4, -0.6)
        figure.supxlabel("intervals that hold the exact value, % (false alarms: tests that reject, %)", fontsize=s.font_size)
        figure.legend(handles=marks.handles(list(dict.fromkeys(table["phi"]))), loc="outside upper center", ncols=5)
    return figure


def caption(table: pd.DataFrame, command: str) -> str:
    """Return the caption of :func:`draw`'s figure."""
    return (
        f"{captions.MARK}\n"
        f"Share of 95 % intervals that hold the exact value, over {table['repeats'].iloc[0]:,} independent measurements of each "
        "world, n and Φ, and share of bias tests at 5 % that reject although there is no bias. Bands: 93 to 97 % and 3 to 7 %. "
        "bias² at zero bias has no upper limit, its lower end being 0. Open grey marks: cells whose summary carries a flag. All "
        "repeats are counted, flagged or not.\n\n"
        f"Command: `{command}`\n"
    )
