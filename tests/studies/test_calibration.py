"""Calibration: the bookkeeping of repeated measurements against the slow way, the rules against tables that break each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import varlab
from varlab.analysis import intervals, statistics
from varlab.analysis.moments import Block, collect
from varlab.checks import InputError
from varlab.scores.base import BatchScores
from varlab.studies import calibration, coverage
from varlab.studies.calibration import CASES, calibrate, jobs, truths
from varlab.studies.repeats import reduce, repeats, sampled_references

TABLE = Path(__file__).resolve().parents[2] / "results" / "calibration" / "table.csv"


class Stored(BatchScores):
    """A score map that gives prepared gradients."""

    def __init__(self, g):
        self.g, self.num_parameters = g, g.shape[2]

    def tiles(self, phi, multiple=1):
        yield slice(0, len(phi)), torch.arange(self.num_parameters), self.g.clone()

    def rows(self, index):
        return Stored(self.g[index])

    def apply_sum(self, phi):
        raise AssertionError("single gradients are meant")



def test_many_blocks_at_once_are_the_blocks_of_a_measurement():
    g = torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2.0
    center = torch.full((3, 4), 1.5, dtype=torch.float64)
    got, blocks = reduce(g - center, center, 20), []
    for part in g.split(20):
        block = Block(center, center[:0], 0, per_parameter=True)
        block.add(Stored(part), part.new_zeros(20, 3, 1))
        blocks.append(block)
    expected = collect(blocks, ("a", "b", "c"))
    for name, value in got.items():
        np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-12, err_msg=name)


@pytest.fixture(scope="module")
def flipped():
    """A world of four steps, prepared."""
    job = CASES["sign flip"].prepare(1000, 0)
    return job, job.pilot()


def test_repeats_are_whole_independent_measurements(flipped):
    job, pilot = flipped
    made = list(repeats(job, pilot, 1000, 9))  # 4,000 trajectories at once: four repeats, four, one
    assert len(made) == 9
    for repeat in made:
        assert repeat.moments.count.tolist() == [20] * 50
        assert repeat.moments.names == CASES["sign flip"].phi
        assert (repeat.pilot_kurtosis > 1).all()
    firsts = np.stack([m.moments.mean[0] for m in made])
    assert len(np.unique(firsts.round(12), axis=0)) == 9
    again = list(repeats(job, pilot, 1000, 9))
    assert all(np.array_equal(a.moments.mean, b.moments.mean) for a, b in zip(made, again, strict=True))


def test_repeats_have_the_mean_and_variance_of_measure(flipped):
    """The same estimator, measured by measure() itself and by 40 repeats: within four standard errors of each other."""
    job, pilot = flipped
    env, policy = CASES["sign flip"].make()
    direct = varlab.measure(env, policy, CASES["sign flip"].phi, n=40_000, gamma=0.5, seed=5, dtype="float64").summary
    made = [r.moments for r in repeats(job, pilot, 1000, 40)]
    means = np.stack([m.mean.mean(0) for m in made])
    variances = np.stack([m.trace_m2.sum(0) / (1000 - 50) for m in made])
    error = variances.std(0, ddof=1) / np.sqrt(40)
    assert (np.abs(variances.mean(0) - direct["variance"]) < 4 * np.sqrt(2) * error).all()
    spread = means.std(0, ddof=1) / np.sqrt(40)
    exact = varlab.exact(env, policy, CASES["sign flip"].phi, gamma=0.5)
    assert (np.abs(means.mean(0) - exact.mean) < 4.5 * spread + 1e-12).all()


def test_sampled_references_are_unbiased_and_of_the_stated_size():
    case = replace(CASES["sign flip"], reference_share=4)
    job = case.prepare(1000, 0)
    own = job.references.of("J_gamma", job.pilot(), None)
    made = list(sampled_references(case, 0, 4000, 12, own))
    assert [r.n for r in made] == [4000] * 12
    grads = np.stack([r.grad for r in made])
    error = grads.std(0, ddof=1) / np.sqrt(12)
    assert (np.abs(grads.mean(0) - own.grad) < 4.5 * error).all()
    assert not made[0].exact


def test_exact_values_of_the_statistics_are_those_of_the_summary():
    """Every statistic of a measurement of a million trajectories lies close to what the calibration holds it to."""
    env, policy = CASES["sign flip"].make()
    exact = varlab.exact(env, policy, CASES["sign flip"].phi, gamma=0.5)
    got = varlab.measure(env, policy, CASES["sign flip"].phi, n=200_000, gamma=0.5, seed=1, exact=False).summary
    for name, value in truths(exact).items():
        low, high = got[f"{name}_low"].to_numpy(), got[f"{name}_high"].to_numpy()
        width = high - low
        assert ((value > low - width - 1e-12) & (value < high + width + 1e-12)).all(), name


def test_every_row_is_there_and_the_plain_jackknife_covers_less(monkeypatch):
    rows = calibrate("Gaussian bandit, 1 action", 1000, 60)
    assert set(rows["statistic"]) == {*calibration.STATISTICS, "false_alarms", "power"}
    assert len(rows) == 2 * 8
    variance = rows[rows["statistic"] == "variance"]
    assert (variance["kurtosis"] > 60).all()

    def plain(value, sources, level):
        return intervals.jackknife_interval(value, sources, level, intervals.LINEAR, skew=False)

    monkeypatch.setattr(statistics, "positive_interval", plain)
    worse = calibrate("Gaussian bandit, 1 action", 1000, 60)
    assert (worse[worse["statistic"] == "variance"]["coverage"].to_numpy() < variance["coverage"].to_numpy() - 0.1).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(("compoundin", 1000, 5), "compounding"), (("sign flip", 1010, 5), "multiple of 50"), (("sign flip", 1000, 0), "repeats")],
)
def test_bad_input_is_a_sentence(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        calibrate(*arguments)


def test_slow_worlds_are_measured_at_the_smallest_n_alone():
    listed = jobs(tuple(CASES), (20_000, 1000))
    small = [name for name, case in CASES.items() if case.small]
    assert {n for w, n in listed if w in small} == {1000}
    assert {n for w, n in listed if w not in small} == {1000, 20_000}
    assert len(CASES) - len(small) >= 6
    assert listed[0][1] == 1000


def perfect():
    """A table in which every rule holds."""
    rows = []
    for i in range(120):
        common = {"world": f"world {i % 8}", "phi": f"phi{i}", "n": (1000, 20_000)[i % 2], "kurtosis": 35.0, "flagged": 0.0,
                  "repeats": 1000, "constant": False, "noise": 1.0, "unflagged_coverage": 0.95}  # fmt: skip
        rows += [{**common, "statistic": s, "exact": 20.0, "coverage": 0.95} for s in coverage.COVERED]
        rows.append({**common, "statistic": "bias_sq", "exact": 0.0, "coverage": 0.99})
        rows.append({**common, "statistic": "false_alarms", "exact": 0.05, "coverage": 0.05})
        rows.append({**common, "statistic": "power", "exact": 0.05, "coverage": 0.9})
    return pd.DataFrame(rows)


def test_rules_hold_on_a_perfect_table():
    assert all(rule.holds for rule in coverage.rules(perfect()))


@pytest.mark.parametrize(
    ("broken", "statistic", "rows", "change"),
    [
        (0, "variance", slice(0, 40), {"coverage": 0.975, "unflagged_coverage": 0.975}),
        (1, "nsr", slice(0, 1), {"coverage": 0.99, "unflagged_coverage": 0.99}),
        (2, "cosine", slice(0, 1), {"coverage": 0.92, "unflagged_coverage": 0.92}),
        (3, "variance", slice(None), {"flagged": 1.0, "kurtosis": 60.0}),
        (4, "variance", slice(1, 2), {"flagged": 0.95}),
        (5, "variance", slice(0, 1), {"flagged": 0.5, "unflagged_coverage": 0.9}),
        (7, "false_alarms", slice(0, 1), {"coverage": 0.08}),
        (8, "power", slice(0, 1), {"coverage": 0.7}),
        (9, "variance", slice(None), {"kurtosis": 3.0}),
    ],
)
def test_each_rule_fails_alone_on_a_table_that_breaks_it(broken, statistic, rows, change):
    table = perfect()
    if broken in (3, 9):  # shares of all cells
        index = table.index if broken == 9 else table.index[table["n"] == 20_000]
    else:
        index = table.index[(table["statistic"] == statistic) & (table["exact"] > 0)][rows]
    for name, value in change.items():
        table.loc[index, name] = value
    assert [i for i, rule in enumerate(coverage.rules(table)) if not rule.holds] == [broken]


def test_too_little_coverage_at_zero_bias_breaks_its_rule_and_too_much_does_not():
    table = perfect()
    zero = table.index[(table["statistic"] == "bias_sq") & (table["exact"] == 0)]
    table.loc[zero[0], "coverage"] = 1.0
    assert all(rule.holds for rule in coverage.rules(table))
    table.loc[zero[0], "coverage"] = 0.92
    assert [rule.text for rule in coverage.rules(table) if not rule.holds] == [coverage.rules(table)[6].text]


def test_the_published_calibration_keeps_every_rule():
    table = pd.read_csv(TABLE)
    assert set(table["numerics"]) == {varlab.NUMERICS}, "numbers moved since: python scripts/calibrate.py"
    assert (table["repeats"] >= 1000).all()
    assert set(zip(table["world"], table["n"], strict=True)) == set(jobs(tuple(CASES), (1000, 20_000)))
    broken = [rule for rule in coverage.rules(table) if not rule.holds]
    assert not broken
    for name, text in (("table.md", coverage.to_markdown(table)), ("rules.md", coverage.rules_to_markdown(table))):
        assert (TABLE.parent / name).read_text(encoding="utf-8") == text
