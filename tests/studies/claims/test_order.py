"""Claims about the textbook order: tiny worlds by hand, shares, and the short table."""

from functools import cache

import numpy as np
import pytest

import varlab
from varlab.studies import textbook_order as textbook
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims import order
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget, Claim
from varlab.studies.claims.judge import judge
from varlab.studies.claims.pages import claims_page
from varlab.studies.claims.verdicts import decide

MINE = [c for c in CLAIMS.values() if c.study == "textbook_order"]


@cache
def rows():
    return STUDIES["textbook_order"].run(Budget("smoke", 0.01))


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_claims_and_controls(claim):
    """Fifty MDPs decide all but the share under positive rewards, of which too few can be told apart from 5 %."""
    effect, control = claim.effect(rows()), claim.control.effect(rows())
    outcome = decide(claim.id, effect, *claim.question).outcome
    assert outcome == ("violated" if claim.id == "X-4" else "undecided" if claim.id == "X-3" else "holds")
    if claim.id != "X-4":  # its control is a single cell
        assert decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_ids_belong_to_one_entry_of_the_catalogue():
    assert {c.catalogued for c in MINE} == {"X"} and {c.family for c in MINE} == {"X"}
    assert all(isinstance(c, Claim) for c in MINE) and len(MINE) == 5


def moments(paths):
    """Mean and variance of a number over (probability, value)."""
    p, x = (np.array(y) for y in zip(*paths, strict=True))
    assert p.sum() == pytest.approx(1.0)
    return p @ x, p @ (x - p @ x) ** 2


def test_the_first_world_by_hand():
    """z = 3/4 for action 1 and −1/4 for action 0; V_0 = 3/16, A_0 = 1/16 or −3/16, V_1 = 1/4 where action 0 led."""
    env, policy = cases.advantage_above_returns()
    up, down = 0.75, -0.25
    p = {0: 0.75, 1: 0.25}
    z = {0: down, 1: up}
    returns, advantages = [], []
    for a in (0, 1):
        for b in (0, 1):
            pays = float(a == 0 and b == 1)
            v1 = 0.25 if a == 0 else 0.0
            returns.append((p[a] * p[b], z[a] * (pays - 0.1875) + z[b] * (pays - v1)))
            advantages.append((p[a] * p[b], z[a] * (v1 - 0.1875) + z[b] * (pays - v1)))
    found = varlab.exact(env, policy, ["value_baseline", "advantage"])
    for k, paths in enumerate((returns, advantages)):
        mean, variance = moments(paths)
        assert found.mean[k] == pytest.approx(mean) and found.variance[k] == pytest.approx(variance)
    assert found.variance[1] > 1.9 * found.variance[0]


def test_the_second_world_by_hand():
    """z = ±1/2; V_1 = −1/5 in state 1 and 0 elsewhere, V_0 = −1/20, Q_0 = 0 or −1/10."""
    env, policy = cases.advantage_above_td()
    residuals, advantages = [], []
    for a in (0, 1):
        for chance, v1 in ((0.5, -0.2), (0.5, 0.0)) if a else ((1.0, 0.0),):
            for b in (0, 1):
                late = ((0.3 if b else -0.7) - v1) if v1 else 0.0
                q0 = -0.1 if a else 0.0
                p, first, second = 0.25 * chance, a - 0.5, (b - 0.5) * late
                residuals.append((p, first * (v1 + 0.05) + second))
                advantages.append((p, first * (q0 + 0.05) + second))
    found = varlab.exact(env, policy, ["td_residual", "advantage"])
    for k, paths in enumerate((residuals, advantages)):
        mean, variance = moments(paths)
        assert found.mean[k] == pytest.approx(mean) and found.variance[k] == pytest.approx(variance)
    assert found.variance[1] > 1.7 * found.variance[0]


def test_every_pair_has_a_world_that_turns_it_round():
    ratios = rows()[rows()["statistic"] == "largest_ratio"].set_index(["phi", "other"])["estimate"]
    assert (ratios[list(textbook.ORDER)] > 1.7).all()
    assert ratios[order.SAME] == pytest.approx(1.0, rel=1e-12)


def test_shares_are_those_of_the_study_of_the_order():
    table = textbook.summarise(textbook.variances(50, 0))
    mine = order.shares(rows()).reset_index(drop=True)
    for column in ("estimate", "estimate_low", "estimate_high"):
        np.testing.assert_allclose(mine[column].astype(float), table[column])


def test_the_short_table_shows_the_worst_cell_of_each_law():
    text = order.short_table(rows())
    lines = text.splitlines()
    assert "50 random MDPs per cell" in lines[0] and len(lines) == 4 + len(textbook.ORDER)
    cells = rows()[(rows()["statistic"] == "share") & (rows()["phi"] == "value_baseline") & (rows()["rewards"] == "N(0, 1)")]
    (line,) = [x for x in lines if x.startswith("| RTG−V ≤ RTG")]
    assert f"up to {100 * cells['estimate'].max():.1f} % [" in line and line.count("|") == 6


def test_the_figure_leaves_the_other_rows_out():
    figure = STUDIES["textbook_order"].draw(rows(), None)
    assert len(figure.axes) == 8


def test_the_short_table_stands_beside_the_figures_of_the_page():
    said, frame = order.short_frame(rows())
    table = judge(MINE, {"textbook_order": rows()}, {"textbook_order": "d"}, Budget())
    with_order, without = (claims_page(table, {"textbook_order": b"png"}, {"seed": 0}, x) for x in (rows(), None))
    assert said in with_order and said not in without
    figures = with_order.split("<h2>Figures</h2>")[1].split("<h2>")[0]
    assert "<img" in figures and all(f">{cell}</td>" in figures for cell in frame.to_numpy().ravel())
    lines = order.short_table(rows()).splitlines()
    assert lines[0] == said and len(lines) == 4 + len(frame) and lines[4].split(" | ")[1:4] == frame.iloc[0].tolist()[1:4]
