"""Digits that survive: moments of float64 gradients against rational arithmetic, where the mean is ten million spreads from 0.

The exact value is the one of the stored float64 numbers, each of which is a fraction; nothing in it is rounded.
"""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs
from varlab.analysis.blocks import CentredBlocks, pooled_variance
from varlab.analysis.moments import Block, collect
from varlab.analysis.statistics import summarise
from varlab.checks import InputError
from varlab.policies import SoftmaxTable
from varlab.scores.base import BatchScores
from varlab.types import Reference

K, P, B, SIZE = 2, 3, 50, 40
NAMES = ("comparator", "other")
SPREADS = 1e7


class Stored(BatchScores):
    """A score map whose gradients [C, K, P] are prepared; it hands them out in two pieces, as for two parameter tensors."""

    num_parameters = P

    def __init__(self, gradients):
        self.gradients = gradients

    def tiles(self, phi, multiple=1):
        for index in (torch.tensor([2, 0]), torch.tensor([1])):
            yield slice(0, len(phi)), index, self.gradients[..., index].clone()

    def rows(self, index):
        return Stored(self.gradients[index])

    def apply_sum(self, phi):
        raise AssertionError("moments need single gradients")



def draw(n, seed=0):
    """Skewed and correlated gradients [n, K, P] of spreads 1e-3 to 30, with means at least ten million spreads away from 0."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 1, P, generator=generator, dtype=torch.float64)
    own = torch.randn(n, K, P, generator=generator, dtype=torch.float64).exp()
    noise = (common + own) / math.sqrt(1 + math.e**2 - math.e)  # of variance 1
    spread = torch.tensor([[1e-3, 1.0, 30.0], [2e-3, 0.3, 10.0]], dtype=torch.float64)
    return (SPREADS * torch.tensor([1.0, -1.3, 1.9], dtype=torch.float64) + noise) * spread


def sample(off=0.1, n=B * SIZE):
    """Gradients, and a pilot's centre: the mean of other draws, ``off`` spreads further off."""
    g, pilot = draw(n), draw(1000, seed=1)
    return g, pilot.mean(0) + off * pilot.std(0)


def fill(gradients, center, sizes=SIZE, first=0):
    """Block moments by the code of a measurement, in chunks of 16."""
    blocks = []
    for part in gradients.split(sizes):
        block = Block(center, torch.zeros(0, P, dtype=torch.float64), 0, per_parameter=True)
        for chunk in part.split(16):
            block.add(Stored(chunk), torch.zeros(len(chunk), K, 4, dtype=torch.float64))
        block.steps = 7 * len(part)
        blocks.append(block)
    return collect(blocks, NAMES, first_block=first)


def covariance(x, y):
    """Σ (x − mean)(y − mean) of stored numbers, exactly."""
    x, y = ([Fraction(v) for v in column.tolist()] for column in (x, y))
    return sum(a * b for a, b in zip(x, y, strict=True)) - sum(x) * sum(y) / len(x)


def exact_m2(gradients):
    """[K, P] fractions, Σ (g − mean)² of every parameter."""
    return [[covariance(gradients[:, k, p], gradients[:, k, p]) for p in range(P)] for k in range(K)]


def digits(found, exact):
    """How many significant digits of ``exact`` are right: −log10 of the relative error, 17 where there is none."""
    error = abs((Fraction(float(found)) - exact) / exact)
    return 17.0 if error == 0 else min(17.0, -math.log10(error))


def pooled(made):
    """[K, P] the unbiased variance of every parameter, pooled over blocks."""
    dev = [CentredBlocks.of_choice(made, k).dev for k in range(K)]
    return [[pooled_variance(made.count, made.m2[:, k, p], dev[k][:, p] ** 2)[0] for p in range(P)] for k in range(K)]


def statistics(made):
    reference = Reference(np.array([1.0, 2.0, -1.0]), None, None, 0.0, "exact", 0, "J_1")
    return summarise(made, reference, batch_size=100, rng=np.random.default_rng(0))


@pytest.mark.parametrize("off", (0.0, 0.1, 1.0, 3.0))
def test_every_block_keeps_twelve_digits(off):
    """m2, its trace and the covariance with the comparator, for a centre that is up to three spreads off."""
    g, center = sample(off)
    made = fill(g, center)
    for b, part in enumerate(g.split(SIZE)):
        m2 = exact_m2(part)
        for k in range(K):
            assert min(digits(made.m2[b, k, p], m2[k][p]) for p in range(P)) > 12
            assert digits(made.trace_m2[b, k], sum(m2[k])) > 12
            cross = sum(covariance(part[:, k, p], part[:, 0, p]) for p in range(P))
            assert digits(made.cross[b, k], cross) > 12


@pytest.mark.parametrize("off", (0.1, 1.0))
@pytest.mark.parametrize("n", (100, 500, 2000, 20_000))
def test_variances_and_their_ratio_keep_twelve_digits(n, off):
    """Pooled over 50 blocks: each parameter's, the trace, and the ratio to the comparator, of n trajectories."""
    g, center = sample(off, n)
    made, m2 = fill(g, center, n // B), exact_m2(g)
    rows, found = statistics(made), pooled(made)
    for k in range(K):
        assert min(digits(found[k][p], m2[k][p] / (n - 1)) for p in range(P)) > 12
        assert digits(rows[k]["variance"], sum(m2[k]) / (n - 1)) > 12
    assert digits(rows[1]["variance_ratio"], sum(m2[1]) / sum(m2[0])) > 12


def test_without_what_float64_leaves_out_of_the_means_digits_are_lost():
    """A mean of 10⁷ spreads is stored to 1e-9 spreads: pooling then keeps fewer than eleven digits, which ``low`` gives back."""
    g, center = sample(0.1, 100)
    made, m2 = fill(g, center, 100 // B), exact_m2(g)
    least = [
        min(digits(found[k][p], m2[k][p] / 99) for k, p in itertools.product(range(K), range(P)))
        for found in (pooled(made), pooled(replace(made, low=None)))
    ]
    assert least[0] > 12
    assert least[1] < 11


def test_the_textbook_formula_loses_its_digits():
    """E g² − (E g)², and the same sums in a block whose centre is 0: three digits at most, most often one."""
    g, _ = sample()
    m2 = exact_m2(g)
    x = g.numpy()
    textbook = ((x**2).mean(0) - x.mean(0) ** 2) * len(g)
    careless = fill(g, torch.zeros(K, P, dtype=torch.float64), len(g))
    for k, p in itertools.product(range(K), range(P)):
        assert digits(textbook[k, p], m2[k][p]) < 3
        assert digits(careless.m2[0, k, p], m2[k][p]) < 3


@pytest.mark.parametrize("power", range(7))
def test_a_centre_that_is_off_costs_two_digits_per_power_of_ten(power):
    """Of about 15: a pilot 1,000 spreads off still leaves 8 in every block; its own error is a thirtieth of a spread."""
    g, center = sample(10.0**power)
    made = fill(g, center)
    least = min(
        digits(made.m2[b, k, p], exact)
        for b, part in enumerate(g.split(SIZE))
        for k, row in enumerate(exact_m2(part))
        for p, exact in enumerate(row)
    )
    assert 14 - 2 * power < least < 17.5 - 2 * power


SHARDS = 4
WAYS = {
    "((a b) c) d": lambda a, b, c, d: a.merge(b).merge(c).merge(d),
    "(a (b c)) d": lambda a, b, c, d: a.merge(b.merge(c)).merge(d),
    "(a b) (c d)": lambda a, b, c, d: a.merge(b).merge(c.merge(d)),
    "a ((b c) d)": lambda a, b, c, d: a.merge(b.merge(c).merge(d)),
    "a (b (c d))": lambda a, b, c, d: a.merge(b.merge(c.merge(d))),
}


def shards():
    """Twelve blocks of unequal size, three of them in each shard; and all of them filled as one run."""
    g, center = sample(0.1, n=126)
    sizes = [5 + b for b in range(12)]
    first = [sum(sizes[: 3 * i]) for i in range(SHARDS + 1)]
    made = [fill(g[first[i] : first[i + 1]], center, sizes[3 * i : 3 * i + 3], 3 * i) for i in range(SHARDS)]
    return made, fill(g, center, sizes)


def bits(x):
    """Numbers as bytes: equal only if the same to the last bit, nan and −0 included."""
    return np.asarray(x).tobytes()


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_shards_merged_in_any_order_and_association_are_the_same_bits(way):
    made, whole = shards()
    expected = statistics(whole)
    names = ("block_id", "count", "mean", "trace_m2", "m2", "cross", "m4", "m2c", "steps")
    for order in itertools.permutations(made):
        merged = way(*order)
        assert all(bits(getattr(merged, name)) == bits(getattr(whole, name)) for name in names)
        for row, other in zip(statistics(merged), expected, strict=True):
            assert row.keys() == other.keys() and all(bits(row[k]) == bits(other[k]) for k in row)


def test_sums_pooled_as_shards_arrive_would_not_be_the_same_bits():
    """Negative control: why no number is pooled before all blocks are in order."""
    made, _ = shards()
    sums = {float(sum((m.trace_m2.sum(0)[0] for m in order), 0.0)) for order in itertools.permutations(made)}
    assert len(sums) > 1


def test_a_block_that_comes_twice_is_an_error_wherever_it_comes():
    a, b, c, d = shards()[0]
    for whole, again in ((a, a), (a.merge(b), b), (a.merge(b).merge(c), c.merge(d))):
        with pytest.raises(InputError, match="occur in both records"):
            whole.merge(again)


MDP = random_mdp(2)
WORLD = envs.environment(MDP, 6, "numerics")
COUNTS = ("trajectory", "block", "return", "length")


def measured(chunk, dtype):
    return varlab.measure(
        WORLD, SoftmaxTable(WORLD, logits=random_logits(102, MDP)), ("total_return", "reward_to_go", "gae(lam=0.9)"), n=2000,
        pilot=500, chunk=chunk, dtype=dtype, gamma=0.9, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
def test_chunk_sizes_agree(dtype, tolerance):
    """Block moments and every statistic; trajectories and digest are the same.

    bias_sq is a small difference: its error counts in units of ‖∇J‖². Its interval holds quantiles of roots √(‖d̄‖² − …) over
    random signs, which are steep near 0: ten times the tolerance.
    """
    first = measured(4, dtype)
    numbers = first.summary.select_dtypes("number").columns.drop("bias_p_value")
    scale = np.abs(first.summary[numbers].to_numpy(float))
    for name, factor in (("bias_sq", 1), ("bias_sq_low", 10), ("bias_sq_high", 10)):
        scale[:, numbers.get_loc(name)] = factor * first.summary["grad_norm"] ** 2
    for chunk in (7, 32, 512, None):
        other = measured(chunk, dtype)
        assert other.digest == first.digest
        assert other.trajectories[list(COUNTS)].equals(first.trajectories[list(COUNTS)])
        for name in ("mean", "trace_m2", "m2", "cross", "m4", "m2c"):
            x, y = getattr(other.moments, name), getattr(first.moments, name)
            assert np.abs(x - y).max() < tolerance * np.abs(y).max(), name
        moved = np.abs(other.summary[numbers].to_numpy(float) - first.summary[numbers].to_numpy(float))
        assert list(numbers[(moved > tolerance * scale).any(0)]) == []
        assert np.abs(other.summary["bias_p_value"] - first.summary["bias_p_value"]).max() < 2 / 1999
