"""Tables of runs: many summaries gathered into one, and text to read in a terminal, a paper or a README."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from varlab import checks, storage
from varlab.analysis import latex
from varlab.analysis.convergence import cosine_table, running_table

log = logging.getLogger(__name__)

__all__ = [
    "cosine_table", "gather", "gather_convergence", "poolable", "readable", "running_table", "save", "short", "to_latex",
    "to_markdown", "varying",
]  # fmt: skip

SETTINGS = (
    "env", "policy", "theta", "gamma", "discount_weighting", "horizon", "n", "values_source", "batch_size", "cut", "at_cut",
    "dtype", "device", "reference_seed", "seed",
)  # fmt: skip
REFERRING = ("bias_sq", "mse", "nsr", "cosine", "grad_norm")
"""Numbers that carry the error of the reference."""


def gather(runs: Iterable[str | Path | pd.DataFrame], allow_mixed_numerics: bool = False) -> pd.DataFrame:
    """Join the summaries of many runs into one long table.

    A run that is found twice (equal digest) enters once. Rows that share a sampled reference stand side by side; they are not
    independent, and nothing here pools them.

    Args:
        runs: run folders, or summaries (a column ``numerics`` is used where they have one).
        allow_mixed_numerics: whether runs of different ``varlab.NUMERICS`` may share the table.

    Returns:
        The rows of all summaries, with the columns ``run`` and ``numerics`` at the end.

    Raises:
        InputError: if there is no run, or numerics differ and may not.
    """
    parts, seen = [], set()
    for i, run in enumerate(runs):
        if isinstance(run, pd.DataFrame):
            part = run.copy()
            part["run"] = part["run"] if "run" in part else str(i)
            part["numerics"] = part["numerics"] if "numerics" in part else np.nan
        else:
            summary, _, _, provenance = storage.read_run(run)
            part = summary.assign(run=str(run), numerics=provenance.get("numerics"))
        digests = frozenset(part["digest"].dropna()) if "digest" in part else frozenset()
        if digests and digests <= seen:
            log.info("Run %s was read already from another folder.", ", ".join(sorted(digests)))
            continue
        seen |= digests
        parts.append(part)
    if not parts:
        raise checks.InputError(
            "At least one finished run was expected, but none was found; run scripts/measure.py first or mend runs=."
        )
    # Columns that are empty in one run would otherwise change the type of the joined column.
    columns = list(dict.fromkeys(c for p in parts for c in p.columns if c not in ("run", "numerics")))
    table = pd.concat([p.dropna(axis=1, how="all") for p in parts], ignore_index=True).reindex(
        columns=[*columns, "run", "numerics"]
    )
    kinds = sorted(table["numerics"].dropna().unique())
    if len(kinds) > 1 and not allow_mixed_numerics:
        raise checks.InputError(
            f"Runs of one numerics were expected, but numerics {', '.join(f'{k:g}' for k in kinds)} came together; measure the "
            "older ones again, or set allow_mixed_numerics=true to show them side by side."
        )
    return table


def gather_convergence(folders: Iterable[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make the running and the cosine table of many run folders; each row carries the settings of its run.

    Args:
        folders: run folders.

    Returns:
        The rows of :func:`running_table` and those of :func:`cosine_table`.
    """
    running, cosine = [], []
    for folder in folders:
        summary, moments, references, _ = storage.read_run(folder)
        # n and batch_size are columns of these tables with their own meaning; sources of values differ inside a run.
        told = {
            c: summary[c].iloc[0] for c in (*SETTINGS, "digest") if c in summary and c not in ("n", "batch_size", "values_source")
        }
        running.append(running_table(moments, references).assign(**told))
        cosine.append(cosine_table(moments, references, summary).assign(**told))
    return pd.concat(running, ignore_index=True), pd.concat(cosine, ignore_index=True)


def save(table: pd.DataFrame, folder: str | Path, name: str = "table") -> list[Path]:
    """Write a table as csv and parquet, and its readable columns as Markdown and LaTeX (booktabs).

    Args:
        table: rows of :func:`gather`.
        folder: made if missing.
        name: of the files, without ending.

    Returns:
        The paths written.

    Raises:
        InputError: if a csv of that name is there and is no table of runs.
    """
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("csv", "parquet")]
    if paths[0].exists():
        with open(paths[0], encoding="utf-8", errors="replace") as file:
            columns = set(file.readline().strip().split(","))
        if not {"phi", "variance", "run"} <= columns:
            raise checks.InputError(
                f"A table of runs, or none, was expected at {paths[0]}, but it holds other data; name another folder with "
                "out= or move it away."
            )
    with storage.atomic(paths[0]) as part:
        table.to_csv(part, index=False)
    with storage.atomic(paths[1]) as part:
        table.to_parquet(part, index=False)
    for kind, text in (("md", to_markdown(table) + "\n"), ("tex", "% needs the package booktabs\n" + to_latex(table))):
        paths.append(Path(folder) / f"{name}.{kind}")
        storage.write_text(paths[-1], text)
    return paths


def sources(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with ``values_source`` cut to its kind: critics of different seeds are one kind of source.

    Args:
        table: rows of :func:`gather`.

    Returns:
        A table of the same rows.
    """
    if "values_source" not in table:
        return table
    return table.assign(values_source=table["values_source"].astype(str).str.split(":").str[0])


def varying(table: pd.DataFrame) -> list[str]:
    """Return the settings that differ between runs of one environment (and ``env`` first, if that differs).

    Each Φ is compared with itself, since one run may hold several sources of values. A cut that is the horizon in every run is
    no setting of its own.

    Args:
        table: rows of :func:`gather`.

    Returns:
        Names of columns, in the order of :data:`SETTINGS`.
    """
    table = sources(table)
    cells = table.groupby(["env", "phi"])
    inside = [c for c in SETTINGS if c != "env" and c in table and (cells[c].nunique(dropna=False) > 1).any()]
    if "cut" in inside and (table["cut"] == table["horizon"]).all():
        inside.remove("cut")
    return (["env"] if table["env"].nunique() > 1 else []) + inside


def poolable(rows: pd.DataFrame, what: str) -> bool:
    """Return whether one mean over rows may be taken: all positive, and no two that share a sampled reference where that matters.

    Args:
        rows: rows that differ in seed alone.
        what: the number to be averaged.

    Returns:
        Whether the rows may be pooled.
    """
    positive = bool((rows[what] > 0).all())
    if what not in REFERRING or len(rows) == 1 or "reference_digest" not in rows:
        return positive
    sampled = rows[rows["reference_kind"] != "exact"]
    return positive and not sampled["reference_digest"].duplicated().any()


# ---- text -----------------------------------------------------------------------------------------------------------


def short(x: float) -> str:
    """Return a number in three significant digits, as short as it goes: 0.432, 1230, 1.23e4.

    Args:
        x: a number.

    Returns:
        Its text; an en dash for nan.
    """
    if x is None or np.isnan(x):
        return "–"
    if np.isinf(x) or x == 0:
        return f"{x:g}"
    exponent = int(f"{x:.2e}".split("e")[1])  # after rounding: 9999 is 1.00e4
    if -3 <= exponent < 4:
        rounded = round(x, 2 - exponent)
        return f"{rounded:.{max(0, 2 - exponent)}f}"
    mantissa, power = f"{x:.2e}".split("e")
    return f"{mantissa}e{int(power)}"


def _range(row: Mapping[str, float], what: str, number: Callable[[float], str] = short) -> str:
    if np.isnan(row[what]) and np.isnan(row[f"{what}_low"]):
        return number(np.nan)  # nothing to bound
    return f"{number(row[what])} [{number(row[f'{what}_low'])}, {number(row[f'{what}_high'])}]"


def _unit(part: pd.DataFrame, what: str) -> int:
    """Return the power of ten that a column is divided by: 0 where its largest number is easy to read."""
    largest = np.nanmax(np.abs(part[[what, f"{what}_high"]].replace([np.inf, -np.inf], np.nan).to_numpy(float)), initial=0.0)
    exponent = int(np.floor(np.log10(largest))) if largest > 0 else 0
    return 0 if -2 <= exponent < 4 else exponent


def _groups(summary: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return a heading and the rows of every run and objective."""
    keys = [c for c in ("run", *SETTINGS, "objective", "digest") if c in summary and c != "values_source"]
    found = []
    for _, part in summary.groupby(keys, sort=False, dropna=False):
        first = part.iloc[0]
        facts = [f"{k} = {first[k]:g}" for k in ("gamma", "horizon", "n", "seed") if k in part and pd.notna(first[k])]
        if "grad_norm" in part:
            facts.append(f"‖∇J‖ = {short(first['grad_norm'])}")
        if "reference_kind" in part:
            facts.append(
                f"reference {first['reference_kind']}" + (f" (n = {first['n_reference']:g})" if first["n_reference"] > 0 else "")
            )
        named = ", ".join(str(first[k]) for k in ("env", "policy", "objective") if k in part)
        found.append((f"{named}: {', '.join(facts)}", part))
    return found


def readable(summary: pd.DataFrame, width: int = 120) -> str:
    """Return the compact table for a terminal, three significant digits, one part per run and objective.

    Args:
        summary: rows of a summary.
        width: most characters in a line, at least 100; names of Φ give way first.

    Returns:
        Lines of text; brackets hold 95 % intervals, ``variance/1e-4`` heads a column of variances divided by 10⁻⁴, and reasons
        of flags stand below each part.
    """
    lines = []
    for heading, part in _groups(summary):
        rows, reasons = [], []
        size = part["batch_size"].iloc[0] if "batch_size" in part else np.nan
        units = {what: _unit(part, what) for what in ("variance", "bias_sq")}
        for row in part.to_dict("records"):
            flag = str(row.get("flag") or "").replace("nan", "")
            if flag and flag not in reasons:
                reasons.append(flag)
            mark = chr(ord("a") + reasons.index(flag)) if flag else ""
            variance, bias = (_range(row, what, lambda x, u=unit: short(x / 10.0**u)) for what, unit in units.items())
            p, nsr, cosine = (short(row[c]) for c in ("bias_p_value", "nsr", "cosine"))
            rows.append([row["phi"], variance, _range(row, "variance_ratio"), bias, p, nsr, cosine, mark])
        names = [
            name + (f"/1e{units[what]}" if units[what] else "") for what, name in (("variance", "variance"), ("bias_sq", "bias²"))
        ]
        head = ["Φ", names[0], "ratio", names[1], "p", "NSR", f"cos {short(size)}" if size == size else "cosine", ""]
        widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
        widths[0] = max(8, min(widths[0], width - sum(widths[1:]) - 2 * (len(widths) - 1)))
        lines += [heading]
        for cells in [head, *rows]:
            name = cells[0] if len(cells[0]) <= widths[0] else cells[0][: widths[0] - 1] + "…"
            rest = [c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(cells[1:], widths[1:], strict=True))]
            lines.append("  ".join([name.ljust(widths[0]), *rest]).rstrip())
        lines += [f"  {chr(ord('a') + i)}: {reason}" for i, reason in enumerate(reasons)] + [""]
    return "\n".join(lines).rstrip() + "\n"


def cells(summary: pd.DataFrame, number: Callable[[float], str] = short) -> tuple[list[str], pd.DataFrame]:
    """Return the columns that tell rows apart, and the frame of texts for print."""
    keys = [
        c
        for c in ("env", "objective", "gamma", "horizon", "n", "seed")
        if c in summary and (c == "env" or summary[c].nunique(dropna=False) > 1)
    ]
    rows = [
        {
            **{k: f"{row[k]:g}" if isinstance(row[k], (int, float)) else str(row[k]) for k in keys},
            "Φ": row["phi"],
            **{
                name: _range(row, c, number)
                for c, name in (("variance", "variance"), ("variance_ratio", "ratio"), ("bias_sq", "bias²"))
            },
            "p": number(row["bias_p_value"]),
            "NSR": _range(row, "nsr", number),
            "cosine": _range(row, "cosine", number),
        }
        for row in summary.to_dict("records")
    ]
    return keys, pd.DataFrame(rows)


def to_latex(summary: pd.DataFrame) -> str:
    r"""Return a booktabs table (``\usepackage{booktabs}``); brackets hold 95 % intervals.

    Args:
        summary: rows of a summary.

    Returns:
        LaTeX source.
    """

    def number(x: float) -> str:
        text = short(x)
        if "e" in text:
            mantissa, power = text.split("e")
            return rf"${mantissa}\times 10^{{{power}}}$"
        return {"–": "--", "inf": r"$\infty$"}.get(text, f"${text}$")

    keys, frame = cells(summary, number)
    for c in [*keys, "Φ"]:
        frame[c] = [latex.text(v) for v in frame[c]]
    frame = frame.rename(
        columns={"Φ": r"$\Phi_t$", "bias²": r"bias$^2$", "p": "$p$", "env": "environment", "gamma": r"$\gamma$", "n": "$n$"}
    )
    return frame.style.hide(axis="index").to_latex(hrules=True, column_format="l" * frame.shape[1])


def to_markdown(summary: pd.DataFrame) -> str:
    """Return a Markdown table; brackets hold 95 % intervals.

    Args:
        summary: rows of a summary.

    Returns:
        Markdown source.
    """
    keys, frame = cells(summary, short)
    names = [*keys, "Φ"]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"

    rule = "|" + "|".join("---" if c in names else "---:" for c in frame.columns) + "|"
    return "\n".join([line(frame.columns), rule, *(line(r) for r in frame.to_numpy())]) + "\n"
