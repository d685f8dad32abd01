"""Claims of learning on bandits: outcomes with few runs, slopes with known truth, and effects of synthetic rows."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from varlab.analysis.estimates import styles
from varlab.studies.claims import learning
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import row
from varlab.studies.claims.verdicts import Effect, decide

NAMES = ("equal_variance", "natural_on_two_arms", "shared_critics")
MINE = [c for c in CLAIMS.values() if c.study in NAMES]


@cache
def rows(name):
    return STUDIES[name].run(Budget("smoke", 0.3, seed=2))


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_outcomes_and_controls(claim):
    effect, control = claim.effect(rows(claim.study)), claim.control.effect(rows(claim.study))
    outcome = decide(claim.id, effect, *claim.question).outcome
    if effect.is_exact:
        assert outcome == ("violated" if claim.id == "ME-1c" else "holds")
    else:
        assert outcome in ("holds", "undecided") and effect.value != 0
    assert decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_studies_draw_and_are_complete():
    assert {c.id for c in MINE} == {
        *(f"CH-1{x}" for x in "abcd"), *(f"ME-1{x}" for x in "abcde"), *(f"SC-1{x}" for x in "abcd"),
    }  # fmt: skip
    for name in NAMES:
        assert isinstance(STUDIES[name].draw(rows(name)), styles.Figure)


def test_the_higher_baseline_varies_more_at_every_policy():
    table = rows("equal_variance")
    assert table[table["what"] == "excess"]["value"].item() > 0


def test_slopes_of_powers():
    rng = np.random.default_rng(0)
    updates = np.array([10, 20, 40, 80])
    gap = updates[:, None] ** -1.5 * rng.exponential(size=2000)
    found = learning.slope(gap, tuple(updates))
    assert found.value == pytest.approx(-1.5, abs=1e-12) and found.high - found.low < 1e-12 and found.n == 2000
    noisy = learning.slope(updates[:, None] ** -1.5 * rng.exponential(size=(4, 2000)), tuple(updates))
    assert noisy.low < -1.5 < noisy.high and 0.01 < noisy.high - noisy.low < 0.2


@pytest.mark.parametrize(("value", "outcome"), [(0.05, "holds"), (0.0, "violated"), (0.012, "undecided")])
def test_paired_differences_are_judged_by_their_interval(value, outcome):
    made = pd.DataFrame([row("shared V", Effect(value, value - 0.005, value + 0.005, 4000), what="behind 1", x=10)])
    assert decide("c", CLAIMS["SC-1d"].effect(made), *CLAIMS["SC-1d"].question).outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(-1.2, "holds"), (-0.5, "violated")])
def test_rates_are_judged_by_their_interval(value, outcome):
    made = pd.DataFrame([row("V", Effect(value, value - 0.1, value + 0.1, 4000), what="slope")])
    assert decide("c", CLAIMS["ME-1d"].effect(made), *CLAIMS["ME-1d"].question).outcome == outcome
