"""Jackknife intervals: exact small cases, known quantiles, and coverage where the plain interval fails."""

import numpy as np
import pytest
from scipy import stats

from varlab.analysis import intervals
from varlab.analysis.intervals import FISHER, LINEAR, LOG, jackknife_interval
from varlab.checks import InputError


def test_linear_jackknife_of_a_mean_is_the_t_interval():
    x = np.random.default_rng(0).standard_normal(30)
    loo = np.array([np.delete(x, b).mean() for b in range(30)])
    low, high = jackknife_interval(x.mean(), [loo], 0.9, LINEAR, skew=False)
    expected = stats.t.interval(0.9, 29, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose((low, high), expected, rtol=1e-12)


def test_two_independent_sets_give_the_welch_interval():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(20), 3 * rng.standard_normal(12)
    loo = [np.array([np.delete(x, b).mean() - y.mean() for b in range(20)])]
    loo.append(np.array([x.mean() - np.delete(y, b).mean() for b in range(12)]))
    got = jackknife_interval(x.mean() - y.mean(), loo, 0.95, LINEAR, skew=False)
    welch = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(got, (welch.low, welch.high), rtol=1e-12)


@pytest.mark.parametrize(("scale", "value"), [(LOG, 2.0), (FISHER, 0.4)])
def test_a_scale_is_the_linear_interval_moved_there_and_back(scale, value):
    loo = value + 0.01 * np.random.default_rng(2).standard_normal(25)
    direct = jackknife_interval(value, [loo], scale=scale)
    moved = jackknife_interval(scale.forward(value), [scale.forward(loo)], scale=LINEAR)
    np.testing.assert_allclose(direct, scale.inverse(np.array(moved)), rtol=1e-12)


def test_nothing_left_to_vary_gives_the_point():
    np.testing.assert_allclose(jackknife_interval(3.0, [np.full(20, 3.0)]), (3.0, 3.0), rtol=1e-14)


@pytest.mark.parametrize("a", [-1.5, -0.3, 0.2, 1.0, 4.0])
def test_skew_quantile_inverts_halls_cubic(a):
    for q in (-2.5, -1.0, 0.0, 1.7, 3.0):
        t = intervals.skew_quantile(q, a)
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(q, abs=1e-12)


def test_skew_quantile_without_skewness_and_its_limit():
    assert intervals.skew_quantile(1.96, 0.0) == 1.96
    assert intervals.skew_quantile(1.96, 1e-5) == pytest.approx(1.96, abs=1e-4)


def test_skew_quantile_approaches_the_exact_quantiles_of_a_studentised_gamma_mean():
    # the studentised mean of exponentials is skewed to the left; 200,000 draws give its quantiles to about 0.01
    rng = np.random.default_rng(3)
    x = rng.exponential(size=(200_000, 50))
    t = (x.mean(1) - 1.0) / (x.std(1, ddof=1) / np.sqrt(50))
    for level in (0.025, 0.975):
        q = stats.t.ppf(level, 49)
        corrected, exact = intervals.skew_quantile(q, 2.0 / np.sqrt(50)), np.quantile(t, level)
        assert abs(corrected - exact) < 0.35 * abs(q - exact)


def test_welch_satterthwaite_limits():
    assert intervals.welch_satterthwaite([2.0, 2.0], [10, 10]) == pytest.approx(20)
    assert intervals.welch_satterthwaite([1.0, 0.0], [7, 30]) == pytest.approx(7)
    assert intervals.welch_satterthwaite([1e-200, 1e-200], [10, 10]) == pytest.approx(20)
    assert intervals.welch_satterthwaite([0.0, 0.0], [4, 5]) == 9


def test_student_quantiles_and_a_level_out_of_range():
    assert intervals.student(0.95, 49) == pytest.approx(2.009575, abs=1e-6)
    assert intervals.student(0.95, np.inf) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(InputError, match="level must lie"):
        intervals.student(95, 49)


def test_skewness_is_scipys_and_ignores_rounding():
    x = np.random.default_rng(5).exponential(size=50)
    assert intervals.skewness(x) == pytest.approx(stats.skew(x, bias=False), rel=1e-12)
    assert intervals.skewness(1.0 + 1e-16 * x) == 0.0


def coverage(method, repeats=1500, blocks=50, size=20):
    """Share of intervals that hold E x² = 1 for x² with the tails of CartPole's gradients (kurtosis about 30)."""
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(repeats):
        x = np.exp(1.8 * rng.standard_normal((blocks, size)) - 1.62) * rng.chisquare(6, (blocks, size)) / 6
        mean = x.mean(1)
        loo = (mean.sum() - mean) / (blocks - 1)
        low, high = method(mean.mean(), loo)
        hits.append((low <= 1 <= high, high < 1))
    return np.mean(hits, axis=0)


def test_skewness_correction_covers_heavy_tails_where_the_plain_intervals_fail():
    covered, above = coverage(lambda v, x: jackknife_interval(v, [x]))
    assert covered > 0.91
    assert above < 0.065
    # negative controls: the log alone, and the plain jackknife
    assert coverage(lambda v, x: jackknife_interval(v, [x], skew=False))[1] > 0.08
    assert coverage(lambda v, x: jackknife_interval(v, [x], scale=LINEAR, skew=False))[1] > 0.1


def test_skewness_counts_in_part_where_it_brings_an_end_closer():
    """The widest of the corrections by the whole skewness and by a share of it, end by end."""
    x = np.random.default_rng(11).exponential(size=30)
    loo = (x.sum() - x) / 29
    whole, none = (jackknife_interval(x.mean(), [loo], scale=LINEAR, inward=share) for share in (1.0, 0.0))
    third = -intervals.skewness(loo) / np.sqrt(30)
    q, se = intervals.student(0.95, intervals.degrees_of_freedom(loo)), stats.sem(x)
    half = intervals.skew_quantile(q, third / 2), intervals.skew_quantile(-q, third / 2)
    got = jackknife_interval(x.mean(), [loo], scale=LINEAR, inward=0.5)
    np.testing.assert_allclose(got, (min(whole.low, x.mean() - se * half[0]), max(whole.high, x.mean() - se * half[1])))
    assert none.low < got.low < whole.low
    assert got.high == none.high == whole.high
    direct = jackknife_interval(x.mean(), [loo], scale=LINEAR, degrees=3.0)
    assert direct.high - direct.low > whole.high - whole.low
