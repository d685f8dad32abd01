"""Interquartile means and stratified bootstrap intervals: by hand, against scipy, and by their coverage."""

import numpy as np
import pytest
import scipy.stats

from varlab import rng
from varlab.analysis.resampling import interquartile_mean, stratified_interval
from varlab.checks import InputError


def generator(seed=0):
    return rng.numpy_generator(rng.Streams(seed).sequence("learning_curve"))


def test_interquartile_mean_by_hand():
    assert interquartile_mean([np.array([100.0, 1.0, 3.0, -50.0])]) == 2.0  # the ends go
    assert interquartile_mean([np.array([1.0, 2.0, 6.0])]) == 3.0  # ⌊3/4⌋ = 0: nothing goes
    assert interquartile_mean([np.array([9.0, 0.0, 1.0]), np.array([2.0, 3.0])]) == 2.0  # pooled: 0 and 9 go
    assert interquartile_mean([np.array([5.0])]) == 5.0


def test_interquartile_mean_is_scipys_trimmed_mean_of_everything():
    x = generator().standard_normal((3, 11, 4))
    mine = interquartile_mean(list(x))
    for t in range(4):
        assert mine[t] == pytest.approx(scipy.stats.trim_mean(x[..., t], 0.25, axis=None), abs=1e-15)
    middle = np.sort(x[..., 0].ravel())[8:-8]  # ⌊33/4⌋
    assert mine[0] == pytest.approx(middle.mean(), abs=1e-15)


def test_no_score_is_one_sentence():
    with pytest.raises(InputError, match="At least one score was expected"):
        interquartile_mean([np.empty((0, 3))])


def naive_interval(scores, source, draws, level=0.95):
    """The same by loops: resample every task, put all together, sort, cut, average."""
    rows = [source.integers(len(s), size=(draws, len(s))) for s in scores]
    averages = []
    for d in range(draws):
        drawn = sorted(float(s[i]) for s, index in zip(scores, rows, strict=True) for i in index[d])
        cut = len(drawn) // 4
        averages.append(np.mean(drawn[cut : len(drawn) - cut]))
    return np.quantile(averages, [(1 - level) / 2, (1 + level) / 2])


def test_interval_equals_loops():
    scores = [generator(1).standard_normal(7), 5 + generator(2).standard_normal(9)]
    np.testing.assert_allclose(
        stratified_interval(scores, generator(3), 300), naive_interval(scores, generator(3), 300), atol=1e-12
    )


def test_chunks_change_nothing(monkeypatch):
    scores = [generator(1).standard_normal((7, 5)), generator(2).standard_normal((9, 5))]
    whole = stratified_interval(scores, generator(3), 100)
    monkeypatch.setattr("varlab.analysis.resampling.AT_ONCE", 600)
    np.testing.assert_array_equal(stratified_interval(scores, generator(3), 100), whole)


def test_a_single_repetition_has_no_interval():
    low, high = stratified_interval([np.ones((1, 3)), np.ones((5, 3))], generator(), 10)
    assert low.shape == (3,) and np.isnan([low, high]).all()


def test_points_of_one_run_stay_together():
    """A curve that is the same at all points has the same interval at all points."""
    x = generator(1).standard_normal((8, 1)).repeat(4, 1)
    low, high = stratified_interval([x], generator(2), 200)
    assert (low == low[0]).all() and (high == high[0]).all() and low[0] < high[0]


def across_tasks(scores, source, draws):
    """A wrong variant: repetitions are resampled across tasks, whatever task they belong to."""
    low, high = stratified_interval([np.concatenate(scores)], source, draws)
    return low, high


def coverage(interval, repeats=400, seeds=20):
    """Share of intervals that hold the interquartile mean of two tasks at 0 and 8: by symmetry 4."""
    x = generator(11).standard_normal((repeats, 2, seeds)) + np.array([[0.0], [8.0]])
    source = generator(12)
    ends = np.array([interval(list(x[i]), source, 300) for i in range(repeats)])
    return float(((ends[:, 0] <= 4) & (4 <= ends[:, 1])).mean()), float((ends[:, 1] - ends[:, 0]).mean())


def test_coverage_within_tasks_and_not_across_them():
    """400 intervals: the share of hits is that of 95 % up to its error; resampling across tasks is found out by the same rule."""
    inside, short = coverage(stratified_interval)
    wrong, long = coverage(across_tasks)
    assert 0.92 <= inside <= 0.98
    assert wrong > 0.99 and long > 3 * short


def test_ten_normal_scores_cover_about_ninety_percent():
    """What the documentation says of few repetitions."""
    x, source, hits = generator(21).standard_normal((500, 10)), generator(22), 0
    for row in x:
        low, high = stratified_interval([row], source, 300)
        hits += low <= 0 <= high
    assert 0.86 <= hits / 500 <= 0.94
