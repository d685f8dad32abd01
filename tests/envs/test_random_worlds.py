"""Random finite MDPs follow their laws, and the compounding world has the tail that it is for."""

import itertools

import numpy as np
import pytest
import torch
from finite_worlds import enumerate_paths
from scipy.stats import beta, kstest, norm, uniform

import varlab
from varlab import envs, policies
from varlab.envs.compounding import compounding, compounding_moments
from varlab.envs.random_mdp import random_mdp
from varlab.rng import Streams, numpy_generator

# ---- random MDPs

NAMES = ("probability", "next_state", "reward", "terminated", "initial")


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in NAMES)


def test_a_seed_is_a_world():
    assert same(random_mdp(3), random_mdp(3)) and not same(random_mdp(3), random_mdp(4))
    assert same(random_mdp(3), random_mdp(np.random.default_rng(3))) and same(random_mdp(3), random_mdp(np.int64(3)))
    assert same(random_mdp(2, states=4, outcomes=2), envs.make("varlab/RandomMDP-v0", seed=2, states=4, outcomes=2).finite)
    mdp = random_mdp(0, states=4, actions=2, outcomes=3)
    assert mdp.probability.shape == (4, 2, 3) and random_mdp(0, states=4, actions=2).probability.shape == (4, 2, 4)
    assert not mdp.reward_only_at_end and (mdp.reward != 0).all()


def test_the_draws_keep_their_order():
    """The published table of random MDPs rests on these numbers, in this order."""
    for number in range(3):
        sequence = Streams(0).sequence("rollout", number)
        generator = numpy_generator(sequence)
        expected = (
            generator.dirichlet(np.ones(3), size=(3, 2)), generator.dirichlet(np.ones(3)), generator.random((3, 2, 3)),
        )  # fmt: skip
        mdp = random_mdp(numpy_generator(sequence), states=3, actions=2, ending=0.0, rewards="uniform")
        for found, wanted in zip((mdp.probability, mdp.initial, mdp.reward), expected, strict=True):
            assert np.array_equal(found.numpy(), wanted)
        assert not mdp.terminated.any() and (mdp.next_state == torch.arange(3)).all()


def test_draws_follow_their_laws():
    drawn = [random_mdp(i, states=4, actions=2, outcomes=3, ending=0.2, reward_scale=2.0) for i in range(300)]
    for name, law in (("probability", beta(1, 2)), ("initial", beta(1, 3))):  # coordinates of uniform laws on the simplex
        assert kstest(np.concatenate([getattr(m, name)[..., 0].ravel() for m in drawn]), law.cdf).pvalue > 1e-3
    assert kstest(np.concatenate([m.reward.ravel() for m in drawn]), norm(0, 2).cdf).pvalue > 1e-3
    other = [random_mdp(i, rewards="uniform", reward_scale=0.5).reward.ravel() for i in range(100)]
    assert kstest(np.concatenate(other), uniform(0, 0.5).cdf).pvalue > 1e-3
    ends, following = (torch.stack([getattr(m, name) for m in drawn]) for name in ("terminated", "next_state"))
    share = ends.double().mean().item()
    assert abs(share - 0.2) < 4 * (0.16 / ends.numel()) ** 0.5
    counts = torch.bincount(following.ravel(), minlength=4) / following.numel()
    assert (counts - 0.25).abs().max() < 4 * (0.1875 / following.numel()) ** 0.5
    assert any((m.next_state[..., 0] == m.next_state[..., 1]).any() for m in drawn)  # outcomes may share s'


# ---- compounding rewards


@pytest.mark.parametrize(("p", "horizon"), list(itertools.product([0.0, 0.3, 0.5, 1.0], [1, 5, 12])))
@pytest.mark.parametrize("kwargs", [{}, {"growth": 2.0, "climb": 0.4, "stay": 0.6}])
def test_moments_of_the_compounding_return(p, horizon, kwargs):
    env = envs.make("varlab/Compounding-v0", horizon=horizon, **kwargs)
    mean, second = compounding_moments(p, horizon, **kwargs)
    logits = torch.tensor([1 - p, p], dtype=torch.float64).log().clamp(min=-700).expand(12, 2)
    j = varlab.exact(env, policies.SoftmaxTable(env, logits), "reward_to_go").j
    assert j == pytest.approx(mean, rel=1e-10)
    if horizon == 5:
        paths = enumerate_paths(env.finite, horizon)
        share, r = paths.probability(logits), paths.returns(1.0)
        assert float(share @ r) == pytest.approx(mean, rel=1e-10) and float(share @ r**2) == pytest.approx(second, rel=1e-10)


def test_the_second_moment_diverges_and_the_first_does_not():
    """The tail index of the endless ladder lies below 2: the mean settles, the second moment keeps growing."""
    mean, second = zip(*(compounding_moments(0.5, h) for h in (100, 200, 400)), strict=True)
    assert mean[2] == pytest.approx(1 / (1 - 0.375 - 0.45), rel=1e-6)
    assert second[1] / second[0] > 3 and second[2] / second[1] > 10
    alpha = np.log((1 - 0.45) / 0.25) / np.log(1.5)
    assert alpha == pytest.approx(1.94, abs=0.01)


def fourth_moment(mdp, horizon, logits):
    """Kurtosis of g with the total return; how many paths, and how many returns, its fourth moment is effectively made of."""
    paths = enumerate_paths(mdp, horizon)
    p, r = paths.probability(logits), paths.returns(1.0)
    g = paths.gradients(logits, torch.repeat_interleave(r, paths.traj.offsets.diff()))
    d = ((g - p @ g) ** 2).sum(1)
    parts = p * d**2
    by_return = torch.zeros(len(r), dtype=r.dtype).index_add(0, r.unique(return_inverse=True)[1], parts)
    effective = [float(x.sum() ** 2 / (x**2).sum()) for x in (parts, by_return)]
    return float(parts.sum() / (p @ d) ** 2), *effective


@pytest.mark.parametrize("theta", ["zero", "seed 0"])
def test_the_heavy_tail_is_made_of_many_paths(theta):
    env = compounding()
    assert (env.finite.num_states, env.finite.num_actions, env.horizon) == (12, 2, 12)
    assert (env.finite.reward >= 1).all()  # dense: every outcome pays
    table = policies.SoftmaxTable(env) if theta == "zero" else policies.make("softmax_table", env)
    kurtosis, paths, returns = fourth_moment(env.finite, 12, table.logits.weight.detach().double())
    assert 30 < kurtosis < 60 and paths > 100 and returns > 30, (kurtosis, paths, returns)
    assert kurtosis == pytest.approx({"zero": 39.6, "seed 0": 49.0}[theta], abs=0.1)


def test_a_rare_success_would_be_seen():
    """The same kurtosis from a lottery: its fourth moment is made of one path."""
    lottery = envs.FiniteMDP.from_lists([[[(0.02, 0, 10.0, True), (0.98, 0, 0.1, True)]] * 2], [1.0])
    kurtosis, paths, returns = fourth_moment(lottery, 1, torch.zeros(1, 2, dtype=torch.float64))
    assert 30 < kurtosis < 60 and paths < 3 and returns < 2


def test_measured_kurtosis_agrees():
    env = envs.make("varlab/Compounding-v0")
    rows = varlab.measure(env, policies.SoftmaxTable(env), ["total_return", "reward_to_go"], n=100_000, seed=2).summary
    assert rows["kurtosis"].iloc[0] == pytest.approx(39.6, rel=0.25)
    z = (rows.variance - rows.exact_variance) / (rows.variance * np.sqrt((rows["kurtosis"] - 1) / rows.n))
    assert z.abs().max() < 3.5
