"""Tails against closed forms: Pareto samples of known index and top share, Gaussian kurtosis, values kept against all values."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import varlab
from varlab.analysis.statistics import TAIL_LIMIT
from varlab.analysis.tails import TOP, Tail, hill, tail_table, top_share
from varlab.checks import InputError


def tail_of(values, blocks=50, pieces=7):
    """Hand values over in pieces of consecutive blocks."""
    tail, owner = Tail(len(values), blocks), np.arange(len(values)) * blocks // len(values)
    for part in np.array_split(np.arange(len(values)), pieces):
        tail.add(values[part], owner[part])
    return tail, owner


def test_kept_values_give_what_all_values_give():
    """Top share and its leave-one-out values against sorting everything, with the large values crowded into one block."""
    rng = np.random.default_rng(0)
    values = rng.pareto(1.5, 3010)
    values[:60] += 50  # all of them in the first block
    tail, owner = tail_of(values)
    row = tail.row()
    ordered = np.sort(values)[::-1]
    assert row["top_share"] == pytest.approx(ordered[:31].sum() / values.sum(), rel=1e-13)
    assert row["largest_ratio"] == pytest.approx(values.max() / values.sum(), rel=1e-13)
    assert row["kurtosis"] == pytest.approx(len(values) * (values**2).sum() / values.sum() ** 2, rel=1e-13)
    assert row["tail_index"] == pytest.approx(hill(np.sqrt(ordered), len(values))[0], rel=1e-13)
    seen = []
    for b in range(50):
        rest = np.sort(values[owner != b])[::-1]
        kept = np.sort(tail.top[tail.top_block != b])[::-1]
        assert top_share(kept, rest.sum(), len(rest)) == pytest.approx(top_share(rest, rest.sum(), len(rest)), rel=1e-13)
        seen.append(len(kept))
    assert len(tail.top) < 0.05 * len(values) and min(seen) >= np.ceil(TOP * 2950)


def test_the_order_and_the_pieces_do_not_matter():
    values = np.random.default_rng(1).pareto(2.0, 2000)
    one, other = tail_of(values, pieces=1)[0].row(), tail_of(values, pieces=400)[0].row()
    assert one.keys() == other.keys()
    for key in one:
        assert one[key] == pytest.approx(other[key], rel=1e-12), key


def test_hill_on_points_of_a_power_law():
    """Log spacings that are exactly those of a quantile grid: α̂ = k / Σ log(x_i/x_{k+1})."""
    x = np.exp(np.arange(10, -1, -1) / 5.0)
    index, interval = hill(x, 100, k=10)
    assert index == pytest.approx(10 / (np.arange(1, 11).sum() / 5.0), rel=1e-14)
    assert interval.low / index == pytest.approx(stats.chi2.ppf(0.025, 20) / 20, rel=1e-12)
    assert interval.high / index == pytest.approx(stats.chi2.ppf(0.975, 20) / 20, rel=1e-12)
    assert hill(np.ones(20), 100, k=10) == (np.inf, (np.inf, np.inf))
    assert np.isnan(hill(np.zeros(20), 100, k=10)[0]) and np.isnan(hill(np.ones(5), 100, k=10)[0])
    with pytest.raises(InputError, match="descending"):
        hill(np.array([1.0, 2.0]), 2, k=1)


def coverage(draw, claims, repeats=300, n=2500):
    """Share of repeats whose interval holds each (statistic, value)."""
    rng, hits = np.random.default_rng(2), np.zeros(len(claims))
    for _ in range(repeats):
        row = tail_of(draw(rng, n), pieces=1)[0].row()
        hits += [row[f"{name}_low"] <= value <= row[f"{name}_high"] for name, value in claims]
    return hits / repeats


def test_the_interval_of_the_tail_index_covers_and_a_wrong_one_does_not():
    """s = ‖g‖² is Pareto with index 1.5, so ‖g‖ has 3; the index of s itself is the negative control."""
    right, wrong = coverage(lambda rng, n: 1 + rng.pareto(1.5, n), [("tail_index", 3.0), ("tail_index", 1.5)])
    assert abs(right - 0.95) < 0.038 and wrong == 0.0, (right, wrong)


def test_intervals_of_kurtosis_and_top_share_cover_and_wrong_ones_do_not():
    """Two normal parameters: s is exponential, E s²/(E s)² = 2, and the largest share p contributes p (1 − log p); one: 3."""
    share = TOP * (1 - np.log(TOP))
    claims = [("kurtosis", 2.0), ("top_share", share), ("kurtosis", 2.3), ("top_share", 1.3 * share)]
    kurtosis, top, *wrong = coverage(lambda rng, n: (rng.standard_normal((n, 2)) ** 2).sum(1), claims)
    assert abs(kurtosis - 0.95) < 0.038 and abs(top - 0.95) < 0.038 and max(wrong) < 0.8, (kurtosis, top, wrong)
    one, wrong = coverage(lambda rng, n: rng.standard_normal(n) ** 2, [("kurtosis", 3.0), ("kurtosis", 3.5)])
    assert abs(one - 0.95) < 0.038 and wrong < 0.8, (one, wrong)


def test_the_top_share_of_a_pareto_law():
    """p^(1 − 1/α), at a fixed seed."""
    row = tail_of(1 + np.random.default_rng(5).pareto(4.0, 200_000))[0].row()
    assert row["top_share"] == pytest.approx(TOP ** (1 - 1 / 4.0), rel=0.02)


def frame(values, phi="total_return", unit=1):
    owner = np.arange(len(values)) * 50 // len(values)
    return pd.DataFrame({"block": owner, f"norm_sq[{phi}]": values.astype(np.float32)}), pd.DataFrame(
        {"phi": [phi], "n": [len(values) * unit], "flag": [""], "group_size": [unit], "groups": [1]}
    )


def test_flags_agree_with_the_summary_and_find_infinite_fourth_moments():
    rng = np.random.default_rng(3)
    light, heavy = rng.standard_normal(4000) ** 2, 1 + rng.pareto(0.75, 4000)
    part, summary = frame(light)
    assert tail_table([part], summary)["flag"].tolist() == [""]
    assert tail_table([part], summary.assign(flag="reference-limited; heavy-tails"))["flag"].tolist() == ["heavy-tails"]
    (row,) = tail_table([frame(heavy)[0]], frame(heavy)[1]).to_dict("records")
    assert row["flag"] == "heavy-tails; fourth-moment" and row["n"] < TAIL_LIMIT * row["kurtosis"] and row["tail_index_high"] < 4


def test_a_unit_of_several_trajectories_is_one_value():
    part, summary = frame(np.random.default_rng(4).exponential(size=1000), unit=4)
    assert tail_table([part], summary)["n"].tolist() == [1000]


def test_scalars_of_another_run_are_refused():
    part, summary = frame(np.ones(1000))
    with pytest.raises(InputError, match="norm_sq"):
        tail_table([part.rename(columns={"norm_sq[total_return]": "x"})], summary)
    with pytest.raises(InputError, match="2000 units"):
        tail_table([part], summary.assign(n=2000))


def test_a_measurement_has_the_kurtosis_of_its_summary():
    env = varlab.envs.make("FrozenLake-v1", horizon=20)
    result = varlab.measure(env, varlab.policies.make("softmax_table", env), ["total_return", "advantage"], n=1000, pilot=100)
    table = tail_table([result.trajectories], result.summary)
    np.testing.assert_allclose(table["kurtosis"], result.summary["kurtosis"], rtol=1e-5)
    flagged = result.summary["flag"].str.contains("heavy-tails").to_numpy()
    assert table["flag"].str.contains("heavy-tails").to_numpy()[flagged].all()
    assert (table["kurtosis_low"] < table["kurtosis"]).all() and (table["kurtosis"] < table["kurtosis_high"]).all()
