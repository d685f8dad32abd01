"""The page of one run: what was measured, the figures, every setting, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from varlab.analysis import captions, tables
from varlab.analysis.pages import Section, page

COST = ("phi", "steps", "efficiency", "values_source", "exact_variance", "flag")


def run_page(summary: pd.DataFrame, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        summary: rows of the run.
        record: its provenance.
        pictures: name of a figure → PNG.

    Returns:
        HTML.
    """
    first = summary.iloc[0]
    keys, frame = tables.cells(summary)
    frame = frame.drop(columns=[k for k in keys if frame[k].nunique() == 1])
    cost = summary[list(COST)].copy()
    for name in ("steps", "efficiency", "exact_variance"):
        cost[name] = [tables.short(float(x)) if pd.notna(x) else "–" for x in cost[name]]
    cost["flag"] = cost["flag"].fillna("")
    said = (
        f"Each Φ at fixed θ over the same {int(first['n']):,} trajectories. Variance is tr Cov of one gradient, ratio "
        "is paired, bias² an unbiased estimate of ‖E g − ∇J‖² (negative where there is none to see), p of its test, NSR "
        f"variance/‖∇J‖², cosine that to ∇J of the mean of {int(first['batch_size'])} trajectories. Brackets are 95 % intervals."
    )
    made = {k: v for k, v in record.items() if k not in ("settings", "versions", "notes") and not isinstance(v, Mapping)}
    made |= {f"seed of {k}": v for k, v in record.get("seeds", {}).items()}
    made |= {f"steps of {k}": f"{v:,}" for k, v in record.get("steps", {}).items()}
    made["command"] = " ".join(record.get("command", []))
    drawn = [(said, pictures[name]) for name, said in captions.DRAWN.items() if name in pictures]
    sections = [
        Section("Variance, bias, cosine", [said, *record.get("notes", [])], [("", frame)]),
        Section("Cost and exact values", tables=[("Efficiency is 1/(variance × steps of a trajectory).", cost)]),
        Section("Figures", [captions.INTERVAL], figures=drawn),
        Section("Settings", facts={k: v for k, v in record.get("settings", {}).items() if not isinstance(v, (Mapping, list))}),
        Section("Provenance", facts={**made, **record.get("versions", {})}),
    ]
    return page(f"{first['env']}, {first['policy']}", f"{len(summary)} rows, digest {first['digest']}.", sections)
