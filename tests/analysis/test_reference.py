"""References: exact ones, sampled ones against them, the cache, and what their digest covers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from scipy import stats

from varlab import envs, estimators, policies, scores
from varlab.analysis import reference as references
from varlab.checks import InputError
from varlab.cores import Cores
from varlab.experiment import plan
from varlab.layout import Layout
from varlab.preparation import Preparation
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Reference
from varlab.values import CriticSettings, FunctionValues, gradient

DOUBLE, CPU = torch.float64, torch.device("cpu")


def worlds():
    yield envs.make("FrozenLake-v1", horizon=20)
    yield envs.environment(random_mdp(0), 4, name="random")


@pytest.fixture(scope="module", params=list(worlds()), ids=lambda env: env.name)
def world(request):
    env = request.param
    policy = policies.make("softmax_table", env, theta_seed=1).double()
    if env.name == "FrozenLake-v1":  # near the goal often enough for ∇J to be seen
        best = torch.tensor([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])
        policy = policies.SoftmaxTable(env, logits=2.0 * torch.nn.functional.one_hot(best, 4).double())
    probe = rollout(env, policy, 8, Streams(0).sequence("pilot"))
    return env, policy, scores.make(policy, probe.obs[:8], probe.action[:8], env.name)


def sample(world, n, phi="value_baseline", seed=0, gamma=1.0, blocks=50, part_size=4096, objective="J_1", v=None):
    """A sampled reference with random values: as bad a critic as one can be."""
    env, policy, score_map = world
    table = 2 * torch.randn(env.horizon + 1, env.num_features, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    source = FunctionValues(v=v or (lambda s, t: table[t, s]))
    made = references.blocks(
        Cores(env, policy, score_map, DOUBLE, CPU), estimators.parse(phi), source, Layout(n, blocks, part_size),
        Streams(seed), gamma,
    )  # fmt: skip
    return made.pool(phi, objective, "digest")


def p_values(sampled, truth):
    """Two views of E grad = ∇J from independent blocks: the largest |t| (Bonferroni), and Hotelling's along a few directions."""
    d = sampled.block_mean - truth
    spread = d.std(0, ddof=1)
    seen = (sampled.block_mean != 0).all(0)  # where some blocks never came, their means are too skew for a t test
    assert seen.sum() > 4
    t = np.abs(d[:, seen].mean(0)) / (spread[seen] / np.sqrt(len(d)))
    largest = min(1.0, seen.sum() * 2 * stats.t.sf(t.max(), len(d) - 1))
    few = d @ np.random.default_rng(0).normal(size=(d.shape[1], 3))
    hotelling = few.mean(0) @ np.linalg.solve(np.cov(few.T) / len(d), few.mean(0))
    b, q = few.shape
    return largest, stats.f.sf(hotelling * (b - q) / (q * (b - 1)), q, b - q)


#: Twelve tests stand at this level: two worlds, two seeds, two γ less, two views.
LEVEL = 0.01 / 12


@pytest.mark.parametrize("seed", (0, 1))
def test_sampled_reference_is_unbiased_with_a_bad_critic(world, seed):
    env, policy, _ = world
    made = sample(world, 4000, seed=seed)
    truth = references.exact(env, policy, 1.0, "J_1", "")
    assert min(p_values(made, truth.grad)) > LEVEL
    bounded = abs(made.j - truth.j) / (1.0 / np.sqrt(4000))  # returns lie within a few units
    assert bounded < 5


def test_sampled_reference_of_the_discounted_objective(world):
    env, policy, _ = world
    made = sample(world, 4000, gamma=0.8, objective="J_gamma")
    truth = references.exact(env, policy, 0.8, "J_gamma", "")
    assert min(p_values(made, truth.grad)) > LEVEL
    assert made.objective == truth.objective == "J_gamma"


def test_the_test_of_unbiasedness_rejects_a_biased_reference(world):
    """Negative control: a critic-dependent Φ with the same bad critic, and the gradient of another objective."""
    env, policy, _ = world
    wrong = sample(world, 10_000, phi="td_residual")
    assert min(p_values(wrong, references.exact(env, policy, 1.0, "J_1", "").grad)) < 1e-6
    made = sample(world, 10_000, v=lambda s, t: torch.zeros(s.shape, dtype=DOUBLE))
    assert min(p_values(made, references.exact(env, policy, 0.5, "J_gamma", "").grad)) < 1e-6


def test_blocks_average_to_the_gradient(world):
    made = sample(world, 517)
    assert made.block_mean.shape[0] == 50 and made.n == made.block_count.sum() == 517
    assert set(made.block_count.tolist()) == {10, 11}
    np.testing.assert_allclose((made.block_count[:, None] * made.block_mean).sum(0) / 517, made.grad, rtol=1e-12)
    assert made.kind == "value_baseline" and made.digest == "digest" and not made.exact and made.steps > 0


def test_reference_is_the_loop_over_its_own_stream(world):
    """Block by block: Σ_t γ^t z_t (G_t − V(s_t)) with plain loops and the closed-form score."""
    env, policy, _ = world
    gamma, v = 0.9, lambda s, t: 0.3 * s - 0.1 * t
    made = sample(world, 20, gamma=gamma, blocks=4, part_size=3, v=lambda s, t: v(s.double(), t.double()))
    pi = policy(torch.arange(env.num_features)).probs.detach()
    rows, total = [], 0.0
    for b in range(4):
        gradients = []
        for draw in Layout(20, 4, 3).parts(b):
            traj = rollout(env, policy, draw.n, Streams(0).sequence("reference", draw.block, draw.part))
            for i in range(draw.n):
                a, e = int(traj.offsets[i]), int(traj.offsets[i + 1])
                g, r = torch.zeros_like(pi), traj.reward[a:e].tolist()
                for t in range(e - a):
                    s, action = int(traj.state[a + t]), int(traj.action[a + t])
                    ahead = sum(gamma ** (u - t) * r[u] for u in range(t, e - a))
                    z = -pi[s].clone()
                    z[action] += 1
                    g[s] += gamma**t * z * (ahead - v(s, t))
                gradients.append(g.flatten())
                total += sum(gamma**t * x for t, x in enumerate(r))
        rows.append(torch.stack(gradients).mean(0).numpy())
    np.testing.assert_allclose(made.block_mean, rows, rtol=1e-10, atol=1e-12)
    assert made.j == pytest.approx(total / 20, abs=1e-12)


def test_chunks_of_the_reference_do_not_matter(world, monkeypatch):
    whole = sample(world, 60, blocks=4)
    monkeypatch.setattr(references, "STEPS_AT_ONCE", 7)
    np.testing.assert_allclose(sample(world, 60, blocks=4).grad, whole.grad, rtol=1e-10, atol=1e-13)


def test_standard_error_falls_as_one_over_the_root_of_n(world):
    env, policy, _ = world
    truth = references.exact(env, policy, 1.0, "J_1", "").grad
    sizes = (100, 300, 900)
    error = [np.mean([np.square(sample(world, n, seed=s, blocks=4).grad - truth).sum() for s in range(8)]) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(error), 1)[0]
    assert slope == pytest.approx(-1, abs=0.3)


def test_nan_in_the_reference_names_its_phi_and_trajectories(world):
    """Numbered over blocks and parts: the third part, of two, holds trajectories 6 and 7."""
    calls = []

    def v(s, t):
        calls.append(len(s))
        return torch.full(s.shape, float("nan") if len(calls) > 3 * 2 else 0.0, dtype=DOUBLE)

    # FunctionValues asks for V along the way, at the end, and in the stale state: three calls for each part.
    with pytest.raises(InputError, match=r"value_baseline of the reference gave NaN or infinity among its trajectories 6 to 7"):
        sample(world, 20, blocks=2, part_size=3, v=v)


# ---- The reference of a measurement: sizes, cache, digest ------------------------------------------------------------------


class CountingCache:
    """Keeps references in memory and counts what is asked of it."""

    def __init__(self):
        self.kept, self.hits, self.misses = {}, 0, 0

    def get(self, digest):
        found = self.kept.get(digest)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def put(self, digest, reference):
        self.kept[digest] = reference


LAKE = envs.make("FrozenLake-v1", horizon=8)


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """Four blocks in place of fifty: what is tested here does not depend on it, and small rollouts cost the most."""
    monkeypatch.setattr("varlab.references.BLOCKS", 4)


SETTINGS = {
    "n": 60, "reference": "sampled", "n_reference": 100, "pilot": 20, "dtype": "float64",
    "phi": ("total_return", "value_baseline"), "critic": CriticSettings(n=20, hidden=(4,), epochs=1),
}  # fmt: skip


def prepared(env=LAKE, theta_seed=0, cache=None, objective=None, policy=None, **changes):
    policy = policy or policies.make("softmax_table", env, theta_seed=theta_seed)
    settings = {**SETTINGS, **changes}
    job = Preparation(plan(env, policy, settings.pop("phi"), **settings))
    pilot = job.pilot()
    return job, job.references.of(objective or job.options["objectives"][0], pilot, cache)


def test_cache_is_asked_first_and_filled_once():
    cache = CountingCache()
    job, first = prepared(cache=cache)
    assert (cache.hits, cache.misses) == (0, 1) and list(cache.kept) == [first.digest] and job.steps["reference"] == first.steps
    job, second = prepared(cache=cache)
    assert second is first and cache.hits == 1 and "reference" not in job.steps
    _, other = prepared(cache=cache, reference_seed=1)
    assert other.digest != first.digest and len(cache.kept) == 2


def test_an_exact_reference_needs_no_cache():
    cache = CountingCache()
    job, made = prepared(cache=cache, reference="exact")
    assert made.exact and made.n == 0 and made.kind == "exact" and (cache.hits, cache.misses) == (0, 0)
    grad, j = gradient(LAKE.finite, policies.make("softmax_table", LAKE).double(), 1.0, 8)
    np.testing.assert_allclose(made.grad, grad.numpy(), rtol=1e-14)
    assert made.j == j and "reference" not in job.steps


UNRELATED = [
    {"seed": 7},
    {"phi": ("constant_baseline", "gae(lam=0.9)")},
    {"n": 75},
    {"batch_size": 10},
    {"pilot": 33},
    {"discount_weighting": False},
    {"draws": 2500},
    {"chunk": 3},
    {"cut": 5},
    {"at_cut": "terminal"},
    {"per_parameter": False},
    {"memory_limit": 2**20},
    {"theta": "a name", "env_label": "lake", "policy_label": "table"},
]
RELATED = [
    {"reference_seed": 1},
    {"n_reference": 101},
    {"theta_seed": 1},
    {"env": envs.make("FrozenLake-v1", horizon=9)},
    {"env": envs.make("FrozenLake-v1", horizon=8, is_slippery=False)},
    {"dtype": "float32"},
    {"part_size": 1},
    {"gamma": 0.9},
]


@pytest.mark.parametrize("change", UNRELATED, ids=lambda c: ",".join(c))
@pytest.mark.parametrize("values", ("exact", "critic"))
def test_unrelated_settings_share_one_reference(values, change, monkeypatch):
    """Not the digest alone: the numbers behind it are the same, also where parts are small enough for their size to show."""
    monkeypatch.setattr("varlab.preparation.STEPS_PER_PART", 52)
    made, again = prepared(values=values)[1], prepared(values=values, **change)[1]
    assert again.digest == made.digest
    assert np.array_equal(again.block_mean, made.block_mean) and again.j == made.j


@pytest.mark.parametrize("change", RELATED, ids=lambda c: ",".join(c))
def test_related_settings_change_the_digest(change):
    assert prepared(**change)[1].digest != prepared()[1].digest


def test_a_reference_is_sampled_by_theta_whoever_acts_in_the_measurement():
    """∇J is that of θ: another policy's actions without ratios would bias it, and every bias measured against it."""
    env = envs.make("CliffWalking-v1", horizon=8)
    behaviour = policies.SoftmaxTable(env, logits=torch.tensor([2.0, 0.0, -1.0, 0.0]).expand(48, 4))
    found = []
    for acting in ({}, {"behaviour": behaviour, "behaviour_label": "other"}):
        job, made = prepared(env, values="exact", phi=("reward_to_go",), **acting)
        found.append((made.j, made.n, job.steps["reference"]))
    assert found[0] == found[1]  # the returns of its trajectories; its baseline is the value of who acts, which biases nothing
    assert abs(prepared(env, values="exact", phi=("reward_to_go",), policy=behaviour)[1].j - found[0][0]) > 1


def test_the_critic_is_part_of_the_digest_of_a_sampled_reference():
    one, other = (prepared(values="critic", critic=replace(SETTINGS["critic"], epochs=e))[1] for e in (1, 2))
    assert one.digest != other.digest
    assert np.abs(one.grad - other.grad).max() > 0
    mine = prepared(values="critic", critic=replace(SETTINGS["critic"], seed=5))[1]
    assert mine.digest == one.digest  # the reference's critic has the reference's seed


def test_objectives_have_references_of_their_own():
    _, one = prepared(gamma=0.9, objectives=("J_1", "J_gamma"), objective="J_1")
    _, discounted = prepared(gamma=0.9, objectives=("J_1", "J_gamma"), objective="J_gamma")
    assert (one.objective, discounted.objective) == ("J_1", "J_gamma") and one.digest != discounted.digest
    assert prepared()[1].digest == one.digest  # J_1 is the same object whatever γ the estimators use


def test_exact_reference_digest_covers_what_moves_it_and_no_more():
    base = prepared(reference="exact")[1].digest
    for change in ({"gamma": 0.9}, {"theta_seed": 1}, {"env": envs.make("FrozenLake-v1", horizon=9)}):
        assert prepared(reference="exact", **change)[1].digest != base
    for change in ({"reference_seed": 3}, {"n_reference": 99}, {"seed": 4}, {"critic": CriticSettings(n=30)}):
        assert prepared(reference="exact", **change)[1].digest == base


def test_a_frozen_layer_has_a_reference_of_its_own():
    """Same numbers in θ, fewer of them free: the gradient is another vector, and the cache must not mix them up."""
    free = policies.make("mlp", LAKE, hidden=(4,))
    frozen = policies.make("mlp", LAKE, hidden=(4,))
    frozen.net[0].requires_grad_(False)
    cache = CountingCache()
    a = prepared(policy=free, cache=cache)[1]
    b = prepared(policy=frozen, cache=cache)[1]
    assert a.digest != b.digest and b.grad.shape[0] == 4 * 4 + 4 and cache.hits == 0
    np.testing.assert_allclose(b.grad, a.grad[-20:], rtol=1e-10, atol=1e-13)


def test_size_is_chosen_so_that_the_reference_error_is_a_tenth():
    """n_reference grows until tr_ref/n_ref ≤ 0.1 · min_Φ variance/n: tight for a small n, then up to max_reference."""
    job, made = prepared(n_reference=None, n=100, pilot=400, phi="value_baseline")
    pilot = job.pilot()
    needed = pilot.reference_variance["J_1"] / made.n
    assert needed <= 0.1 * float(pilot.variance.min()) / 100
    assert made.n & (made.n - 1) == 0 or made.n % 100 == 0
    _, capped = prepared(n_reference=None, n=100, pilot=50, max_reference=150, phi="td_residual")
    assert capped.n == 150


def test_a_reference_given_by_the_caller():
    _, exact = prepared(reference="exact")
    job, made = prepared(reference=exact)
    assert made is exact
    for shape in ((63,), (65,), (64, 1)):
        wrong = replace(exact, grad=np.zeros(shape))
        with pytest.raises(InputError, match=r"64 parameters was expected, but it has shape"):
            prepared(reference=wrong)
    with pytest.raises(InputError, match=r"of the objective J_gamma was expected, but it is of J_1"):
        prepared(reference=exact, gamma=0.9)


def test_given_references_are_told_apart_in_the_digest_even_without_one_of_their_own():
    policy = policies.make("softmax_table", LAKE)
    given = [Reference(np.full(64, x), None, None, 0.0, "exact", 0, "J_1") for x in (0.0, 1.0)]
    one, other, same = (plan(LAKE, policy, n=50, reference=r).digest for r in (*given, replace(given[0])))
    assert one != other and one == same
