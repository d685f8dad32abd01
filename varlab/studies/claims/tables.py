"""The table of verdicts as Markdown for a README and as LaTeX (booktabs) for a paper."""

from __future__ import annotations

import math

import pandas as pd

from varlab.analysis import latex
from varlab.analysis.tables import short
from varlab.studies.claims.catalogue import CITED, TAGS

SIGNS = {"holds": "holds", "violated": "**violated**", "undecided": "undecided"}


def effect_text(row: pd.Series | dict, name: str = "effect") -> str:
    """Return an effect with its interval in brackets, or alone if exact."""
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    exact = row["n"] == 0 or low == high
    return f"{short(value)} (exact)" if exact else f"{short(value)} [{short(low)}, {short(high)}]"


def to_markdown(table: pd.DataFrame) -> str:
    """Return one row per claim: id, sentence, question and effect, outcome, control.

    Args:
        table: of :func:`varlab.studies.claims.judge.judge`.

    Returns:
        Markdown.
    """
    lines = [
        "| claim | what is said | statistic | asked | found | outcome | negative control | source |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        said = row["sentence"] + (f" *({row['condition']})*" if row["condition"] else "")
        found = effect_text(row) + (f"; source: {row['published']}" if row["published"] else "")
        outcome = SIGNS[row["outcome"]]
        if row["outcome"] == "undecided" and math.isfinite(row["n_to_decide"]):
            outcome += f" (n ≈ {row['n_to_decide']:.2g} would decide)"
        control = f"{row['control']}: {row['control_outcome']}"
        source = f"{row['source']} [{row['tag']}]"
        cells = [row["claim"], said, row["statistic"], row["question"], found, outcome, control, source]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    counts = table["outcome"].value_counts()
    told = ", ".join(f"{counts.get(o, 0)} {'hold' if o == 'holds' else o}" for o in SIGNS)
    lines += ["", f"{len(table)} claims: {told}. Budget {table['budget'].iloc[0]}, seed {table['seed'].iloc[0]}."]
    lines += ["", "Tags: " + "; ".join(f"[{k}] {v}" for k, v in TAGS.items()) + "."]
    return "\n".join(lines) + "\n"


def contradicted_to_markdown(table: pd.DataFrame) -> str:
    """Return how many claims hold, and the violated ones with what was found: the short table of a README.

    Args:
        table: of :func:`varlab.studies.claims.judge.judge`.

    Returns:
        Markdown.
    """
    counts = table["outcome"].value_counts()
    told = ", ".join(f"{counts.get(o, 0)} {'hold' if o == 'holds' else f'are {o}'}" for o in SIGNS)
    lines = [f"Of {len(table)} claims {told}. Those that are violated:", ""]
    lines += ["| claim | what is said | asked | found |", "|---|---|---|---|"]
    for row in table[table["outcome"] == "violated"].to_dict("records"):
        said = row["sentence"] + (f" *({row['condition']})*" if row["condition"] else "")
        cells = [row["claim"], f"{said} {row['statistic']}", row["question"], effect_text(row)]
        lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def readable(table: pd.DataFrame) -> str:
    """Return a table for a terminal: claim, outcome, effect and what was asked, statistic."""
    rows = [(r["claim"], r["outcome"], effect_text(r), r["question"], r["statistic"]) for r in table.to_dict("records")]
    widths = [max(len(str(row[i])) for row in [*rows, ("claim", "outcome", "found", "asked", "")]) for i in range(4)]
    head = ("claim", "outcome", "found", "asked", "statistic")
    lines = ["  ".join([*(str(c).ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]) for row in [head, *rows]]
    wrong = table[table["control_outcome"] != "violated"]["claim"].tolist()
    return "\n".join([*lines, *([f"Controls that did not fail: {', '.join(wrong)}"] if wrong else [])])


def cited_to_markdown() -> str:
    """Return the claims that are cited and not reproduced, with the reason."""
    lines = ["| claim | why it is cited only |", "|---|---|"]
    return "\n".join([*lines, *(f"| {k} | {v} |" for k, v in CITED.items())]) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """Return a longtable with booktabs rules: claim, statistic, question, effect, outcome.

    Args:
        table: of :func:`varlab.studies.claims.judge.judge`.

    Returns:
        LaTeX source that needs the packages booktabs and longtable.
    """
    lines = [
        "% packages: booktabs, longtable",
        r"\begin{longtable}{lp{0.36\linewidth}lp{0.22\linewidth}l}",
        r"\toprule",
        r"claim & statistic & asked & found & outcome \\",
        r"\midrule",
        r"\endhead",
    ]
    for row in table.to_dict("records"):
        cells = [row["claim"], row["statistic"], row["question"], effect_text(row), row["outcome"]]
        lines.append(" & ".join(latex.text(str(c)) for c in cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}"]) + "\n"
