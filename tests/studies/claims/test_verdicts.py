"""Outcomes from effects: sides, margins, exact values, Holm's correction, and how often a verdict is wrong."""

import math

import numpy as np
import pytest
import scipy.stats

from varlab.studies.claims.verdicts import Effect, agrees, decide, family, holm, p_value


def effect(value, half, n=100, log=False):
    return Effect(value, value - half, value + half, n, log)


@pytest.mark.parametrize(
    ("direction", "bound", "margin", "value", "half", "outcome"),
    [
        ("below", 1.0, 0.0, 0.5, 0.1, "holds"), ("below", 1.0, 0.0, 1.5, 0.1, "violated"),
        ("below", 1.0, 0.0, 0.95, 0.1, "undecided"), ("above", 0.0, 0.0, 0.5, 0.1, "holds"),
        ("above", 0.0, 0.0, -0.5, 0.1, "violated"), ("above", 0.0, 0.0, 0.05, 0.1, "undecided"),
        ("within", 0.0, 0.3, 0.0, 0.1, "holds"), ("within", 0.0, 0.3, 0.6, 0.1, "violated"),
        ("within", 0.0, 0.3, -0.6, 0.1, "violated"), ("within", 0.0, 0.3, 0.25, 0.1, "undecided"),
        ("within", 0.0, 0.3, 0.0, 0.5, "undecided"),
    ],
)  # fmt: skip
def test_outcomes(direction, bound, margin, value, half, outcome):
    assert decide("c", effect(value, half), direction, bound, margin).outcome == outcome


def test_exact_effects_are_compared_and_ties_count_for_the_claim():
    for value, outcome in ((0.999, "holds"), (1.0, "holds"), (1.0 + 1e-12, "holds"), (1.001, "violated")):
        verdict = decide("c", Effect.exact(value), "below", 1.0)
        assert verdict.outcome == outcome and verdict.p_value == 0 and math.isnan(verdict.n_to_decide)
    assert decide("c", Effect.exact(0.2), "within", 0.0, 0.1).outcome == "violated"
    assert decide("c", Effect(math.nan, math.nan, math.nan, 50), "below", 1.0).outcome == "undecided"


def test_p_values_are_those_of_a_normal_estimate():
    one = effect(0.5, 2 * scipy.stats.norm.ppf(0.975))  # standard error 2
    assert p_value(one, "below", 3.5) == pytest.approx(scipy.stats.norm.sf(1.5), rel=1e-12)
    assert p_value(one, "above", 3.5) == pytest.approx(scipy.stats.norm.sf(1.5), rel=1e-12)
    assert p_value(one, "within", 0.0, 4.5) == pytest.approx(scipy.stats.norm.sf(2.0), rel=1e-12)
    assert decide("c", one, "below", 3.5).p_value == pytest.approx(2 * scipy.stats.norm.sf(1.5), rel=1e-12)


def test_the_side_that_faces_the_bound_counts():
    skewed = Effect(1.0, 0.9, 1.8, 100)
    assert skewed.z(0.8) == pytest.approx(0.2 / (0.1 / scipy.stats.norm.ppf(0.975)))
    assert skewed.z(1.4) == pytest.approx(-0.4 / (0.8 / scipy.stats.norm.ppf(0.975)))
    ratio = Effect(2.0, 1.0, 4.0, 100, log=True)
    assert ratio.z(1.0) == pytest.approx(scipy.stats.norm.ppf(0.975)) == -ratio.z(4.0)
    assert Effect(2.0, 1.0, math.inf, 100).z(3.0) == 0.0  # an end at infinity excludes nothing


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03], size=5) == pytest.approx([0.05, 0.12, 0.12])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_family_is_corrected_and_exact_members_need_none():
    questions = [("below", 1.0, 0.0)] * 3
    se = 0.1 / scipy.stats.norm.ppf(0.975)
    effects = (effect(1 - 2.2 * se, 0.1), Effect.exact(0.2), effect(1 - 5 * se, 0.1))
    own = [decide(str(i), e, *questions[i]) for i, e in enumerate(effects)]
    assert [v.outcome for v in own] == ["holds", "holds", "holds"]
    made = family(own, questions)
    assert [v.adjusted for v in made] == pytest.approx([own[0].p_value, 0.0, 2 * own[2].p_value])
    assert [v.outcome for v in family(own, questions, size=10)] == ["undecided", "holds", "holds"]


def test_n_to_decide_is_where_the_same_effect_is_decided():
    verdict = decide("c", effect(0.95, 0.1, n=1000), "below", 1.0)
    assert verdict.outcome == "undecided" and verdict.n_to_decide > 1000
    half = 0.1 * math.sqrt(1000 / verdict.n_to_decide)
    assert decide("c", effect(0.95, half * 0.999), "below", 1.0).outcome == "holds"
    assert decide("c", effect(0.95, half * 1.01), "below", 1.0).outcome == "undecided"


def test_wrong_verdicts_are_as_rare_as_the_level_says():
    """An effect at the bound: 20,000 normal estimates, at most 5 % decided (2.5 % each way), within four standard errors."""
    draws = np.random.default_rng(0).normal(size=20_000)
    outcomes = [decide("c", effect(1 + x, scipy.stats.norm.ppf(0.975)), "below", 1.0).outcome for x in draws]
    share = 1 - outcomes.count("undecided") / len(outcomes)
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / len(draws))
    lax = [decide("c", effect(1 + x, scipy.stats.norm.ppf(0.975)), "below", 1.0, level=0.1).outcome for x in draws]
    assert 1 - lax.count("undecided") / len(lax) > 0.08  # another level shows


def test_agreement_of_estimates():
    assert agrees(effect(1.0, 0.1), "below", 1.0) and agrees(effect(1.0, 0.1), "above", 1.0)
    assert agrees(effect(1.2, 0.1), "within", 1.0, 0.2 + 1e-12) and not agrees(effect(1.3, 0.1), "within", 1.0, 0.2)
