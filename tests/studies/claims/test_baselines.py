"""Claims of constant and state baselines: outcomes, enumeration against loops, fits against the package's own, closed forms."""

import itertools
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from varlab import envs, estimators
from varlab.analysis.estimates import styles
from varlab.envs.closed_form import two_arms_variance
from varlab.oracles import exact
from varlab.studies.claims import baselines, state_baselines
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect, decide
from varlab.studies.episodes import Episodes
from varlab.studies.textbook_order import Draw
from varlab.values.dynamic_programming import ExactValues

NAMES = ("constant_baselines", "parameter_baselines", "score_norms", "state_baselines", "sure_arms")
VIOLATED = {"OB-2a", "OB-4c", "OB-6a"}
MINE = [c for c in CLAIMS.values() if c.study in NAMES]
SAMPLED = {"OB-2c", "OB-2d", "OB-3d", "OB-3e", "OB-3f", "OB-3g", "OB-5b", "OB-5c", "OB-6c", "OB-6d"}


@cache
def rows(name):
    return STUDIES[name].run(Budget("smoke", 0.02))


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_outcomes_and_controls(claim):
    effect, control = claim.effect(rows(claim.study)), claim.control.effect(rows(claim.study))
    assert effect.is_exact == (claim.id not in SAMPLED)
    outcome = decide(claim.id, effect, *claim.question).outcome
    against = decide(claim.id, control, *claim.control_question).outcome
    if effect.is_exact:
        assert outcome == ("violated" if claim.id in VIOLATED else "holds") and against == "violated"
    else:
        contrary = {"OB-2d", "OB-3d", "OB-3g", "OB-5b", "OB-6d"}
        assert outcome in ({"violated", "undecided"} if claim.id in contrary else {"holds", "undecided"})
        assert against in ("violated", "undecided")


def test_studies_draw_and_are_complete():
    assert {c.catalogued for c in MINE} == {f"OB-{i}" for i in range(1, 7)}
    for name in NAMES:
        assert isinstance(STUDIES[name].draw(rows(name)), styles.Figure)


@pytest.fixture(scope="module")
def world():
    env, policy = Draw.of(3, 1).make("N(0, 1)", "table", 1.0)
    return env, policy, Episodes.of(env, policy)


def test_episodes_are_those_of_a_loop(world):
    env, policy, found = world
    mdp, pi = env.finite, policy.logits.weight.detach().softmax(1).numpy()
    p, g, norm, total = [], [], [], []
    for first in range(3):
        for path in itertools.product(itertools.product(range(2), range(3)), repeat=3):
            s, chance, paid, z, z2 = first, float(mdp.initial[first]), 0.0, np.zeros((3, 2)), np.zeros((3, 2))
            for a, o in path:
                chance *= pi[s, a] * float(mdp.probability[s, a, o])
                paid += float(mdp.reward[s, a, o])
                one = np.eye(2)[a] - pi[s]
                z[s] += one
                z2[s] += one**2
                s = int(mdp.next_state[s, a, o])
            p, g, norm, total = [*p, chance], [*g, z.ravel()], [*norm, z2.ravel()], [*total, paid]
    order = np.lexsort((found.reward, found.p)), np.lexsort((total, p))
    for mine, loop in ((found.p, p), (found.reward, total), (found.score, g), (found.norm, norm)):
        np.testing.assert_allclose(mine[order[0]], np.array(loop)[order[1]], atol=1e-13)
    assert found.p.sum() == pytest.approx(1.0, abs=1e-13)


def test_best_baselines_and_variances_are_the_oracles(world):
    env, policy, found = world
    truth = exact(env, policy, [baselines.BEST, baselines.FINER[0], "total_return"]).variance
    assert found.variance(found.best) == pytest.approx(truth[0], rel=1e-12)
    assert found.variance(found.best_by_parameter) == pytest.approx(truth[1], rel=1e-12)
    assert found.variance(0.0) == pytest.approx(truth[2], rel=1e-12)
    given = [baselines.total(constant=0.3), baselines.total(by_parameter=np.arange(6.0))]
    expected = [found.variance(0.3), found.variance(np.arange(6.0))]
    np.testing.assert_allclose(baselines.variances(env, policy, given), expected, rtol=1e-12)


def test_fitted_baselines_are_evaluated_on_the_world(world):
    _, _, e = world
    n, rng = 7, np.random.default_rng(1)
    counts = rng.multinomial(n, e.p / e.p.sum(), size=3)
    found = e.fits(n, 3, np.random.default_rng(1))
    for d, count in enumerate(counts):
        above, below = count @ (e.score**2 * e.reward[:, None]), count @ e.norm
        own = np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)
        least = e.variance(e.best)
        assert found["per parameter"][d] == pytest.approx(e.variance(own) / least, rel=1e-10)
        assert found["of another state"][d] == pytest.approx(e.variance(np.roll(own, 2)) / least, rel=1e-10)
        assert found["constant"][d] == pytest.approx(e.variance(above.sum() / below.sum()) / least, rel=1e-10)


def test_excesses_have_their_limits():
    """In a table n times the excess tends to C, and to 1 for a constant; dense ones follow from moments of a normal vector."""
    rng = np.random.default_rng(2)
    found = baselines.table_excess(4, 4000, 4000, rng)
    for k, limit in (("per parameter", 4.0), ("constant", 1.0)):
        assert found[k].mean() == pytest.approx(limit, abs=4 * found[k].std() / 4000**0.5 + 0.01 * limit)
    p, a = 3, rng.standard_normal((400_000, 3))
    rest = (p + 2 - (a**2).sum(1)) ** 2
    limits = (a**4 * rest[:, None]).mean() / (2 * (p + 2)), ((a**2).sum(1) ** 2 * rest).mean() / p / (2 * p * (p + 2))
    found = baselines.dense_excess(p, 2000, 2000, rng)
    for k, limit in zip(("per parameter", "constant"), limits, strict=True):
        assert found[k].mean() == pytest.approx(limit, rel=0.1)


def test_slopes_of_powers_and_shares():
    points = [Effect(x**1.5, 0.9 * x**1.5, 1.1 * x**1.5, 40, True) for x in (1.0, 2.0, 4.0)]
    found = baselines.log_slope((1, 2, 4), points)
    assert found.value == pytest.approx(1.5) and found.low < 1.5 < found.high and found.n == 40
    wide = found.high - found.low
    assert wide == pytest.approx(2 * -np.log(0.9) * np.sqrt(2) / (2 * np.log(2)), rel=1e-12)
    one = baselines.share(3, 10)
    assert (one.value, one.n) == (0.3, 10) and one.low == pytest.approx(0.06673951) and one.high == pytest.approx(0.6524529)


def test_three_arms_are_the_formula():
    p = 0.97
    pi, r = np.array([p, (1 - p) / 2, (1 - p) / 2]), np.array([1.0, 0.0, 0.0])
    z = np.eye(3) - pi
    size = pi * (z**2).sum(1)
    gradient = (pi * r) @ z
    expected = [size @ (r - b) ** 2 - gradient @ gradient for b in (size @ r / size.sum(), pi @ r)]
    assert state_baselines.three_arms(p) == pytest.approx(expected, rel=1e-9)


def test_twice_v_is_twice_v():
    env = envs.make("varlab/TwoArms-v0")
    policy = state_baselines.SoftmaxTable(env, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    source = ExactValues.of(env.finite, policy, 1.0, 1)
    v = float(source.table(env.finite, 1)[0][0, 0])
    twice = state_baselines.Doubled(source).table(env.finite, 1)
    assert float(twice[0][0, 0]) == 2 * v and twice[1] is None
    found = exact(env, policy, "value_baseline", values=state_baselines.Doubled(source)).variance[0]
    assert found == pytest.approx(2 * two_arms_variance(v, 2 * v), rel=1e-12)


def test_larger_worlds_are_of_their_size():
    env, policy = state_baselines._world(0, 1, None)
    assert tuple(policy.logits.weight.shape) == (5, 4) and env.horizon == 10
    other, _ = state_baselines._world(0, 2, None)
    assert not torch.equal(env.finite.reward, other.finite.reward)


@pytest.mark.parametrize(("count", "outcome"), [(60, "violated"), (140, "holds"), (104, "undecided")])
def test_shares_are_judged_by_their_interval(count, outcome):
    made = pd.DataFrame([row("best within 10 %", baselines.share(count, 200), what=state_baselines.LARGE)])
    assert decide("c", CLAIMS["OB-5c"].effect(made), *CLAIMS["OB-5c"].question).outcome == outcome


@pytest.mark.parametrize(("value", "outcome"), [(1.05, "holds"), (0.1, "violated"), (0.8, "undecided")])
def test_orders_are_judged_by_their_interval(value, outcome):
    made = pd.DataFrame([row("per parameter", Effect(value, value - 0.1, value + 0.1, 100), what="slope, table")])
    assert decide("c", CLAIMS["OB-3f"].effect(made), *CLAIMS["OB-3f"].question).outcome == outcome


def test_needs_are_registered():
    for claim in MINE:
        for phi in claim.needs:
            assert estimators.parse(phi).label
    assert cell(rows("sure_arms"), what="p = 0.9", label="V").value == pytest.approx(64.0)
