"""A sweep over horizons: seeds of its own for each, the rows of single measurements, and the slope of a world known exactly."""

import pandas as pd
import pytest
import torch

import varlab
from varlab import envs, policies
from varlab.analysis.slopes import slope_table
from varlab.checks import InputError
from varlab.envs.finite import FiniteMDP
from varlab.studies.horizon_sweep import horizon_sweep

HORIZONS = (2, 4, 8)
PHI = ["total_return", "advantage"]


def coin(horizon):
    """One state, r = 1 for one of two actions."""
    mdp = FiniteMDP.from_lists([[[(1.0, 0, 0.0, False)], [(1.0, 0, 1.0, False)]]], [1.0])
    env = envs.environment(mdp, horizon)
    return env, policies.SoftmaxTable(env, logits=torch.tensor([[0.0, 1.0]], dtype=torch.float64))


def test_rows_are_those_of_single_measurements_and_slopes_those_of_the_exact_variances():
    settings = {"n": 2000, "pilot": 100, "dtype": "float64"}
    table = horizon_sweep(coin, HORIZONS, PHI, seed=0, **settings)
    assert table["horizon"].tolist() == [h for h in HORIZONS for _ in PHI] and table["seed"].nunique() == len(HORIZONS)
    again = varlab.measure(*coin(4), PHI, seed=int(table["seed"][2]), **settings).summary
    pd.testing.assert_frame_equal(table[table["run"] == "4"].drop(columns="run").reset_index(drop=True), again)
    found = slope_table(table, level=0.999).set_index("phi")
    truth = slope_table(
        table.assign(**{c: table["exact_variance"] for c in ("variance", "variance_low", "variance_high")})
    ).set_index("phi")
    for phi in PHI:
        assert found.loc[phi, "slope_low"] < truth.loc[phi, "slope"] < found.loc[phi, "slope_high"], phi
    assert truth.loc["advantage", "slope"] == pytest.approx(1.0, rel=1e-10)  # the same A at every step, steps independent
    assert not found["shared_seed"].any()


def test_horizons_and_seeds_come_in_pairs():
    for horizons, seeds in (((2, 2), None), ((2, 4), [1])):
        with pytest.raises(InputError, match="seed for each"):
            horizon_sweep(coin, horizons, PHI, seeds=seeds, n=50)
