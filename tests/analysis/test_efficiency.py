"""Work per trajectory: charges against what a run spends, exact ratios, blocks left out one by one, coverage."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, policies
from varlab.analysis.efficiency import efficiency_table
from varlab.analysis.intervals import positive_interval
from varlab.checks import InputError
from varlab.types import Moments
from varlab.values import CriticSettings

PHI = ["total_return", "value_baseline", "advantage", "time_baseline"]


def world():
    mdp = random_mdp(3)
    env = envs.environment(mdp, 4)
    return env, policies.SoftmaxTable(env, logits=random_logits(1, mdp))


def measured(**settings):
    return varlab.measure(*world(), PHI, **{"n": 500, "pilot": 60, "dtype": "float64", "exact": False, **settings})


def test_branches_are_charged_block_by_block():
    result = measured(values="cloning", continuations=3)
    m, table = result.moments, efficiency_table(result.moments, result.summary)
    charged = dict(zip(m.names, m.charged.sum(0), strict=True))
    assert charged["total_return"] == 0 == charged["time_baseline"]
    assert 0 < charged["value_baseline"] < charged["advantage"]
    spent = result.summary.set_index("phi").loc["advantage", "steps"] - m.steps.sum()
    assert (m.charged[:, 1] > 0).all() and charged["advantage"] == spent < result.steps["branch"]  # the pilot's are not charged
    np.testing.assert_allclose(table["steps"] * 500, result.summary["steps"], rtol=1e-14)
    np.testing.assert_allclose(table["efficiency"], result.summary["efficiency"], rtol=1e-12)
    assert table["fixed_steps"].tolist()[:3] == [0.0, 0.0, 0.0]
    stream = result.steps["critic"] / 500
    assert table["fixed_steps"].iloc[3] == pytest.approx(stream, rel=1e-14) and stream > 0


def test_a_critics_data_are_spent_once():
    result = measured(values="critic", critic=CriticSettings(n=40, hidden=(4,), epochs=1))
    table = efficiency_table(result.moments, result.summary, relative_to="advantage").set_index("phi")
    assert (result.moments.charged == 0).all() and table.loc["total_return", "fixed_steps"] == 0
    assert table.loc["advantage", "fixed_steps"] == pytest.approx(result.steps["critic"] / 500, rel=1e-14)
    row = table.loc["advantage"]
    assert (row["relative_work"], row["relative_work_low"], row["relative_work_high"]) == (1.0, 1.0, 1.0)
    other = table.loc["total_return"]
    assert other["relative_work"] == pytest.approx(other["work"] / row["work"], rel=1e-14)
    assert other["relative_variance"] * other["steps"] / row["steps"] == pytest.approx(other["relative_work"], rel=1e-12)


def test_runs_that_did_not_count_branches_charge_them_all_the_same():
    result = measured(values="cloning", continuations=2)
    table = efficiency_table(replace(result.moments, charged=None), result.summary)
    assert table["branch_steps"].isna().all()
    np.testing.assert_allclose(table["work"], efficiency_table(result.moments, result.summary)["work"], rtol=1e-12)


def test_inner_episodes_are_charged():
    env = envs.make("CartPole-v1", horizon=20)
    policy = policies.make("parameter_exploring", env)
    inner = envs.parameter_exploring(env, policy.controller, 1.0)
    result = varlab.measure(inner, policy, ["total_return"], n=50, pilot=20, n_reference=50)
    (row,) = efficiency_table(result.moments, result.summary).to_dict("records")
    assert row["steps"] == result.summary["steps"].iloc[0] / 50 > 5


def test_steps_differ_from_work_by_the_exact_variance():
    env, policy = world()
    result = measured(n=20_000, values="exact")
    table = efficiency_table(result.moments, result.summary)
    truth = varlab.exact(env, policy, PHI[:3]).variance
    for k in range(3):
        row = table.iloc[k]
        assert row["relative_variance_low"] <= truth[k] / truth[0] <= row["relative_variance_high"]
        assert row["work"] / row["steps"] == pytest.approx(result.summary["variance"].iloc[k], rel=1e-12)


def lengths_and_gradients(rng, blocks=50, size=40):
    """Gradients N(0, 1) and 2 N(0, 1) shared in part, lengths geometric, branches twice the length for the second Φ."""
    shared, own = rng.standard_normal((2, blocks, size))
    g = np.stack([shared, 1.6 * shared + 1.2 * own], 2)[..., None]
    steps = rng.geometric(0.2, (blocks, size)).sum(1)
    mean = g.mean(1)
    trace = np.square(g - mean[:, None]).sum((1, 3))
    rest = dict.fromkeys(("cross", "m4", "m2c"), np.zeros((blocks, 2)))
    charged = np.stack([np.zeros_like(steps), 2 * steps], 1)
    m = Moments(
        np.arange(blocks), np.full(blocks, size), mean, trace, None, steps=steps, names=("a", "b"), charged=charged, **rest
    )
    whole = [steps.sum(), 3 * steps.sum() + 1000]
    return m, pd.DataFrame({"phi": ["a", "b"], "steps": whole})


def test_intervals_cover_and_wrong_ones_do_not():
    """Work 5 for the first; 4 (15 + 1000/n) for the second, whose ratio is the variance's times that of the costs."""
    rng, hits = np.random.default_rng(0), np.zeros(4)
    second = 4 * (15 + 1000 / 2000)
    for _ in range(200):
        a, b = efficiency_table(*lengths_and_gradients(rng)).to_dict("records")
        for i, (row, name, truth) in enumerate(
            [(a, "work", 5.0), (b, "work", second), (b, "relative_work", second / 5), (b, "relative_work", 4.0)]
        ):
            hits[i] += row[f"{name}_low"] < truth < row[f"{name}_high"]
    assert (abs(hits[:3] / 200 - 0.95) < 0.047).all(), hits
    assert hits[3] == 0  # negative control: the ratio of variances alone


def test_leaving_a_block_out_is_tabulating_without_it():
    """What is spent once stays what it is per trajectory."""
    m, summary = lengths_and_gradients(np.random.default_rng(1))
    names = [k for k, v in vars(m).items() if isinstance(v, np.ndarray)]
    whole, loo = efficiency_table(m, summary), []
    for b in range(50):
        part = replace(m, **{k: np.delete(getattr(m, k), b, 0) for k in names})
        spent = [part.steps.sum(), 3 * part.steps.sum() + 1000 * part.n / m.n]
        loo.append(efficiency_table(part, summary.assign(steps=spent))["work"].to_numpy())
    for k in range(2):
        low, high = positive_interval(whole["work"][k], [np.array(loo)[:, k]])
        assert (whole["work_low"][k], whole["work_high"][k]) == pytest.approx((low, high), rel=1e-10)


def test_an_unknown_comparator_is_refused_and_other_units_have_no_ratio():
    m, summary = lengths_and_gradients(np.random.default_rng(2))
    with pytest.raises(InputError, match="nearest names are a, b"):
        efficiency_table(m, summary, relative_to="c")
    table = efficiency_table(m, summary.assign(target=["gradient", "direction"]))
    assert table["relative_work"].tolist()[0] == 1.0 and np.isnan(table["relative_work"][1])
