"""What heavy tails and small samples ask of the statistics: degrees of freedom, the null of the bias test, proofs, flags."""

import math

import numpy as np
import pytest
from scipy import stats

from varlab.analysis import bias, intervals
from varlab.analysis.blocks import CentredBlocks
from varlab.analysis.statistics import TAIL_LIMIT, summarise
from varlab.types import Moments, Reference


def moments(g, blocks=50):
    """Block moments of gradients g [n, K, P]."""
    parts = np.split(g, blocks)
    square = np.stack([((x - x.mean(0)) ** 2).sum((0, 2)) for x in parts])
    cross = np.stack([((x - x.mean(0)) * (x - x.mean(0))[:, :1]).sum((0, 2)) for x in parts])
    about = np.square(g - g.mean(0)).sum(2)
    split = np.split(about, blocks)
    return Moments(
        block_id=np.arange(blocks),
        count=np.full(blocks, len(g) // blocks),
        mean=np.stack([x.mean(0) for x in parts]),
        trace_m2=square,
        m2=None,
        cross=cross,
        m4=np.stack([np.square(x).sum(0) for x in split]),
        m2c=np.stack([x.sum(0) for x in split]),
        steps=np.full(blocks, 1),
        names=tuple(f"phi{k}" for k in range(g.shape[1])),
    )


def reference(grad, blocks=None):
    count = None if blocks is None else np.full(len(blocks), 100)
    n = 0 if blocks is None else 100 * len(blocks)
    return Reference(np.asarray(grad, dtype=float), blocks, count, 0.0, "exact" if blocks is None else "sampled", n, "J_1")


def test_degrees_of_freedom_are_those_of_a_normal_sample_without_excess_kurtosis():
    flat = np.tile([-1.0, 1.0], 25)
    assert intervals.degrees_of_freedom(flat) == pytest.approx(49)
    assert intervals.degrees_of_freedom(np.full(50, 7.0)) == 49
    one = np.zeros(50)
    one[0] = 1.0
    assert intervals.degrees_of_freedom(one) == intervals.LEAST_DEGREES
    x = np.random.default_rng(8).exponential(size=50)
    excess = stats.kurtosis(x)
    assert 1 < excess < 8
    assert intervals.degrees_of_freedom(x) == pytest.approx(2 / (2 / 49 + intervals.TAIL * excess / 50))


def test_degrees_of_freedom_match_the_spread_of_a_variance_estimate():
    """Var s²/σ⁴ = 2/ν for gamma blocks, with the true kurtosis in place of the sample's."""
    rng, shape = np.random.default_rng(0), 2.0
    s = rng.gamma(shape, size=(100_000, 50)).var(1, ddof=1) / shape
    assert s.var() == pytest.approx(2 / 49 + (6 / shape) / 50, rel=0.05)


def rows_about(share, toward, dev, d):
    return share[:, None] * (dev + toward[:, None] * d)


def test_null_gram_is_that_of_blocks_about_the_value_under_no_bias():
    rng = np.random.default_rng(1)
    x, r = rng.standard_normal((12, 3)) + 1.0, rng.standard_normal((9, 3))
    a, b = np.full(12, 1 / 12), np.full(9, 1 / 9)
    d, common = x.mean(0) - r.mean(0), 0.8 * r.mean(0) + 0.2 * x.mean(0)
    expected = np.concatenate([(x - common) / 12, -(r - common) / 9])
    dev = np.concatenate([x - x.mean(0), r - r.mean(0)])
    share, toward = np.concatenate([a, -b]), np.concatenate([np.full(12, 0.8), np.full(9, -0.2)])
    got = bias.null_gram(share, toward, dev @ dev.T, dev @ d, d @ d)
    np.testing.assert_allclose(got, expected @ expected.T, atol=1e-13)
    assert got.sum() == pytest.approx(d @ d)


def test_the_sign_test_keeps_its_level_and_centring_at_the_mean_does_not():
    """Few blocks of symmetric noise: the test is exact about 0, and liberal about the blocks' own mean."""
    rng, own, null = np.random.default_rng(2), 0, 0
    signs = bias.random_signs(rng, 399, 10)
    weight = np.full(10, 0.1)
    for _ in range(2000):
        blocks = CentredBlocks.of(np.full(10, 1), rng.standard_t(4, (10, 3)))
        norm_sq, inner = blocks.mean @ blocks.mean, blocks.dev @ blocks.mean
        factor = weight * 1.0
        gram = factor[:, None] * blocks.gram * factor
        about_zero = bias.null_gram(weight, np.ones(10), blocks.gram, inner, norm_sq)
        own += bias.sign_multiplier(norm_sq, factor * inner, gram, signs, 9).p_value <= 0.05
        null += bias.sign_multiplier(norm_sq, factor * inner, gram, signs, 9, null=about_zero).p_value <= 0.05
    limit = stats.binom.ppf([1e-4, 1 - 1e-4], 2000, 0.05)
    assert limit[0] <= null <= limit[1]
    assert own > limit[1]


def test_the_lower_end_of_a_squared_bias_is_zero_unless_the_test_rejects():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.02, 0.06, 0.1):
        g = rng.standard_normal((500, 1, 4)) + shift
        row = summarise(moments(g), reference(np.zeros(4)), batch_size=10, rng=np.random.default_rng(0))[0]
        assert (row["bias_sq_low"] > 0) == (row["bias_p_value"] < 0.025)


def test_cosine_of_a_proven_unbiased_choice_is_a_function_of_its_nsr():
    rng = np.random.default_rng(4)
    g = rng.standard_t(5, (1000, 2, 4)) + np.array([1.0, 0.5, 0.0, 0.0])
    grad = np.array([1.0, 0.5, 0.0, 0.0])
    first, second = (
        summarise(moments(g), reference(grad), batch_size=20, rng=np.random.default_rng(0), unbiased=u)
        for u in (None, [True, False])
    )
    row = second[0]
    for cosine, nsr in (("cosine", "nsr"), ("cosine_low", "nsr_high"), ("cosine_high", "nsr_low")):
        assert row[cosine] == pytest.approx(1 / math.sqrt(1 + row[nsr] / 20))
    assert row["mse_low"] == min(row["mse"], row["variance_low"] / 20)
    assert row["mse_high"] == max(row["mse"], row["variance_high"] / 20)
    assert row["bias_sq"] == first[0]["bias_sq"]
    assert row["cosine"] == pytest.approx(first[0]["cosine"], rel=0.1)
    assert row["cosine"] != first[0]["cosine"]
    assert second[1] == first[1]


def test_a_proof_says_nothing_where_the_gradient_is_not_resolved():
    rng = np.random.default_rng(5)
    g, blocks = rng.standard_normal((1000, 1, 4)), rng.standard_normal((50, 4)) / 10
    row = summarise(moments(g), reference(blocks.mean(0), blocks), batch_size=20, rng=rng, unbiased=[True])[0]
    assert "gradient-not-resolved" in row["flag"]
    assert math.isnan(row["cosine"]) or row["cosine_low"] == 0
    assert row["nsr_high"] == math.inf


def test_heavy_tails_are_flagged_by_the_pilot_and_not_by_the_sample():
    g = np.random.default_rng(6).standard_normal((1000, 2, 4))
    rows = summarise(
        moments(g), reference(np.ones(4)), batch_size=20, rng=np.random.default_rng(0),
        pilot_kurtosis=[1000 / TAIL_LIMIT - 1, 1000 / TAIL_LIMIT + 1],
    )  # fmt: skip
    assert [r["flag"] for r in rows] == ["", "heavy-tails"]
    heavy = g * np.exp(2.5 * np.random.default_rng(7).standard_normal((1000, 1, 1)))
    row = summarise(moments(heavy), reference(np.ones(4)), batch_size=20, rng=np.random.default_rng(0), pilot_kurtosis=[3, 3])[0]
    assert row["kurtosis"] > 1000 / TAIL_LIMIT
    assert row["flag"] == ""
