"""Figures of one run and of many: panels arranged, drawn over a sweep, and saved with their captions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varlab import checks, storage
from varlab.analysis import captions, latex, marks, tables
from varlab.analysis import style as styles
from varlab.analysis.panels import bias_against_variance, cosine_against_batch_size, running_distance, swept, variance_by_phi

log = logging.getLogger(__name__)

__all__ = [
    "bias_against_variance", "cosine_against_batch_size", "figure_from_runs", "grid", "running_distance", "save", "save_all",
    "save_sweep", "swept", "variance_by_phi",
]  # fmt: skip

Draw = Callable[..., Axes]


def grid(
    table: pd.DataFrame, draw: Draw, by: Sequence[str] = ("env",), columns: int = 3, style: object = None, **kwargs: object
) -> Figure:
    """Draw one panel for every combination of the columns ``by``, and one legend for all.

    Args:
        table: rows that ``draw`` understands.
        draw: a figure of this file.
        by: columns that make the panels; one that takes a single value adds nothing to a title.
        columns: most panels in one row.
        style: see :func:`varlab.analysis.style.make`.
        kwargs: passed on to ``draw``.

    Returns:
        The Figure.
    """
    by = [c for c in by if c in table]
    rank = [{v: i for i, v in enumerate(table[c].unique())} for c in by]  # panels follow the table, the first column slowest
    cells = list(table.groupby(by, sort=False, dropna=False)) if by else [((), table)]
    cells.sort(key=lambda cell: [ranks.get(v, -1) for ranks, v in zip(rank, cell[0], strict=True)])
    told = [i for i, c in enumerate(by) if table[c].nunique(dropna=False) > 1]
    names = styles.order(table["phi"])
    listing = draw is variance_by_phi
    with styles.context(style) as s:
        line, width, across = s.font_size / 72, s.width(not listing or len(cells) > 1), s.across(min(columns, len(cells)))
        down = -(-len(cells) // across)
        # Then the legend stands beside the panel, else below all of them.
        beside = len(cells) == 1 and width == s.text and not listing
        if listing:
            tall = down * line * (1.75 * len(names) + 5.5)
        else:
            tall = 0.5 * width if beside else down * 0.9 * width / across
        figure = Figure(figsize=(width, tall), layout="constrained")
        axs = figure.subplots(down, across, squeeze=False)
        for i, (ax, (value, cell)) in enumerate(zip(axs.flat, cells, strict=False)):
            draw(cell, ax=ax, style=style, **kwargs, **({"names": names} if listing else {"legend": beside}))
            ax.set_title(", ".join(_named(by[j], value[j]) for j in told))
            if i % across:
                ax.set_ylabel("")
            if listing and i % across:
                ax.set_yticklabels([])
            if i < len(cells) - across and not listing:
                ax.set_xlabel("")
        for ax in axs.flat[len(cells) :]:
            ax.remove()
        figure.align_xlabels()
        if not (listing or beside):
            figure.set_figheight(tall + line * 1.6 * (1 + marks.below(figure, marks.handles(names), 4, columnspacing=1.4)))
    return figure


def figure_from_runs(
    table: pd.DataFrame,
    x: str | None = None,
    y: str = "variance",
    hue: str = "phi",
    facet: str | Sequence[str] = "env",
    style: object = None,
) -> Figure:
    """Draw a quantity of many runs against the setting that was swept (see :func:`varlab.analysis.panels.swept`).

    The settings that vary are found in the table: the first one other than ``facet`` and the seed lies along x, further ones make
    further panels, and runs that differ in seed alone fall on one place.

    Args:
        table: rows of :func:`varlab.analysis.tables.gather`.
        x: the swept setting; None finds it.
        y: the quantity.
        hue: the column whose values get a line each.
        facet: columns that make the panels.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure.

    Raises:
        InputError: if no setting varies.
    """
    facet, table = [facet] if isinstance(facet, str) else list(facet), tables.sources(table)
    settings = [c for c in tables.varying(table) if c not in facet]
    x = x or next((c for c in settings if c != "seed"), "seed" if "seed" in settings else None)
    if x is None:
        raise checks.InputError(
            "Runs that differ in a setting were expected, but all share the same ones; measure a sweep with -m first."
        )
    if x not in table:
        raise checks.InputError(
            f"No column of the table is called '{x}'; the nearest names are {checks.nearest(x, map(str, table.columns))}."
        )
    further = [c for c in settings if c not in (x, "seed")]
    if y in tables.REFERRING and table.groupby("run")["objective"].nunique().max() > 1:
        further.append("objective")
    rows = table.drop_duplicates([c for c in ("run", *facet, *further, x, "seed", hue, y) if c in table])
    return grid(rows, swept, by=[*facet, *further], style=style, x=x, y=y, hue=hue)


def save(drawing: Axes | Figure, folder: str | Path, name: str, caption: str | None = None, style: object = None) -> list[Path]:
    """Write a figure as PNG and PDF (fonts of Type 42), with its caption beside it as Markdown and as a LaTeX figure.

    A figure that varlab drew before is redrawn; if it was drawn from other runs, the log says so.

    Args:
        drawing: what a function of this file returned.
        folder: made if missing.
        name: of the files, without ending.
        caption: Markdown text (see :func:`varlab.analysis.captions.caption`).
        style: the style that it was drawn in.

    Returns:
        The paths written.

    Raises:
        InputError: if a file of that name is there and varlab did not draw it.
    """
    figure = drawing if isinstance(drawing, Figure) else drawing.get_figure(root=True)
    *pictures, beside, source = (Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf", "md", "tex"))
    before = beside.read_text(encoding="utf-8") if beside.exists() else ""
    foreign = [p.name for p in (*pictures, beside, source) if p.exists()]
    if foreign and not before.startswith(captions.MARK):
        raise checks.InputError(
            f"Figures drawn by varlab, or none, were expected in {folder}, but it holds {', '.join(foreign)} of unknown origin; "
            "name another folder with out= or move these files away."
        )
    text = caption or f"{captions.MARK}\n"
    if before and captions.digests(before) != captions.digests(text):
        log.warning("%s was drawn from other runs before and is redrawn.", Path(folder) / name)
    wide, page = figure.get_figwidth(), styles.make(style)
    if page.columns == 1 and wide > page.column + 1e-6:
        log.warning("%s needs the width of the text and is drawn so; a column is too narrow for its panels.", name)
    storage.write_text(beside, text)
    storage.write_text(source, latex.figure(name, text, wide=page.column < page.text and wide > page.column + 1e-6))
    with styles.context(style), _quiet_fonts():
        styles.wrap(figure)
        for path in pictures:
            with storage.atomic(path) as part:
                # No dates inside: equal numbers give equal files.
                figure.savefig(
                    part, format=path.suffix[1:], metadata={"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
                )
    return [*pictures, beside, source]


@contextmanager
def _quiet_fonts() -> Iterator[None]:
    """Keep what is said about fonts out of the log below warnings: embedding one in a PDF takes forty lines otherwise."""
    loggers = [logging.getLogger(name) for name in ("fontTools", "matplotlib.font_manager")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def save_all(
    summary: pd.DataFrame,
    running: pd.DataFrame,
    cosine: pd.DataFrame,
    folder: str | Path,
    style: object = None,
    command: str | None = None,
) -> list[Path]:
    """Draw and save the four figures of one run, or of several runs in different environments, one panel each.

    Args:
        summary: rows of a summary.
        running: rows of :func:`varlab.analysis.tables.running_table`.
        cosine: rows of :func:`varlab.analysis.tables.cosine_table`.
        folder: where the files go.
        style: see :func:`varlab.analysis.style.make`.
        command: the command, for the captions.

    Returns:
        The paths written.
    """
    parts: list[tuple[Draw, pd.DataFrame, list[str]]] = [
        (variance_by_phi, summary, ["env"]),
        (bias_against_variance, summary, ["env", "objective"]),
        (running_distance, running, ["env", "objective"]),
        (cosine_against_batch_size, cosine, ["env", "objective"]),
    ]
    written = []
    for draw, table, by in parts:
        text = captions.caption(draw.__name__, summary, command)
        written += save(grid(table, draw, by=by, style=style), folder, draw.__name__, text, style)
    return written


def save_sweep(table: pd.DataFrame, folder: str | Path, style: object = None, command: str | None = None) -> list[Path]:
    """Draw and save the variance, and its ratio to the comparator's, of many runs over what was swept.

    Args:
        table: rows of :func:`varlab.analysis.tables.gather`.
        folder: where the files go.
        style: see :func:`varlab.analysis.style.make`.
        command: the command, for the captions.

    Returns:
        The paths written.
    """
    settings = ", ".join(c for c in tables.varying(table) if c != "env")
    written = []
    for y in ("variance", "variance_ratio"):
        figure = figure_from_runs(table, y=y, style=style)
        text = captions.caption(
            "swept", table, command, f"{y.replace('_', ' ').capitalize()} against what was swept ({settings})."
        )
        written += save(figure, folder, f"{y}_over_runs", text, style)
    return written


def _named(column: str, value: object) -> str:
    """Return a value as a panel's title says it: names alone, numbers with their symbol."""
    if isinstance(value, str):
        return {"J_1": "$J$", "J_gamma": r"$J_\gamma$"}.get(value, value)
    symbol = {"gamma": r"$\gamma$", "horizon": "$H$", "cut": "$L$", "n": "$n$", "batch_size": "$N$"}.get(
        column, column.replace("_", " ")
    )
    return f"{symbol} = {tables.short(value) if isinstance(value, float) else value}"
