"""Variance by layer: against exact diag Cov, against the whole trace, and the coverage of shares."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from torch import nn
from torch.distributions import Categorical

import varlab
from varlab import envs
from varlab.analysis.intervals import positive_interval, share_interval
from varlab.analysis.layers import layer_table
from varlab.checks import InputError
from varlab.types import Moments

PHI = ["total_return", "reward_to_go", "advantage"]


class TwoTables(nn.Module):
    """Logits on two tables, one of half the size, so that layers differ; the smaller one first."""

    def __init__(self, states, actions):
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.table = nn.Parameter(torch.randn(actions) * 0.5), nn.Embedding(states, actions)

    def forward(self, obs):
        return Categorical(logits=self.table(obs) + self.shared)


@pytest.fixture(scope="module")
def world():
    env = envs.environment(random_mdp(3), 4)
    policy = TwoTables(3, 2).double()
    return env, policy, varlab.measure(env, policy, PHI, n=4000, pilot=100, dtype="float64")


def test_layers_sum_to_the_variance_and_shares_to_one(world):
    _, _, result = world
    assert result.layers == {"shared": 2, "table.weight": 6}
    for by in ("tensor", "module"):
        table = layer_table(result.moments, result.layers, by)
        sums = table.groupby("phi", sort=False)[["variance", "share"]].sum()
        np.testing.assert_allclose(sums["variance"], result.summary["variance"], rtol=1e-12)
        np.testing.assert_allclose(sums["share"], 1.0, rtol=1e-14)


def test_layers_are_those_of_the_exact_covariance(world):
    env, policy, result = world
    exact = varlab.exact(env, policy, PHI).variance_per_parameter
    table = layer_table(result.moments, result.layers, level=0.999)
    cut = {"shared": slice(0, 2), "table.weight": slice(2, 8)}
    for row in table.itertuples():
        diagonal = exact[PHI.index(row.phi)]
        truth = diagonal[cut[row.layer]].sum()
        assert row.variance_low < truth < row.variance_high and abs(row.variance / truth - 1) < 0.15, row
        share = truth / diagonal.sum()
        assert row.share_low < share < row.share_high and row.share_high - row.share_low < 0.05, row
    swapped = layer_table(result.moments, {"table.weight": 6, "shared": 2}, level=0.999)  # negative control: wrong order
    first = swapped[(swapped["phi"] == PHI[0]) & (swapped["layer"] == "shared")].iloc[0]
    assert not first["share_low"] < exact[0, :2].sum() / exact[0].sum() < first["share_high"]


def gaussian_moments(rng, scales, blocks=50, size=40):
    g = rng.standard_normal((blocks, size, 1, len(scales))) * scales
    mean = g.mean(1)
    m2 = np.square(g - mean[:, None]).sum(1)
    rest = dict.fromkeys(("cross", "m4", "m2c"), np.zeros((blocks, 1)))
    return Moments(np.arange(blocks), np.full(blocks, size), mean, m2.sum(2), m2, steps=np.full(blocks, 1), names=("a",), **rest)


def test_the_interval_of_a_share_covers_and_a_wrong_one_does_not():
    scales, rng, hits, wrong = np.array([1.0, 1.0, 2.0, 0.5]), np.random.default_rng(0), 0, 0
    truth = 2.0 / (scales**2).sum()
    for _ in range(300):
        row = layer_table(gaussian_moments(rng, scales), {"one": 2, "two": 2}).iloc[0]
        hits += row["share_low"] < truth < row["share_high"]
        wrong += row["share_low"] < 1.15 * truth < row["share_high"]
    assert abs(hits / 300 - 0.95) < 0.038, hits
    assert wrong < 200


def test_units_scale_variances_and_leave_shares():
    m = gaussian_moments(np.random.default_rng(1), np.array([1.0, 2.0]))
    one = layer_table(m, {"a": 1, "b": 1})
    four = layer_table(replace(m, count=4 * m.count, unit=4), {"a": 1, "b": 1})
    np.testing.assert_allclose(four["variance"], 4 * one["variance"], rtol=1e-14)
    np.testing.assert_allclose(four["share"], one["share"], rtol=1e-14)


def test_tensors_of_a_module_are_added_up():
    m = gaussian_moments(np.random.default_rng(2), np.array([1.0, 2.0, 3.0]))
    tensors = layer_table(m, {"net.0.weight": 1, "net.0.bias": 1, "log_std": 1}).set_index("layer")
    modules = layer_table(m, {"net.0.weight": 1, "net.0.bias": 1, "log_std": 1}, by="module").set_index("layer")
    assert list(modules.index) == ["net.0", "log_std"] and modules.loc["net.0", "parameters"] == 2
    both = tensors.loc["net.0.weight", "variance"] + tensors.loc["net.0.bias", "variance"]
    assert modules.loc["net.0", "variance"] == pytest.approx(both, rel=1e-14)


def test_one_layer_has_all_and_none_has_a_share_of_nothing():
    m = gaussian_moments(np.random.default_rng(3), np.array([1.0, 2.0]))
    (row,) = layer_table(m, {"all": 2}).to_dict("records")
    assert (row["share"], row["share_low"], row["share_high"]) == (1.0, 1.0, 1.0)
    still = replace(m, mean=np.ones_like(m.mean), m2=np.zeros_like(m.m2), trace_m2=np.zeros_like(m.trace_m2))
    assert layer_table(still, {"a": 1, "b": 1})["share"].isna().all()


def test_traces_alone_and_foreign_layers_are_refused():
    m = gaussian_moments(np.random.default_rng(4), np.array([1.0, 2.0]))
    with pytest.raises(InputError, match="per_parameter=true"):
        layer_table(replace(m, m2=None), {"a": 2})
    with pytest.raises(InputError, match="measure it again"):
        layer_table(m, {})
    with pytest.raises(InputError, match="Layers of 2 entries"):
        layer_table(m, {"a": 3})


def test_intervals_leave_each_block_out_of_layer_and_whole():
    m = gaussian_moments(np.random.default_rng(5), np.array([1.0, 2.0, 0.5]), blocks=12)
    names, layers = [k for k, v in vars(m).items() if isinstance(v, np.ndarray)], {"a": 1, "b": 2}
    table = layer_table(m, layers)
    without = [layer_table(replace(m, **{k: np.delete(getattr(m, k), b, 0) for k in names}), layers) for b in range(12)]
    for i, row in table.iterrows():
        assert (row["share_low"], row["share_high"]) == pytest.approx(
            share_interval(row["share"], [np.array([t["share"][i] for t in without])]), rel=1e-10
        )
        assert (row["variance_low"], row["variance_high"]) == pytest.approx(
            positive_interval(row["variance"], [np.array([t["variance"][i] for t in without])]), rel=1e-10
        )
