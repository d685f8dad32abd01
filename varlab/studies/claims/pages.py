"""The page of claims: verdicts, figures of their studies, and what made them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from varlab.analysis.pages import Section, page
from varlab.studies.claims.catalogue import CITED, STUDIES
from varlab.studies.claims.order import short_frame
from varlab.studies.claims.tables import effect_text


def claims_page(
    table: pd.DataFrame, figures: Mapping[str, bytes], provenance: Mapping[str, object], order: pd.DataFrame | None = None
) -> str:
    """Return the page.

    Args:
        table: of :func:`varlab.studies.claims.judge.judge`.
        figures: study → PNG.
        provenance: what made them.
        order: rows of the study ``textbook_order``, which are shown beside the figures; None where there are none.

    Returns:
        HTML.
    """
    rows = table.to_dict("records")
    verdicts = pd.DataFrame(
        {
            "claim": row["claim"],
            "what is said": row["sentence"] + (f" ({row['condition']})" if row["condition"] else ""),
            "statistic": row["statistic"],
            "asked": row["question"],
            "found": effect_text(row),
            "outcome": row["outcome"],
            "of the source": row["published"],
            "source": f"{row['source']} [{row['tag']}]",
        }
        for row in rows
    )
    controls = pd.DataFrame(
        {
            "claim": row["claim"],
            "negative control": row["control"],
            "found": effect_text(row, "control_effect"),
            "outcome": row["control_outcome"],
        }
        for row in rows
    )
    counts = table["outcome"].value_counts().to_dict()
    against = [
        f"{r['claim']}: {r['sentence']} {r['statistic']}: {effect_text(r)}, asked {r['question']}."
        for r in rows
        if r["outcome"] == "violated"
    ]
    of_study = table.groupby("study", sort=False)["claim"].agg(", ".join)
    pictures = [(f"{of_study[name]}. {STUDIES[name].caption}", figures[name]) for name in of_study.index if name in figures]
    sections = [
        Section("Verdicts", tables=[("Each claim with its effect, 95 % interval and outcome.", verdicts)]),
        Section("Where the literature is contradicted", against or ["Nowhere."]),
        Section("Negative controls", ["Each is a falsehood of the same kind and must come out violated."], [("", controls)]),
        Section("Figures", tables=[] if order is None else [short_frame(order)], figures=pictures),
        Section("Cited, not reproduced", facts=CITED),
        Section("Provenance", facts=provenance),
    ]
    lead = f"{len(table)} claims: {', '.join(f'{v} {k}' for k, v in counts.items())}."
    return page("Published claims about policy gradients, checked", lead, sections)
