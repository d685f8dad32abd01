"""Captions: what a figure draws, what its bars and bands are, and which runs its numbers come from."""

from __future__ import annotations

import re

import pandas as pd

MARK = "<!-- drawn by varlab -->"
"""First line of every caption; tells varlab's own files from others of the same name."""

DRAWN = {
    "variance_by_phi": (
        "Variance tr Cov ĝ of the policy-gradient estimator under each Φ_t at fixed θ, per trajectory, on a logarithmic axis. "
        "A thin black tick is the exact variance where an oracle gives it."
    ),
    "bias_against_variance": (
        "Squared bias ‖E ĝ − ∇J‖² against variance tr Cov ĝ. The vertical axis is linear around zero and logarithmic "
        "beyond: estimates of a squared bias may be negative and are shown so, tied to their interval by a dotted thread; an "
        "interval that reaches zero ends there in an arrow head. On the dashed line bias² = variance/N both contribute alike "
        "to the mean squared error of a batch of N trajectories."
    ),
    "running_distance": (
        "Distance of the mean of n trajectories from the reference gradient: root mean square over disjoint groups of blocks "
        "(points; bars where at least ten groups stand behind them), its prediction √(bias² + variance/n + error of the "
        "reference) (lines) and the path of one cumulative mean (faint). The dashed line falls as n^(−1/2). Points of one n "
        "stand a little apart so that they can be told from each other."
    ),
    "cosine_against_batch_size": (
        "Cosine between the mean of N trajectories and ∇J: closed form ρ_N = ⟨E g, ∇J⟩ / (‖∇J‖ √(‖E g‖² + variance/N)) "
        "(lines; dashed where fewer than ten effective directions make it approximate) and measured means over disjoint "
        "groups of blocks (points, those of one N a little apart; bars where at least ten groups stand behind them)."
    ),
    "swept": (
        "Each faint point is one run, each line with flat marks a Φ_t through the geometric means of the runs that differ in "
        "seed alone. A run that stands alone is a full point with its own interval."
    ),
}
INTERVAL = "Bars and bands are 95 % intervals of the number drawn, never the spread of the data."


def caption(kind: str, summary: pd.DataFrame, command: str | None = None, note: str = "") -> str:
    """Return the caption of a saved figure.

    Args:
        kind: a key of :data:`DRAWN`, or another name whose figure ``note`` describes.
        summary: the rows that the figure's numbers come from.
        command: the command that drew it or measured it.
        note: a further sentence.

    Returns:
        Markdown.
    """
    lines = [MARK, " ".join(part for part in (DRAWN.get(kind, ""), note, INTERVAL) if part), ""]
    keys = [
        c
        for c in ("env", "policy", "theta", "gamma", "discount_weighting", "horizon", "n", "seed", "objective", "digest")
        if c in summary
    ]
    for _, rows in summary.groupby(keys, sort=False, dropna=False):
        lines.append(f"- {_run(rows)}")
    shared = _shared_references(summary)
    if shared:
        lines += ["", f"Rows that share a sampled reference ({', '.join(shared)}) are not independent in what refers to it."]
    flags = sorted({str(f) for f in summary.get("flag", pd.Series(dtype=str)).dropna() if str(f)})
    if flags:
        lines += ["", f"Flags: {'; '.join(flags)}."]
    if command:
        lines += ["", f"Command: `{command}`"]
    return "\n".join(lines) + "\n"


def digests(text: str) -> set[str]:
    """Return the run digests that a caption names.

    Args:
        text: a caption.

    Returns:
        The digests.
    """
    return set(re.findall(r"(?<!reference )digest (\w+)", text))


def _run(rows: pd.DataFrame) -> str:
    """Return one run's facts in a line."""
    first = rows.iloc[0]

    def fact(column: str, text: str) -> list[str]:
        return [text.format(first[column])] if column in rows and pd.notna(first[column]) and first[column] != "" else []

    facts = [
        *fact("env", "{}"),
        *fact("policy", "policy {}"),
        *fact("theta", "θ {}"),
        *fact("objective", "objective {}"),
        *fact("gamma", "γ = {:g}"),
        *fact("horizon", "horizon {:g}"),
        *fact("n", "n = {:,}"),
        *fact("batch_size", "N = {:g}"),
        *fact("seed", "seed {}"),
        *fact("reference_kind", "reference {}"),
    ]
    if "n_reference" in rows and first["n_reference"] > 0:
        facts.append(f"of {int(first['n_reference']):,} trajectories")
    return ", ".join([*facts, *fact("reference_digest", "reference digest {}"), *fact("digest", "digest {}")]) + "."


def _shared_references(summary: pd.DataFrame) -> list[str]:
    """Return digests of sampled references that more than one run refers to."""
    if not {"reference_digest", "digest", "reference_kind"} <= set(summary.columns):
        return []
    sampled = summary[summary["reference_kind"] != "exact"]
    users = sampled.groupby("reference_digest")["digest"].nunique()
    return sorted(str(d) for d in users[users > 1].index if str(d))
