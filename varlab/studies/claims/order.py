"""How often the textbook order of variances fails: exact shares over random MDPs, and a counter-example to every pair."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from varlab.analysis.tables import short
from varlab.envs.base import Environment
from varlab.envs.closed_form import constant_return
from varlab.oracles.exact import exact
from varlab.policies.networks import SoftmaxTable
from varlab.studies import textbook_order as textbook
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.lambda_exact import LateValues
from varlab.studies.claims.verdicts import Effect

TEXTBOOK = "Achiam 2018 (Spinning Up), Schulman et al. 2016 (GAE), as they are read"
HERE = "counted here"
POSITIVE, CENTRED = "U(0, 1)", "N(0, 1)"
#: MDPs on which the means are compared.
MEANS = 20
#: A theorem to set beside the six pairs: λ = 1 telescopes, so that neither variance is ever larger.
SAME = ("gae(lam=1.0)", "value_baseline")


def counter_examples() -> list[tuple[Environment, object]]:
    """Return worlds and policies that between them turn every pair of the textbook order round."""
    constant = constant_return()
    return [(constant, SoftmaxTable(constant).double()), cases.advantage_above_returns(), cases.advantage_above_td()]


@study(
    "textbook_order",
    "Share of random finite MDPs (3 states, 2 actions, 3 steps, γ = 1) in which the textbook order of variances fails, from "
    "exact variances; transitions uniform on the simplex. The axis is linear up to 1 % and logarithmic beyond; panels share "
    "their draws.",
    draw=lambda rows, style=None: textbook.draw(shares(rows), style),
)
def textbook_order(budget: Budget) -> pd.DataFrame:
    """Return shares and medians by cell, the largest ratio of variances of each pair, and distances of means from ∇J.

    Args:
        budget: number of MDPs per cell (300) and seed.

    Returns:
        One row per cell, statistic, phi and other, with estimate, its interval and n. The statistics share and median_ratio are
        those of :func:`varlab.studies.textbook_order.summarise`; ``largest_ratio`` is over tiny worlds, ``mean_off`` over MDPs.
    """
    table = textbook.variances(budget.n(300, least=50), budget.seed)
    rows = []
    found = [exact(*world, [*textbook.PHI, SAME[0]]) for world in counter_examples()]
    for phi, other in (*textbook.ORDER, SAME):
        largest = max(_ratio(dict(zip(f.names, f.variance, strict=True)), phi, other) for f in found)
        rows.append(("", "", 0.0, "largest_ratio", phi, other, *[largest] * 3, 0))
    off = {"all": 0.0, "late": np.inf}
    for number, cell in itertools.product(range(MEANS), itertools.product(textbook.REWARDS, textbook.POLICIES, textbook.SCALES)):
        moments = exact(*textbook.Draw.of(budget.seed, number).make(*cell), [*textbook.PHI, LateValues()])
        distances = moments.bias_sq / (moments.gradient**2).sum()
        off = {"all": max(off["all"], distances[:-1].max()), "late": min(off["late"], distances[-1])}
    rows += [("", "", 0.0, "mean_off", which, "∇J", *[float(x)] * 3, 0) for which, x in off.items()]
    summary = textbook.summarise(table)
    return pd.concat([summary, pd.DataFrame(rows, columns=summary.columns)], ignore_index=True)


def _ratio(variance: dict[str, float], phi: str, other: str) -> float:
    """Return the ratio of two variances; 1 if both are nothing but rounding, ∞ if the second alone is."""
    a, b = (0.0 if variance[x] < 1e-14 else variance[x] for x in (phi, other))
    return a / b if b else (np.inf if a else 1.0)


def shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the cells alone."""
    return rows[rows["statistic"].isin(("share", "median_ratio"))]


def short_frame(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return what belongs beside every figure of claims: shares of failures and median ratios, by the law of the rewards.

    Args:
        rows: of the study ``textbook_order``.

    Returns:
        A sentence, and texts with one row per pair: the largest share over cells of a law with its interval, and the range of the
        median ratios of the lower Φ to the total return.
    """
    cells, table = shares(rows), []
    n = int(cells["n"].iloc[0])
    for phi, other in textbook.ORDER:
        texts = [f"{textbook.SYMBOLS[phi][0]} ≤ {textbook.SYMBOLS[other][0]}"]
        for law in textbook.REWARDS:
            part = cells[(cells["rewards"] == law) & (cells["phi"] == phi) & (cells["statistic"] == "share")]
            worst = part.loc[part["estimate"].idxmax()]
            low, high = (f"{100 * worst[f'estimate_{end}']:.1f}" for end in ("low", "high"))
            texts.append(f"up to {100 * worst['estimate']:.1f} % [{low}, {high}]")
        for law in textbook.REWARDS:
            part = cells[(cells["rewards"] == law) & (cells["phi"] == phi) & (cells["statistic"] == "median_ratio")]["estimate"]
            texts.append(f"{short(part.min())} to {short(part.max())}")
        table.append(texts)
    columns = (
        "textbook order", "fails, U(0, 1) rewards", "fails, N(0, 1)", "median / Var R, U(0, 1)", "median / Var R, N(0, 1)",
    )  # fmt: skip
    said = f"How often the textbook order of variances fails ({n} random MDPs per cell; no order is a theorem):"
    return said, pd.DataFrame(table, columns=columns)


def short_table(rows: pd.DataFrame) -> str:
    """Return :func:`short_frame` as Markdown."""
    said, frame = short_frame(rows)
    lines = [said, "", "| " + " | ".join(frame.columns) + " |", "|---|" + "---:|" * (frame.shape[1] - 1)]
    return "\n".join([*lines, *("| " + " | ".join(texts) + " |" for texts in frame.to_numpy())]) + "\n"


def _most(rewards: str, how: str, pair: tuple[str, str] | None = None, statistic: str = "share"):  # noqa: ANN202
    """Return rows → the largest or smallest estimate over cells of one law, of one pair or of all."""

    def effect(rows: pd.DataFrame) -> Effect:
        part = rows[(rows["statistic"] == statistic) & (rows["rewards"] == rewards)]
        if pair is not None:
            part = part[(part["phi"] == pair[0]) & (part["other"] == pair[1])]
        row = part.loc[getattr(part["estimate"], f"idx{how}")()]
        log = statistic == "median_ratio"
        return Effect(row["estimate"], row["estimate_low"], row["estimate_high"], int(row["n"]), log=log)

    return effect


def _counter(pairs: tuple[tuple[str, str], ...]):  # noqa: ANN202
    """Return rows → the smallest over pairs of the largest ratio of variances found."""

    def effect(rows: pd.DataFrame) -> Effect:
        part = rows[rows["statistic"] == "largest_ratio"].set_index(["phi", "other"])["estimate"]
        return Effect.exact(min(part[pair] for pair in pairs))

    return effect


def _means(which: str):  # noqa: ANN202
    """Return rows → ‖E g − ∇J‖²/‖∇J‖²."""
    return lambda rows: Effect.exact(rows[(rows["statistic"] == "mean_off") & (rows["phi"] == which)]["estimate"].iloc[0])


BASELINE = ("value_baseline", "reward_to_go")
claim(
    id="X-1",
    sentence="No textbook ordering of variances is a theorem: each of six is turned round somewhere.",
    source=HERE, tag="X", study="textbook_order", needs=textbook.PHI,
    statistic="smallest over six pairs of the largest Var(lower)/Var(higher) in three worlds of two steps (exact)",
    effect=_counter(textbook.ORDER), direction="above", bound=1.001,
    control=Control("the same of GAE(1) and returns less V, which are one estimator", _counter((SAME,))),
)  # fmt: skip
claim(
    id="X-2",
    sentence="Every equality of means is a theorem: all these Φ have the mean ∇J with exact values.",
    source=HERE, tag="X", study="textbook_order", needs=textbook.PHI,
    statistic="largest ‖E g − ∇J‖²/‖∇J‖² over seven Φ and random MDPs (exact)",
    effect=_means("all"), direction="below", bound=1e-20,
    control=Control("the same with V read one step late, at s_{t+1}", _means("late")),
)  # fmt: skip
claim(
    id="X-3",
    sentence="The textbook order of variances holds in nearly all MDPs.",
    condition="positive rewards U(0, 1)", source=TEXTBOOK, tag="T", study="textbook_order", needs=textbook.PHI,
    statistic="largest share of random MDPs in which a pair fails, over pairs and cells: below 0.05",
    effect=_most(POSITIVE, "max"), direction="below", bound=0.05,
    control=Control("the same with centred rewards N(0, 1)", _most(CENTRED, "max")),
)  # fmt: skip
claim(
    id="X-4",
    sentence="The textbook order of variances holds in nearly all MDPs.",
    condition="centred rewards N(0, 1)", source=TEXTBOOK, tag="T", study="textbook_order", needs=textbook.PHI,
    statistic="largest share of random MDPs in which a pair fails, over pairs and cells: below 0.05",
    effect=_most(CENTRED, "max"), direction="below", bound=0.05,
    control=Control("V as baseline lowers the variance, in the cell where it fails least", _most(CENTRED, "min", BASELINE)),
)  # fmt: skip
claim(
    id="X-5",
    sentence="V as baseline removes most of the variance.",
    condition="positive rewards U(0, 1)", source=TEXTBOOK, tag="T", study="textbook_order", needs=BASELINE,
    statistic="largest median ratio of Var(RTG − V) to Var(R), over cells: below 0.25",
    effect=_most(POSITIVE, "max", ("value_baseline", "total_return"), "median_ratio"), direction="below", bound=0.25,
    control=Control("the same with centred rewards", _most(CENTRED, "min", ("value_baseline", "total_return"), "median_ratio")),
)  # fmt: skip
