"""Choices of free scale and natural gradients: what they are compared with, by brute force and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
from test_statistics import exact, moments_of, pairs, reference_of, run, split

from varlab.analysis.blocks import CentredBlocks
from varlab.analysis.targets import across, transformed, truth_of

RNG = np.random.default_rng(5)
GRAD = np.array([1.0, -0.5, 0.25, 0.0])


def gradients(mean, n=400, seed=0, spread=1.0):
    return np.asarray(mean) + spread * np.random.default_rng(seed).normal(size=(n, len(mean)))


def both(g):
    """The same gradients as two choices, so that one is compared with ∇J and one with its best multiple."""
    return moments_of(np.stack([g, g], 1))


def rest(x):
    return x - np.outer(x @ GRAD, GRAD) / (GRAD @ GRAD)


def test_direction_by_brute_force():
    g = gradients(3 * GRAD + np.array([0.0, 0.2, 0.4, -0.1]))
    plain, free = run(both(g), exact(GRAD), targets=["gradient", "direction"])
    means = np.stack([p.mean(0) for p in split(rest(g))])
    assert free["bias_sq"] == pytest.approx(pairs(means, np.full(50, 1 / 50)), rel=1e-9)
    variance = np.trace(np.cov(g.T))
    assert free["variance"] == plain["variance"] == pytest.approx(variance, rel=1e-12)
    assert free["mse"] == pytest.approx(free["bias_sq"] + variance / 7, rel=1e-9)
    assert free["nsr"] == pytest.approx(variance / (g.mean(0) @ g.mean(0) - variance / len(g)), rel=1e-9)
    assert free["nsr_low"] < free["nsr"] < free["nsr_high"]
    assert free["cosine"] == plain["cosine"]
    assert math.isnan(free["variance_ratio"]) and math.isnan(free["variance_ratio_low"]) and plain["variance_ratio"] == 1
    assert plain["bias_sq"] > 10 * free["bias_sq"]


@pytest.mark.parametrize("scale", (0.1, 20.0))
def test_direction_does_not_depend_on_the_scale(scale):
    """bias_sq, mse and variance in units of ‖E ĝ‖², and p-value, nsr and cosine as they are."""
    g = gradients(3 * GRAD + np.array([0.0, 0.2, 0.4, -0.1]), seed=3)
    one, other = (run(both(x), exact(GRAD), targets=["gradient", "direction"])[1] for x in (g, scale * g))
    for name in ("nsr", "nsr_low", "nsr_high", "cosine", "cosine_low", "cosine_high", "bias_p_value", "kurtosis"):
        assert other[name] == pytest.approx(one[name], rel=1e-9), name
    for name in ("bias_sq", "bias_sq_low", "bias_sq_high", "mse", "mse_low", "mse_high", "variance"):
        assert other[name] == pytest.approx(scale**2 * one[name], rel=1e-9), name


def test_natural_is_the_plain_comparison_after_the_matrix():
    a = RNG.normal(size=(4, 4))
    g, h = gradients(GRAD + 0.1, seed=1), gradients(GRAD, n=900, seed=2)
    natural = run(both(g @ a.T), reference_of(h), targets=["natural"] * 2, matrices={0: a, 1: a})[0]
    plain = run(both(g @ a.T), reference_of(h @ a.T))[0]
    for name in ("bias_sq", "mse", "nsr", "cosine", "grad_norm", "variance"):
        assert natural[name] == pytest.approx(plain[name], rel=1e-9), name
    assert natural["grad_norm"] == pytest.approx(np.linalg.norm(a @ GRAD), rel=0.1)
    assert math.isnan(natural["variance_ratio"])
    assert run(both(g @ a.T), reference_of(h))[0]["bias_p_value"] < 0.01  # against ∇J itself it is wrong


def test_a_transformed_reference_is_the_matrix_times_every_block():
    a, reference = RNG.normal(size=(3, 4)), reference_of(gradients(GRAD, seed=4))
    made = transformed(reference, a)
    np.testing.assert_allclose(made.grad, a @ reference.grad)
    np.testing.assert_allclose(made.block_mean[7], a @ reference.block_mean[7])
    assert transformed(exact(GRAD), a).block_mean is None


def test_the_error_of_the_reference_turns_the_rest():
    """First order: with ∇J + e in place of ∇J, the rest of E ĝ moves by −c (I − u uᵀ) e."""
    mean, e = 3 * GRAD + np.array([0.0, 0.2, 0.4, -0.1]), 1e-6 * RNG.normal(size=4)

    def left(grad):
        u = grad / np.linalg.norm(grad)
        return mean - (mean @ u) * u

    h = gradients(GRAD, seed=6)
    reference = reference_of(h)
    truth = truth_of(reference, np.random.default_rng(0), 1999, 0.95)
    grad = truth.grad
    choice = CentredBlocks.of(np.full(50, 8), np.tile(mean, (50, 1)))
    made, zero = across(choice, truth)
    np.testing.assert_allclose(made.mean, left(grad), atol=1e-12)
    moved = left(grad + e) - left(grad)
    u, multiple = grad / np.linalg.norm(grad), mean @ grad / (grad @ grad)
    off = moved + multiple * (e - (e @ u) * u)
    along = (left(grad) @ e) / np.linalg.norm(grad) * u  # what turns back into ∇J's own direction is orthogonal to the rest
    assert np.linalg.norm(off + along) < 1e-10
    np.testing.assert_allclose(zero.blocks.dev, multiple * (truth.blocks.dev - np.outer(truth.blocks.dev @ u, u)), atol=1e-14)
    assert np.all(zero.grad == 0)


def repeated(mean, seeds, sampled, n=400):
    """Rows of the free choice over independent repetitions; the reference has four times the trajectories."""
    out = []
    for seed in seeds:
        reference = reference_of(gradients(GRAD, n=4 * n, seed=10_000 + seed)) if sampled else exact(GRAD)
        out.append(run(both(gradients(mean, n=n, seed=seed)), reference, targets=["gradient", "direction"], seed=seed)[1])
    return out


@pytest.mark.parametrize("sampled", (False, True), ids=("exact", "sampled"))
def test_false_alarms_and_coverage_of_a_pure_multiple(sampled):
    """E ĝ = 3 ∇J: no bias of direction. 300 repetitions: 5 % false alarms within four standard errors (5 %)."""
    rows = repeated(3 * GRAD, range(300), sampled)
    alarms = np.mean([r["bias_p_value"] < 0.05 for r in rows])
    assert alarms < 0.10
    assert np.mean([r["bias_sq_low"] == 0 for r in rows]) > 0.9
    values = np.array([r["bias_sq"] for r in rows])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    naive = [run(both(gradients(3 * GRAD, seed=s)), exact(GRAD))[0]["bias_p_value"] for s in range(5)]
    assert max(naive) < 0.01  # against ∇J itself the multiple is a bias


@pytest.mark.parametrize("sampled", (False, True), ids=("exact", "sampled"))
def test_a_bias_of_direction_is_found_and_covered(sampled):
    off = np.array([0.0, 0.0, 0.0, 0.4])
    rows = repeated(3 * GRAD + off, range(300), sampled)
    truth = float(off @ off)
    covered = np.mean([r["bias_sq_low"] <= truth <= r["bias_sq_high"] for r in rows])
    assert 0.91 < covered <= 0.99
    assert np.mean([r["bias_p_value"] < 0.05 for r in rows]) > 0.95
    values = np.array([r["bias_sq"] for r in rows])
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))


def test_units_scale_variance_and_nsr_and_leave_the_rest():
    """Units of 4 trajectories: 4 tr Cov ĝ is the variance of one trajectory; N trajectories are N/4 units."""
    g = gradients(GRAD + 0.1, n=400)
    made = both(g)
    one = run(made, exact(GRAD), batch_size=3)[0]
    four = run(replace(made, count=4 * made.count, unit=4), exact(GRAD), batch_size=12)[0]
    for name in ("variance", "variance_low", "variance_high", "nsr", "nsr_low", "nsr_high"):
        assert four[name] == pytest.approx(4 * one[name], rel=1e-12), name
    for name in ("bias_sq", "bias_p_value", "mse", "mse_low", "mse_high", "cosine", "cosine_low", "kurtosis", "grad_norm"):
        assert four[name] == pytest.approx(one[name], rel=1e-12), name
    assert four["mse"] == pytest.approx(four["bias_sq"] + four["variance"] / 12, rel=1e-9)
