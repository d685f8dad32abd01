"""Parts of the README that commands write: text between ``<!-- begin NAME -->`` and ``<!-- end -->``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from varlab import checks
from varlab.envs import worlds
from varlab.estimators import REGISTRY, SOURCE_TEXT, Estimator, NodeEstimator
from varlab.estimators.nodes import StateEstimator

#: What the claim of a Φ is about where it is not ∇J itself.
TARGETS = {"gradient": "", "direction": " (free scale: in direction)", "natural": " (of F⁺ ∇J)"}
PART = re.compile(r"(<!-- begin (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def phi_table() -> str:
    """Return the table of registered Φ: name, formula, whether its mean is ∇J, what it needs beside its trajectories, source."""
    lines = ["| Φ | formula | E g = ∇J | needs | source |", "| --- | --- | --- | --- | --- |"]
    order = [text.partition("(")[0] for text in SOURCE_TEXT]
    for name in [*order, *sorted(REGISTRY.keys() - set(order))]:
        made = REGISTRY[name]()
        claim = made.unbiased + (", always at λ = 1" if name == "gae" else "") + TARGETS[made.target]
        claim += ", whoever acts" if made.off_policy else ""
        formula = made.formula.replace("|", "\\|")
        lines.append(f"| `{made.label}` | {formula} | {claim} | {_needs(made)} | {made.source} |")
    return "\n".join(lines)


def _needs(made: Estimator) -> str:
    """Return what a Φ costs beside its trajectories and one pass over their scores."""
    needs = [{"v": "V", "q": "Q"}[x] for x in ("v", "q") if x in made.needs]
    needs += ["∂Q/∂a"] if "q_slope" in made.asks else []
    needs += ["scores at further actions"] if isinstance(made, NodeEstimator) else []
    needs += ["a critic stream"] if made.fits and made.reads_stream else []
    needs += ["a finite MDP"] if made.target == "natural" or isinstance(made, StateEstimator) else []
    needs += ["units of several trajectories"] if made.batchwise else []
    return ", ".join(needs) or "–"


def worlds_table() -> str:
    """Return the table of varlab's own worlds: Gymnasium id, steps, and what it is."""
    lines = ["| id | steps | world |", "| --- | ---: | --- |"]
    for made, limit in worlds.LIMITS.items():
        lines.append(f"| `{worlds.NAMESPACE}/{made.__name__}-v0` | {limit} | {made.__doc__.split(' (:func')[0]} |")
    return "\n".join(lines)


RATIOS = ("ratio_median", "ratio_min", "ratio_max")


def speed_table(text: str) -> str:
    """Return the benchmark rows (JSON) that have a target as a table of ratios."""
    lines = ["| work | beside | ratio (median, range) | target |", "| --- | --- | --- | --- |"]
    for row in json.loads(text):
        if row["target"] is None:
            continue
        span = "absent"
        if row["ratio_median"] is not None:
            median, low, high = (f"{x:,.0f}" if x >= 1000 else f"{x:.3g}" for x in map(row.get, RATIOS))
            span = f"{median} ({low} to {high})"
        missed = row["ratio_median"] is not None and row["ratio_median"] < row["target"]
        lines.append(f"| {row['work']} | {row['peer']} | {span} | ≥ {row['target']:,g}{', missed' * missed} |")
    return "\n".join(lines)


def fill(readme: str, parts: Mapping[str, str]) -> str:
    """Put each part between its marks.

    Args:
        readme: the text with marks.
        parts: name → what stands between.

    Returns:
        The text filled in.

    Raises:
        InputError: if a mark names a part that is not there.
    """
    for match in PART.finditer(readme):
        checks.one_of("part of the README", match["name"], parts)
    return PART.sub(lambda m: f"{m[1]}\n{parts[m['name']]}\n\n{m[3]}", readme)
