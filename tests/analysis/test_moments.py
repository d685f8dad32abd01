"""Block moments against a plain two-pass computation over stored gradients."""

import numpy as np
import pytest
import torch

from varlab.analysis.moments import Block, collect, keep_per_parameter
from varlab.checks import InputError
from varlab.scores.base import BatchScores, slices

K, P, R = 3, 7, 2
FIELDS = ("mean", "trace_m2", "m2", "cross", "m4", "m2c")


class StoredGradients(BatchScores):
    """A score map that gives prepared gradients [C, K, P], two uneven and unordered pieces at a time."""

    num_parameters = P

    def __init__(self, gradients):
        self.gradients = gradients

    def tiles(self, phi, multiple=1):
        for index, size in ((torch.tensor([6, 1, 3, 0]), 3), (torch.tensor([2, 5, 4]), 5)):
            for rows in slices(len(phi), size, multiple):
                yield rows, index, self.gradients[rows][..., index].clone()

    def rows(self, index):
        return StoredGradients(self.gradients[index])

    def apply_sum(self, phi):
        raise AssertionError("moments need single gradients")



def draw(n, seed=0, dtype=torch.float64):
    """Correlated choices with skewed noise of unequal size, means unlike zero."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, P, generator=generator, dtype=torch.float64)
    own = torch.randn(n, K, P, generator=generator, dtype=torch.float64).exp()
    spread = torch.linspace(0.5, 3.0, P, dtype=torch.float64) * torch.tensor([[1.0], [0.3], [2.0]], dtype=torch.float64)
    return (5.0 + (common + own) * spread).to(dtype)


def fill(gradients, center, chunks, comparator=0, per_parameter=True, directions=None):
    """One block from ``gradients`` [n, K, P], in chunks of the given sizes; returns it and what ``add`` gave."""
    directions = torch.zeros(0, P, dtype=torch.float64) if directions is None else directions
    block = Block(center, directions, comparator, per_parameter)
    made = [block.add(StoredGradients(g), torch.zeros(*g.shape[:2], 4, dtype=g.dtype)) for g in gradients.split(chunks)]
    return block, torch.cat([m[0] for m in made]), torch.cat([m[1] for m in made])


def two_pass(gradients, center, comparator):
    """Every field of one block by loops over trajectories, in float64."""
    g, c = gradients.double().numpy(), center.numpy()
    mean = g.mean(0)
    return {
        "mean": mean,
        "m2": sum((x - mean) ** 2 for x in g),
        "trace_m2": np.array([sum(np.sum((x[k] - mean[k]) ** 2) for x in g) for k in range(K)]),
        "cross": np.array([sum(np.dot(x[k] - mean[k], x[comparator] - mean[comparator]) for x in g) for k in range(K)]),
        "m4": np.array([sum(np.sum((x[k] - c[k]) ** 2) ** 2 for x in g) for k in range(K)]),
        "m2c": np.array([sum(np.sum((x[k] - c[k]) ** 2) for x in g) for k in range(K)]),
    }


def near(gradients):
    """A centre such as a pilot gives: near the mean, not at it."""
    return gradients.double().mean(0) + 0.3


@pytest.mark.parametrize("comparator", range(K))
@pytest.mark.parametrize("offset", (0.0, 0.3, 30.0), ids=("at the mean", "near", "far"))
def test_block_is_the_two_pass_computation(offset, comparator):
    g = draw(53)
    center = g.mean(0) + offset
    mine = fill(g, center, [20, 1, 32], comparator)[0].finish()
    for name, expected in two_pass(g, center, comparator).items():
        np.testing.assert_allclose(mine[name], expected, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
def test_chunks_do_not_matter(dtype):
    g = draw(60, dtype=dtype)
    results = [fill(g, near(g), chunks)[0].finish() for chunks in ([60], [1] * 60, [7, 23, 30], [59, 1])]
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    for other in results[1:]:
        for name in FIELDS:
            np.testing.assert_allclose(other[name], results[0][name], rtol=tolerance, err_msg=name)


def test_float32_gradients_are_accumulated_in_float64():
    """200,000 trajectories in float32 chunks: a float32 accumulator would drift in the fourth digit or worse."""
    g = draw(1000, dtype=torch.float32)
    block = Block(near(g), torch.zeros(0, P, dtype=torch.float64), 0, True)
    phi = torch.zeros(1000, K, 4)
    for _ in range(200):
        block.add(StoredGradients(g), phi)
    expected = two_pass(g, near(g), 0)
    mine = block.finish()
    assert mine["mean"].dtype == mine["trace_m2"].dtype == np.float64
    np.testing.assert_allclose(mine["mean"], expected["mean"], rtol=2e-6)
    for name in ("m2", "trace_m2", "cross"):
        np.testing.assert_allclose(mine[name], 200 * expected[name], rtol=2e-5, err_msg=name)


def test_digits_survive_a_mean_of_ten_million_spreads():
    """With the centre near the mean; measured from zero the same sums lose everything (negative control)."""
    spread = draw(500)
    g = 1e7 + spread
    expected = two_pass(spread, near(spread), 0)
    mine = fill(g, 1e7 + near(spread), [128, 128, 244])[0].finish()
    for name in ("m2", "trace_m2", "cross"):
        np.testing.assert_allclose(mine[name], expected[name], rtol=1e-7, err_msg=name)
    np.testing.assert_allclose(mine["mean"] - 1e7, expected["mean"], rtol=1e-7)
    careless = fill(g, torch.zeros(K, P, dtype=torch.float64), [128, 128, 244])[0].finish()
    assert np.abs(careless["m2"] / expected["m2"] - 1).max() > 1e-6


def test_without_moments_per_parameter_the_rest_is_the_same():
    g = draw(40)
    whole, traces = (fill(g, near(g), [15, 25], per_parameter=p)[0].finish() for p in (True, False))
    assert traces["m2"] is None
    for name in FIELDS:
        if name != "m2":
            np.testing.assert_allclose(traces[name], whole[name], rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(whole["m2"].sum(1), whole["trace_m2"], rtol=1e-14)


def test_scalars_of_each_trajectory():
    """‖g − c_Φ‖² [C, K] and ⟨g − c_Φ, direction⟩ [C, K, R]."""
    g = draw(30)
    center = near(g)
    directions = torch.randn(R, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, norm_sq, dot = fill(g, center, [11, 19], directions=directions)
    for i in range(30):
        for k in range(K):
            h = g[i, k] - center[k]
            assert float(norm_sq[i, k]) == pytest.approx(float(h @ h), rel=1e-12)
            for r in range(R):
                assert float(dot[i, k, r]) == pytest.approx(float(h @ directions[r]), rel=1e-10, abs=1e-10)
    assert norm_sq.dtype == dot.dtype == torch.float64


def test_cross_with_itself_is_the_trace_and_a_copy_has_the_same():
    g = draw(40)
    g[:, 2] = g[:, 1]
    mine = fill(g, near(g), [40], comparator=1)[0].finish()
    assert mine["cross"][1] == mine["trace_m2"][1]
    assert mine["cross"][2] == pytest.approx(mine["trace_m2"][1], rel=1e-12)


def test_a_constant_gradient_has_no_negative_square():
    """Rounding must not make a sum of squares negative, whatever the centre."""
    g = torch.full((50, K, P), 1 / 3, dtype=torch.float64)
    for per_parameter in (True, False):
        mine = fill(g, torch.full((K, P), 0.1, dtype=torch.float64), [17, 33], per_parameter=per_parameter)[0].finish()
        assert mine["trace_m2"].min() >= 0 and mine["trace_m2"].max() < 1e-13
        assert mine["m2"] is None or mine["m2"].min() >= 0


def test_one_trajectory_has_no_spread():
    g = draw(1)
    mine = fill(g, near(g), [1])[0].finish()
    np.testing.assert_allclose(mine["mean"], g[0].numpy(), rtol=1e-14)
    np.testing.assert_allclose(mine["trace_m2"], 0, atol=1e-12)


def shard(gradients, center, sizes, first):
    blocks = []
    for part in gradients.split(sizes):
        block, *_ = fill(part, center, [len(part)])
        block.steps = 10 * len(part)
        blocks.append(block)
    return collect(blocks, ("a", "b", "c"), first_block=first)


def test_collect_stacks_blocks_in_order():
    g = draw(30)
    made = shard(g, near(g), [12, 10, 8], 4)
    assert made.block_id.tolist() == [4, 5, 6] and made.count.tolist() == [12, 10, 8] and made.steps.tolist() == [120, 100, 80]
    assert made.n == 30 and made.names == ("a", "b", "c") and made.comparator == 0
    for b, part in enumerate(g.split([12, 10, 8])):
        for name, expected in two_pass(part, near(g), 0).items():
            np.testing.assert_allclose(getattr(made, name)[b], expected, rtol=1e-10, err_msg=name)


def test_merging_shards_in_any_order_is_one_run():
    g, sizes = draw(60), [10] * 6
    center = near(g)
    whole = shard(g, center, sizes, 0)
    a, b, c = (shard(g[20 * i : 20 * i + 20], center, [10, 10], 2 * i) for i in range(3))
    for merged in (a.merge(b).merge(c), c.merge(a).merge(b), a.merge(c.merge(b))):
        for name in ("block_id", "count", "steps", *FIELDS):
            assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


def test_merging_refuses_a_block_that_occurs_twice():
    g = draw(20)
    a, b = (shard(g, near(g), [10, 10], first) for first in (0, 1))
    with pytest.raises(InputError, match=r"ids \[1\] occur in both"):
        a.merge(b)


def test_blocks_pool_to_the_moments_of_all():
    """Parallel variance: Σ trace_m2 + Σ n_b ‖mean_b − mean‖² is the two-pass sum over everything."""
    g = draw(60)
    made = shard(g, near(g), [25, 5, 30], 0)
    pooled = (made.count[:, None, None] * made.mean).sum(0) / made.n
    between = (made.count[:, None] * ((made.mean - pooled) ** 2).sum(2)).sum(0)
    expected = two_pass(g, near(g), 0)
    np.testing.assert_allclose(pooled, expected["mean"], rtol=1e-12)
    np.testing.assert_allclose(made.trace_m2.sum(0) + between, expected["trace_m2"], rtol=1e-10)
    np.testing.assert_allclose(made.m4.sum(0), expected["m4"], rtol=1e-10)


@pytest.mark.parametrize(
    ("limit", "wanted", "kept"),
    [(50 * 3 * 10 * 20, True, True), (50 * 3 * 10 * 20 - 1, True, False), (50 * 3 * 10 * 12, True, False),
     (50 * 3 * 10 * 12, False, False), (10**9, False, False)],
)  # fmt: skip
def test_memory_limit_drops_moments_per_parameter_and_says_so(limit, wanted, kept):
    found, sentence = keep_per_parameter(50, 3, 10, limit, wanted)
    assert found is kept
    assert bool(sentence) is (wanted and not kept)
    assert not sentence or (str(limit) in sentence and "memory_limit" in sentence)


def test_block_means_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"50 blocks × 3 Φ × 10 parameters take 18000; raise memory_limit"):
        keep_per_parameter(50, 3, 10, 17_999, False)
