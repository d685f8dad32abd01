"""Agreement of gradient estimates: exact cosines of normal noise and of an enumerated world, brute force, coverage, limits."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from tests.finite_worlds import enumerate_paths, random_logits, random_mdp
from varlab import policies
from varlab.analysis import agreement, planning
from varlab.checks import InputError
from varlab.envs.finite import environment
from varlab.experiment import measure
from varlab.plans import plan
from varlab.preparation import Preparation
from varlab.studies import repeats
from varlab.types import Reference


def normal(m, dim, nsr, seed, rank=None):
    """m estimates with mean e_1 and noise of trace ``nsr``, alike in all directions (or in the first ``rank``)."""
    scale = np.zeros(dim)
    scale[: rank or dim] = math.sqrt(nsr / (rank or dim))
    return np.eye(1, dim)[0] + np.random.default_rng(seed).standard_normal((m, dim)) * scale


def blocked(x, blocks=50):
    means = x.reshape(blocks, -1, x.shape[1]).mean(1)
    return Reference(means.mean(0), means, np.full(blocks, len(x) // blocks), 0.0, "made up", len(x), "E g")


TRUTH = Reference(np.eye(1, 3)[0], None, None, 0.0, "exact", 0, "J_1")


def test_the_mean_over_pairs_by_brute_force():
    x = normal(60, 4, 5.0, 0)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [u[i] @ u[j] for i, j in itertools.permutations(range(60), 2)]
    found = agreement.between(x)
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-12) and found.n == 60
    kept = np.delete(u, 0, axis=0)  # 60 estimates in 50 blocks: the first holds one
    pairs = [kept[i] @ kept[j] for i, j in itertools.permutations(range(59), 2)]
    assert found.without[0] == pytest.approx(np.mean(pairs), rel=1e-12)


def test_the_cosine_to_a_reference_and_what_each_block_changes_by_brute_force():
    x, reference = normal(120, 4, 5.0, 1), blocked(normal(1000, 4, 20.0, 2))
    u = (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)

    def debiased(means):
        centre = means.mean(0)
        noise = np.square(means - centre).sum() / (len(means) * (len(means) - 1))
        return u @ centre / math.sqrt(centre @ centre - noise)

    found = agreement.to_gradient(x, reference)
    assert found.value == pytest.approx(debiased(reference.block_mean), rel=1e-12)
    for c in (0, 17, 49):
        assert found.other[c] == pytest.approx(debiased(np.delete(reference.block_mean, c, axis=0)), rel=1e-12)
    exact = agreement.to_gradient(x[:, :3], TRUTH)
    v = (x[:, :3] / np.linalg.norm(x[:, :3], axis=1, keepdims=True))[:, 0]
    assert exact.value == pytest.approx(v.mean(), rel=1e-12) and exact.other is None
    edges = np.linspace(0, 120, 51).round().astype(int)
    assert exact.own[3] == pytest.approx(np.delete(v, np.arange(edges[3], edges[4])).mean(), rel=1e-12)


def test_noise_to_signal_and_its_replicates_by_brute_force():
    x = normal(110, 3, 2.0, 3)

    def ratio(y):
        n = len(y)
        square = (np.square(y.sum(0)).sum() - np.square(y).sum()) / (n * (n - 1))
        return 7.0 * y.var(0, ddof=1).sum() / square

    found = agreement.noise_to_signal(x, 7)
    edges = np.linspace(0, 110, 51).round().astype(int)
    assert found.value == pytest.approx(ratio(x), rel=1e-12)
    for b in (0, 20, 49):
        assert found.without[b] == pytest.approx(ratio(np.delete(x, np.arange(edges[b], edges[b + 1]), axis=0)), rel=1e-10)
    form = agreement.closed_form(x, 7, 70)
    assert form.value == pytest.approx(1 / (1 + found.value / 70), rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_normal_noise_agrees_as_the_exact_formula_says(dim):
    """Closed form, and the formula with D directions: only the second holds where D is small."""
    nsr, batch, m = 30.0, 10, 20_000
    x = normal(m, dim, nsr / batch, 4 + dim)
    wanted = planning.expected_cosine(nsr, batch, dim)
    exact = Reference(np.eye(1, dim)[0], None, None, 0.0, "exact", 0, "J_1")
    found, to_mean = agreement.between(x), agreement.to_gradient(x, exact)
    assert found.value == pytest.approx(wanted**2, abs=0.012)
    assert to_mean.value == pytest.approx(wanted, abs=0.012)
    gap = abs(planning.cosine_to_truth(nsr, batch) - wanted)
    assert gap > 0.05 if dim == 1 else gap < 0.03
    assert agreement.closed_form(x, batch, batch).value == pytest.approx(planning.cosine_between(nsr, batch), abs=0.01)


def test_the_exact_formula_at_its_limits():
    assert planning.expected_cosine(30.0, 10, 1) == pytest.approx(2 * scipy.stats.norm.cdf(math.sqrt(1 / 3)) - 1, rel=1e-12)
    k = 0.3  # in the plane: √(πκ/8) e^(−κ/4) (I_0(κ/4) + I_1(κ/4)), κ = 2 N/NSR = 2 k
    plane = math.sqrt(math.pi * k / 4) * math.exp(-k / 2) * (scipy.special.iv(0, k / 2) + scipy.special.iv(1, k / 2))
    assert planning.expected_cosine(1.0, k, 2) == pytest.approx(plane, rel=1e-12)
    assert planning.expected_cosine(30.0, 10, 1e6) == pytest.approx(planning.cosine_to_truth(30.0, 10), rel=1e-5)
    assert planning.expected_cosine(1.0, 1e4, 500) == pytest.approx(planning.cosine_to_truth(1.0, 1e4), rel=1e-4)
    with pytest.raises(InputError, match="directions"):
        planning.expected_cosine(1.0, 1.0, 0.5)


def coverage(draw, truth, interval, times=300):
    return np.mean([low <= truth <= high for low, high in (interval(draw(i)) for i in range(times))])


def test_intervals_cover():
    """Three directions, an agreement of a third, and none, where pairs are degenerate. Pairs taken as independent fail."""
    for mean, seed in ((1.0, 0), (0.0, 10_000)):
        truth = planning.expected_cosine(2.0, 1, 3) ** 2 if mean else 0.0

        def draw(i, mean=mean, seed=seed):
            return normal(100, 3, 2.0, seed + i) - (1 - mean) * np.eye(1, 3)[0]

        assert coverage(draw, truth, lambda x: agreement.interval(agreement.between(x))) >= 0.92

    def naive(x):
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = (u @ u.T)[np.triu_indices(len(x), 1)]
        half = 1.96 * pairs.std() / math.sqrt(len(pairs))
        return pairs.mean() - half, pairs.mean() + half

    assert coverage(lambda i: normal(100, 3, 2.0, i), planning.expected_cosine(2.0, 1, 3) ** 2, naive) < 0.6


def test_intervals_know_the_error_of_the_reference():
    truth = planning.expected_cosine(2.0, 1, 3)

    def draw(i):
        return agreement.to_gradient(normal(100, 3, 2.0, i), blocked(normal(100, 3, 10.0, 5000 + i)))

    def alone(found):
        return agreement.interval(type(found)(found.value, found.own))

    assert coverage(draw, truth, agreement.interval) >= 0.92
    # a reference taken at its word, without its own error in the length: too small a cosine, too often
    assert coverage(draw, truth, alone) < coverage(draw, truth, agreement.interval)


def test_few_estimates_have_no_interval_and_more_have_one():
    assert np.isnan(agreement.interval(agreement.between(normal(7, 3, 1.0, 0))).low)
    low, high = agreement.interval(agreement.between(normal(8, 3, 1.0, 0)))
    assert -1 <= low < high <= 1


def test_an_enumerated_world():
    """Exact E cos at one and at two trajectories by listing them, against estimates of sampled batches."""
    mdp = random_mdp(3, outcomes=2, ending=0.2)
    logits = random_logits(3, mdp)
    listed = enumerate_paths(mdp, 2)
    env = environment(mdp, 2, "small")
    policy = policies.SoftmaxTable(env, logits=logits).double()
    rewards, rows = listed.traj.reward.tolist(), listed.traj.offsets.tolist()
    to_go = [sum(rewards[t:j]) for i, j in itertools.pairwise(rows) for t in range(i, j)]
    g, p = listed.gradients(logits, torch.tensor(to_go, dtype=torch.float64)).numpy(), listed.probability(logits).numpy()
    exact = {1: (p, g), 2: (np.outer(p, p).ravel(), ((g[:, None] + g[None]) / 2).reshape(-1, g.shape[1]))}
    job = Preparation(plan(env, policy, ["reward_to_go"], n=50, seed=4, dtype="float64"))
    mean = p @ g
    nsr = (p @ np.square(g - mean).sum(1)) / (mean @ mean)
    for size, (weight, batch) in exact.items():
        u = weight @ (batch / np.linalg.norm(batch, axis=1, keepdims=True))
        made = repeats.estimates(job, size, 20_000)
        x = made.of("reward_to_go")
        assert made.size == size and x.shape == (20_000, g.shape[1])
        found = agreement.between(x)
        low, high = agreement.interval(found)
        assert abs(found.value - u @ u) < 2 * (high - low) and high - low < 0.02
        to_mean = agreement.to_gradient(x, Reference(mean, None, None, 0.0, "exact", 0, "J_1"))
        assert to_mean.value == pytest.approx(u @ mean / np.linalg.norm(mean), abs=0.01)
        assert agreement.noise_to_signal(x, size).value == pytest.approx(nsr, rel=0.05)


def test_estimates_are_means_of_the_very_trajectories():
    mdp = random_mdp(5)
    env = environment(mdp, 4, "small")
    policy = policies.SoftmaxTable(env, logits=random_logits(5, mdp)).double()
    job = Preparation(plan(env, policy, ["reward_to_go", "gae(lam=0.5)"], n=50, seed=9, dtype="float64"))
    each = torch.cat(list(repeats.gradients(job, 60, 5, "rollout")))
    made = repeats.estimates(job, 5, 12, together=repeats.TOGETHER)
    np.testing.assert_allclose(made.mean, each.view(12, 5, 2, -1).mean(1).numpy(), atol=1e-12)
    assert made.names == ("reward_to_go", "gae(lam=0.5)") and 1.0 <= made.mean_length == made.steps / 60 <= 4.0
    pooled = agreement.pooled(made.of("gae(lam=0.5)"), 4)
    np.testing.assert_allclose(pooled, each[:, 1].view(3, 20, -1).mean(1).numpy(), atol=1e-12)


def test_blocks_of_a_measurement_are_estimates():
    mdp = random_mdp(6)
    env = environment(mdp, 3, "small")
    policy = policies.SoftmaxTable(env, logits=random_logits(6, mdp))
    result = measure(env, policy, ["reward_to_go"], n=200, seed=1, dtype="float64")
    x, size = agreement.from_moments(result.moments, "reward_to_go")
    assert size == 4 and x.shape[0] == 50
    np.testing.assert_array_equal(x, result.moments.mean[:, 0])
    with pytest.raises(InputError, match="Blocks of one size"):
        agreement.from_moments(measure(env, policy, ["reward_to_go"], n=220, seed=1).moments, "reward_to_go")


def test_the_table():
    x, reference = normal(400, 40, 9.0, 7), blocked(normal(2000, 40, 9.0, 8))
    table = agreement.agreement_table(x, 5, reference, counts=(1, 4, 100, 200))
    assert table["batch_size"].unique().tolist() == [5, 20, 500] and table["estimates"].unique().tolist() == [400, 100, 4]
    two, one = (table[table["kind"] == k].set_index("batch_size") for k in (agreement.BETWEEN, agreement.TO_GRADIENT))
    np.testing.assert_allclose(one["closed_form"] ** 2, two["closed_form"], rtol=1e-12)
    for size, count in ((5, 1), (20, 4)):
        wanted = planning.expected_cosine(9.0, count, 40)
        assert two.loc[size, "value_low"] <= wanted**2 <= two.loc[size, "value_high"]
        assert one.loc[size, "value_low"] <= wanted <= one.loc[size, "value_high"]
        assert two.loc[size, "closed_form_low"] <= 1 / (1 + 9 / count) <= two.loc[size, "closed_form_high"]
    assert np.isnan(two.loc[500, "value_low"]) and np.isfinite(two.loc[500, "value"])
    assert one["reference_error"].iloc[0] == pytest.approx(9 / 2000, rel=0.2) and two["reference_error"].isna().all()
    without = agreement.agreement_table(x, 5)
    assert set(without["kind"]) == {agreement.BETWEEN} and agreement.reference_error(TRUTH) == 0.0


def test_what_has_no_direction_is_refused():
    x = normal(20, 3, 1.0, 0)
    x[4] = 0.0
    with pytest.raises(InputError, match="number 4 has length 0.0"):
        agreement.between(x)
    with pytest.raises(InputError, match="number of independent estimates"):
        agreement.between(x[:2])
    noise = normal(25, 3, 1.0, 1)
    nowhere = blocked(np.concatenate([noise, 1e-3 - noise]))  # no gradient that 50 blocks could tell from 0
    far = agreement.to_gradient(normal(20, 3, 1.0, 0), nowhere)
    assert np.isnan(far.value) and np.isnan(agreement.interval(far).low)
    assert agreement.reference_error(nowhere) == math.inf
