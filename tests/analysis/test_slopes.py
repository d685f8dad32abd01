"""Fitted slopes: exact powers, coverage, misfit, and tables of sweeps."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from varlab.analysis import tables
from varlab.analysis.slopes import fitted_slope, slope_table
from varlab.checks import InputError

X = np.array([10.0, 20.0, 50.0, 100.0])


def test_a_power_law_has_its_exponent_and_no_width():
    found = fitted_slope(X, 3 * X**1.7)
    assert found.value == pytest.approx(1.7, rel=1e-13) and found.low == found.value == found.high
    assert np.exp(found.intercept) == pytest.approx(3.0, rel=1e-12) and np.isnan(found.misfit_p_value)


def noisy(rng, law, error):
    y = law * np.exp(error * rng.standard_normal(4))
    half = np.exp(stats.norm.ppf(0.975) * error)
    return fitted_slope(X, y, y / half, y * half)


def test_the_interval_covers_and_a_wrong_slope_is_outside():
    rng, error = np.random.default_rng(0), np.array([0.05, 0.1, 0.02, 0.08])
    found = [noisy(rng, X**2, error) for _ in range(1000)]
    held = np.mean([f.low <= 2.0 <= f.high for f in found])
    assert abs(held - 0.95) < 0.021, held
    assert np.mean([f.low <= 2.25 <= f.high for f in found]) < 0.25
    p = np.array([f.misfit_p_value for f in found])
    assert abs((p < 0.05).mean() - 0.05) < 0.021 and stats.kstest(p, "uniform").pvalue > 1e-3


def test_what_is_no_power_law_shows_as_misfit():
    rng = np.random.default_rng(1)
    p = [noisy(rng, X**2 + 300 * X**0.5, np.full(4, 0.03)).misfit_p_value for _ in range(50)]
    assert np.mean(np.array(p) < 0.01) > 0.9


def test_a_level_scales_the_interval_as_a_normal_one():
    wide, usual = (fitted_slope(X, X, X / 1.1, X * 1.1, level=level) for level in (0.99, 0.95))
    ratio = stats.norm.ppf(0.995) / stats.norm.ppf(0.975)
    assert wide.high - wide.value == pytest.approx(ratio * (usual.high - usual.value), rel=1e-12)


@pytest.mark.parametrize(
    "bad", [([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, -2.0]), ([0.0, 2.0], [1.0, 2.0])]
)
def test_what_has_no_slope_is_refused(bad):
    with pytest.raises(InputError, match="expected"):
        fitted_slope(*bad)


def sweep(**changes):
    rows = []
    for horizon in (10, 20, 40):
        for seed in (1, 2):
            for k, phi in enumerate(("total_return", "advantage")):
                y = (2.0 + k) * horizon ** (2.0 - k) * (1.1 if seed == 1 else 1 / 1.1)
                rows.append({
                    "env": "e", "phi": phi, "horizon": horizon, "cut": horizon, "gamma": 1.0, "seed": 100 * horizon + seed,
                    "objective": "J_1", "variance": y, "variance_low": y / 1.2, "variance_high": y * 1.2,
                    "run": f"{horizon}{seed}",
                })  # fmt: skip
    return pd.DataFrame(rows).assign(**changes)


def test_a_sweep_gives_one_slope_for_every_phi():
    found = slope_table(sweep()).set_index("phi")
    assert found["slope"].to_dict() == pytest.approx({"total_return": 2.0, "advantage": 1.0})
    assert (found["points"] == 3).all() and not found["shared_seed"].any()
    weight = (np.log([10, 20, 40]) - np.log(20)) / (2 * np.log(2) ** 2)
    half = np.sqrt((weight**2).sum()) * np.log(1.2) / np.sqrt(2)  # two seeds are averaged
    assert found.loc["advantage", "slope_high"] - 1.0 == pytest.approx(half, rel=1e-10)
    assert slope_table(sweep(seed=7).drop_duplicates(["phi", "horizon"]))["shared_seed"].all()


def test_a_phi_without_variance_has_no_slope_and_spares_the_others():
    table = sweep()
    table.loc[(table["phi"] == "advantage") & (table["horizon"] == 10), ["variance", "variance_low", "variance_high"]] = 0.0
    found = slope_table(table).set_index("phi")
    assert np.isnan(found.loc["advantage", "slope"]) and found.loc["total_return", "slope"] == pytest.approx(2.0)


def test_another_setting_parts_the_table():
    two = pd.concat([sweep(), sweep(gamma=0.9, run="g")], ignore_index=True)
    assert len(slope_table(two)) == 4 and set(slope_table(two)["gamma"]) == {1.0, 0.9}


def test_a_cut_that_is_the_horizon_is_no_setting_of_its_own():
    assert tables.varying(sweep()) == ["horizon", "seed"]
    assert tables.varying(sweep(cut=5, horizon=50)) == ["seed"]
    both = pd.concat([sweep(horizon=50, cut=c) for c in (5, 50)], ignore_index=True)
    assert "cut" in tables.varying(both)


def test_missing_columns_and_still_settings_are_refused():
    with pytest.raises(InputError, match="column of the table"):
        slope_table(sweep(), x="horizons")
    with pytest.raises(InputError, match="sweep it with -m"):
        slope_table(sweep(horizon=10))
    shared = sweep(nsr=1.0, nsr_low=0.5, nsr_high=2.0, reference_kind="value_baseline", reference_digest="r")
    with pytest.raises(InputError, match="reference.seed"):
        slope_table(shared, y="nsr")
