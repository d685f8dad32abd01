"""Claims of token baselines and of tails: outcomes on few worlds, and effects of synthetic rows."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from varlab.analysis.estimates import styles
from varlab.studies.claims import tokens
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import row
from varlab.studies.claims.verdicts import Effect, decide

NAMES = ("token_baselines", "surrogate_tails")
MINE = [c for c in CLAIMS.values() if c.study in NAMES]


@cache
def rows(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "DRAWN", 1000)
        return STUDIES[name].run(Budget("smoke", 0.01, seed=3))


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_outcomes_and_controls(claim):
    expected = {"RL-6b": "holds", "HT-1a": "holds"}.get(claim.id, "violated")
    assert decide(claim.id, claim.effect(rows(claim.study)), *claim.question).outcome == expected
    assert decide(claim.id, claim.control.effect(rows(claim.study)), *claim.control_question).outcome == "violated"


def test_studies_draw_and_are_complete():
    assert {c.id for c in MINE} == {*(f"RL-6{x}" for x in "abcde"), *(f"HT-1{x}" for x in "abc")}
    for name in NAMES:
        assert isinstance(STUDIES[name].draw(rows(name)), styles.Figure)


def test_worlds_are_neither_solved_nor_hopeless():
    made = list(tokens.worlds(Budget("smoke", 0.01), 200))
    assert len(made) == 100 and len({number for number, _ in made}) == 100
    assert all(0.02 <= world.moments.mean <= 0.98 for _, world in made)


def test_drawn_groups_have_the_variance_of_all_groups(monkeypatch):
    """Groups of two, so that all pairs can be listed."""
    monkeypatch.setattr(tokens, "SMALL", 2)
    monkeypatch.setattr(tokens, "DRAWN", 40_000)
    world = tokens.Sequences.draw(1, 0, tokens=2, length=4)
    pairs = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1).reshape(-1, 2)
    weight = world.chance[pairs].prod(1)
    g = world.estimated_token_baselines(pairs)
    exact = 2 * float(weight @ ((g - weight @ g) ** 2).sum(1))
    np.testing.assert_allclose(weight @ g, (world.chance * world.pays) @ world.scores().sum(1), atol=1e-13)  # unbiased
    assert tokens._estimated(Budget(), 0, world) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(("value", "outcome"), [(0.3, "holds"), (0.9, "violated"), (0.36, "undecided")])
def test_savings_are_judged_by_their_interval(value, outcome):
    made = pd.DataFrame([row("token baseline, G = 4", Effect(value, value * 0.9, value * 1.1, 200, True))])
    assert decide("c", CLAIMS["RL-6d"].effect(made), *CLAIMS["RL-6d"].question).outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(1.3, "holds"), (0.9, "violated")])
def test_tails_are_judged_by_their_interval(value, outcome):
    effect = Effect(value, value * 0.95, value * 1.05, 200, True)
    own = row("unclipped", effect, panel=tokens.PANEL, x=tokens.EPOCHS)
    made = pd.DataFrame([own, row(f"unclipped over {tokens.FRESH}", effect)])
    for name in ("HT-1a", "HT-1c"):
        assert decide("c", CLAIMS[name].effect(made), *CLAIMS[name].question).outcome == outcome
