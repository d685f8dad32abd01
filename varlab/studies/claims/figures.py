"""The figure of a study and its caption; most studies are drawn by :mod:`varlab.analysis.estimates`."""

from __future__ import annotations

import pandas as pd

from varlab.analysis import captions, estimates
from varlab.analysis import style as styles
from varlab.studies.claims.catalogue import STUDIES


def figure_of(name: str, rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the rows of a study as the study wants it, or by default."""
    return (STUDIES[name].draw or estimates.draw)(rows, style)


def caption(name: str, table: pd.DataFrame, command: str) -> str:
    """Return the caption of a study's figure: what it shows, the claims that are read off it, n, digest and command.

    Args:
        name: of the study.
        table: of :func:`varlab.studies.claims.judge.judge`.
        command: that drew it.

    Returns:
        Markdown.
    """
    mine = table[table["study"] == name]
    most = int(mine["n"].max())
    size = "exact values" if most == 0 else f"n up to {most:,}"
    outcomes = "; ".join(f"{r.claim} {r.outcome}" for r in mine.itertuples())
    budget, seed, digest = (mine[c].iloc[0] for c in ("budget", "seed", "digest"))
    return (
        f"{captions.MARK}\n{STUDIES[name].caption} {captions.INTERVAL}\n\n"
        f"{outcomes}. {size}, budget {budget}, seed {seed}, digest {digest}.\n\nCommand: `{command}`\n"
    )
