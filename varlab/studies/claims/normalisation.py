"""Claims about advantages that are standardised over a batch: AN-1, decided by enumeration of batches."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from varlab import estimators
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, ratio, row
from varlab.studies.claims.groups import GROUPS, solved
from varlab.studies.claims.verdicts import Effect
from varlab.studies.unit_moments import enumerate_units

#: How often the two prompts are solved; claims are about the first pair.
PAIR, OTHER = (0.3, 0.9), (0.1, 0.6)


def title(p: Sequence[float]) -> str:
    """Return the name of a panel."""
    return "p = " + ", ".join(f"{x:g}" for x in p)


@study(
    "normalised_advantages",
    "Sine of the angle between E ĝ and ∇J where the advantages R − V of a batch are standardised over the batch, or over "
    "minibatches of it: all batches on two prompts, enumerated.",
    draw=curves("batch size", "sin(angle to ∇J)", "x"),
)
def normalised_advantages(budget: Budget) -> pd.DataFrame:
    """Enumerate batches of independent answers."""
    return pd.DataFrame([r for p in (PAIR, OTHER) for r in _tilts(p)])


def _tilts(p: tuple[float, float]) -> list[dict[str, object]]:
    """Return rows of the angles on two prompts."""
    env, policy = solved(p)
    panel = title(p)
    rows, found = [], {}
    for n in GROUPS:
        units = enumerate_units(env, policy, n, shared_start=False)
        found[n] = units.moments(units.phi(estimators.parse("normalised_advantage(lam=1)"))).direction_bias
        rows.append(row("normalised_advantage", found[n], panel=panel, x=n))
        plain = units.phi(estimators.parse("gae(lam=1)"))
        centred = plain - plain.mean(1, keepdims=True)
        rows.append(row("less the batch mean", units.moments(centred).direction_bias, panel=panel, x=n))
        if n >= 4 and n % 4 == 0:  # minibatches are batches: the mean of their gradients has the mean of one
            rows.append(row("by minibatches of 4", found[4], panel=panel, x=n))
        group = enumerate_units(env, policy, n)
        by_prompt = group.moments(group.phi(estimators.parse("group_normalised"))).direction_bias
        rows.append(row("by prompt", by_prompt, panel="", what=panel, x=n))
    return rows


def _tilt(rows: pd.DataFrame, n: int, label: str = "normalised_advantage") -> Effect:
    where = {"what": title(PAIR)} if label == "by prompt" else {"panel": title(PAIR)}
    return cell(rows, label=label, x=n, **where)


ISSUES = "issues 485 of Stable-Baselines3, 544 and 323 of OpenAI baselines"
claim(
    id="AN-1a", sentence="Standardising advantages over a batch biases the direction of the gradient.", source=ISSUES, tag="T",
    study="normalised_advantages", statistic="sine of the angle between E ĝ and ∇J, batch of 4",
    direction="above", bound=0.01, condition="exact V; two prompts solved with p = 0.3 and 0.9",
    effect=lambda rows: _tilt(rows, 4), needs=("normalised_advantage(lam=1)",),
    control=Control("subtracting the mean of the batch does", lambda rows: _tilt(rows, 4, "less the batch mean")),
)  # fmt: skip
claim(
    id="AN-1b", sentence="That bias goes away as the batch grows.", source=ISSUES, tag="T", study="normalised_advantages",
    statistic="sine of the angle at 32 over that at 4", direction="below", bound=0.5, needs=("normalised_advantage(lam=1)",),
    effect=lambda rows: ratio(_tilt(rows, 32), _tilt(rows, 4)), condition="exact V; two prompts solved with p = 0.3 and 0.9",
    control=Control(
        "so does that of standardising by prompt", lambda rows: ratio(_tilt(rows, 32, "by prompt"), _tilt(rows, 4, "by prompt"))
    ),
)  # fmt: skip
claim(
    id="AN-1c", sentence="Standardising over minibatches biases more than over the batch.", source=ISSUES, tag="T",
    study="normalised_advantages", statistic="sine of the angle, minibatches of 4 over the batch of 32", direction="above",
    bound=2.0, effect=lambda rows: ratio(_tilt(rows, 32, "by minibatches of 4"), _tilt(rows, 32)),
    condition="exact V; two prompts solved with p = 0.3 and 0.9",
    needs=("normalised_advantage(lam=1)",),
    control=Control("minibatches of 2 twice as much as of 4", lambda rows: ratio(_tilt(rows, 2), _tilt(rows, 4))),
)  # fmt: skip
