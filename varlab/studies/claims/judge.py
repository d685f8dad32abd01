"""Verdicts from saved rows: every chosen claim and its control, corrected family by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

import varlab
from varlab import storage
from varlab.studies.claims.catalogue import CLAIMS, Budget, Claim, Study
from varlab.studies.claims.verdicts import Verdict, decide, family

COLUMNS = (
    "claim", "sentence", "condition", "source", "tag", "statistic", "question", "outcome", "effect", "effect_low", "effect_high",
    "published", "p_value", "p_adjusted", "level", "n", "n_to_decide", "control", "control_outcome", "control_effect",
    "control_effect_low", "control_effect_high", "study", "budget", "seed", "digest", "numerics",
)  # fmt: skip


def digest_of(study: Study, budget: Budget) -> str:
    """Return the digest that a study's rows are saved under."""
    return storage.digest(
        {"study": study.name, "version": study.version, "factor": budget.factor, "seed": budget.seed, "numerics": varlab.NUMERICS}
    )


def judge(claims: Sequence[Claim], rows: Mapping[str, pd.DataFrame], digests: Mapping[str, str], budget: Budget) -> pd.DataFrame:
    """Decide claims.

    A family is corrected as a whole, whichever of its claims are asked for: to ask for fewer makes no verdict easier.

    Args:
        claims: those asked for.
        rows: study → rows.
        digests: study → digest of the rows.
        budget: that made them.

    Returns:
        One row per claim with the columns :data:`COLUMNS`.
    """
    verdicts: dict[str, tuple[Verdict, Verdict]] = {}
    for name in dict.fromkeys(c.family for c in claims):
        members = [c for c in claims if c.family == name]
        size = sum(c.family == name for c in CLAIMS.values())
        own = [decide(c.id, c.effect(rows[c.study]), *c.question, c.level, digests[c.study]) for c in members]
        controls = [
            decide(c.id, c.control.effect(rows[c.study]), *c.control_question, c.level, digests[c.study]) for c in members
        ]
        questions = [c.question for c in members]
        corrected = family(own, questions, size)
        against = family(controls, [c.control_question for c in members], size)
        verdicts |= {c.id: pair for c, *pair in zip(members, corrected, against, strict=True)}
    table = []
    for c in claims:
        v, control = verdicts[c.id]
        table.append({
            "claim": c.id, "sentence": c.sentence, "condition": c.condition, "source": c.source, "tag": c.tag,
            "statistic": c.statistic, "question": question(*c.question), "outcome": v.outcome, **_ends("effect", v),
            "published": c.published, "p_value": v.p_value, "p_adjusted": v.adjusted, "level": c.level, "n": v.effect.n,
            "n_to_decide": v.n_to_decide, "control": c.control.sentence, "control_outcome": control.outcome,
            **_ends("control_effect", control), "study": c.study, "budget": budget.name, "seed": budget.seed, "digest": v.digest,
            "numerics": varlab.NUMERICS,
        })  # fmt: skip
    return pd.DataFrame(table, columns=list(COLUMNS))


def question(direction: str, bound: float, margin: float) -> str:
    """Return a question as a formula, such as ``< 1`` or ``= 0 ± 0.1``."""
    return f"= {bound:g} ± {margin:g}" if direction == "within" else f"{'≤' if direction == 'below' else '≥'} {bound:g}"


def _ends(name: str, verdict: Verdict) -> dict[str, float]:
    effect = verdict.effect
    return {name: effect.value, f"{name}_low": effect.low, f"{name}_high": effect.high}
