"""Exact moments against Monte Carlo of a million trajectories on five worlds, by the code that measurements use.

Run by ``make test-oracles`` alone (a few minutes). Each world and Φ gives one z of the variance, with the oracle's own exact
standard error, and a few of the mean: its error along the exact mean and along random directions, from the spread of 50 blocks.
All of them together are held to one Bonferroni limit.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp
from scipy import stats

import varlab
from varlab import envs, estimators, policies
from varlab.oracles import coordinates, recursions
from varlab.oracles.world import World
from varlab.policies import SoftmaxTable
from varlab.values import FunctionValues

N = 1_000_000
PHI = (*estimators.SOURCE_TEXT, "n_step(k=2)", "gae(lam=0.5)")
#: Random directions along which the error of a mean is tested, beside that of the mean itself.
DIRECTIONS = 7
LEVEL = 0.01


def random_world(seed, policy, horizon=10):
    mdp = random_mdp(seed, states=6, actions=3, outcomes=3, ending=0.1)
    env = envs.environment(mdp, horizon, f"random MDP {seed}")
    return env, SoftmaxTable(env, random_logits(seed, mdp)) if policy == "table" else policies.make("mlp", env, hidden=(8,))


def wrong_values(seed, horizon=10):
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn(horizon + 1, 6, generator=draw, dtype=torch.float64)
    q = torch.randn(horizon, 6, 3, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


def gymnasium_world(env_id, **kwargs):
    env = envs.make(env_id, **kwargs)
    return env, policies.make("softmax_table", env)


#: World, policy and settings: discounts, weights, wrong values and every rule at a cut occur.
WORLDS = {
    "FrozenLake": lambda: (*gymnasium_world("FrozenLake-v1"), {}),
    "CliffWalking": lambda: (*gymnasium_world("CliffWalking-v1", horizon=50, is_slippery=True), {"gamma": 0.95}),
    "random, unweighted, wrong values": lambda: (
        *random_world(21, "table"), {"gamma": 0.9, "discount_weighting": False, "values": wrong_values(1)},
    ),
    "random, cut, wrong values": lambda: (*random_world(22, "table"), {"cut": 5, "values": wrong_values(2)}),
    "random, perceptron, wrong state": lambda: (
        *random_world(23, "mlp"), {"gamma": 0.9, "cut": 6, "at_cut": "wrong_state"},
    ),
}  # fmt: skip
#: Two-sided normal limit of all z together.
LIMIT = stats.norm.isf(LEVEL / 2 / (len(WORLDS) * len(PHI) * (2 + DIRECTIONS)))


@dataclass(frozen=True)
class Measured:
    """One world measured: its blocks, each estimate of a variance with its exact relative standard error, the oracle to call."""

    result: varlab.Result
    exact: functools.partial
    variance: np.ndarray
    error: np.ndarray

    def z_variance(self, exact):
        """[K] z of the variance."""
        return (self.variance / exact - 1) / self.error

    def z_mean(self, exact):
        """[K] the largest of |z| of the mean along its own direction and random ones, with sign."""
        blocks, draw = self.result.moments.mean, np.random.default_rng(0)  # [B, K, P]
        out = []
        for k, mean in enumerate(exact):
            directions = np.stack([mean, *draw.standard_normal((DIRECTIONS, mean.size))])
            errors = (blocks[:, k] - mean) @ directions.T
            z = normal(errors.mean(0) / (errors.std(0, ddof=1) / np.sqrt(len(errors))))
            out.append(z[np.abs(z).argmax()])
        return np.array(out)


def normal(t):
    """z with the tail probability of a t with 49 degrees of freedom."""
    return np.sign(t) * stats.norm.isf(stats.t.sf(np.abs(t), 49))


@functools.cache
def measured(name):
    env, policy, settings = WORLDS[name]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = varlab.measure(env, policy, PHI, n=N, seed=7, exact=True, sink=lambda rows: None, **settings)
    torch.set_num_threads(threads)
    assert (result.moments.count == N // 50).all()
    exact = functools.partial(varlab.exact, env, policy, **settings)
    known = exact(PHI, fourth=True)  # a fitted baseline is so near that of the population that its relative error is the same
    return Measured(result, exact, result.summary["variance"].to_numpy(), known.variance_standard_error(N) / known.variance)


@pytest.mark.parametrize("name", WORLDS)
def test_monte_carlo_agrees(name, capsys):
    """The summary's exact variances, those of fitted baselines included, and exact means, against a million trajectories."""
    one = measured(name)
    z_variance = one.z_variance(one.result.summary["exact_variance"].to_numpy())
    z_mean = one.z_mean(one.exact(PHI).mean)
    with capsys.disabled():
        print(f"\n{name}: n = {N:,}, limit {LIMIT:.2f}\n  {'':20s} {'z variance':>10s} {'z mean':>8s} {'error of variance':>18s}")
        for phi, z, m, e in zip(PHI, z_variance, z_mean, one.error, strict=True):
            print(f"  {phi:20s} {z:10.2f} {m:8.2f} {e:18.2%}")
        print(f"  {'largest':20s} {np.abs(z_variance).max():10.2f} {np.abs(z_mean).max():8.2f}")
    assert np.abs(z_variance).max() < LIMIT
    assert np.abs(z_mean).max() < LIMIT


def wrong_pairs(monkeypatch):
    def step(flow, scored, pairs, averaged=None):
        return coordinates.Step(flow, scored, {0: 1.03 * pairs[0], **{j: w for j, w in pairs.items() if j}}, averaged)

    monkeypatch.setattr(recursions, "Step", step)


def wrong_squares(monkeypatch):
    right = coordinates.TableLogits.second
    monkeypatch.setattr(coordinates.TableLogits, "second", lambda self, f: right(self, 1.03 * f))


def wrong_visits(monkeypatch):
    right = World.visits.func
    monkeypatch.setattr(World, "visits", property(lambda self: 1.03 * right(self)))


@pytest.mark.parametrize("error", (wrong_pairs, wrong_squares, wrong_visits))
def test_an_error_of_three_percent_in_one_term_is_seen(error, monkeypatch, capsys):
    """Negative control, on those Φ whose exact variance does not depend on a fit, over all worlds."""
    free, seen = [k for k, phi in enumerate(PHI) if not estimators.parse(phi).fits], {}
    for name in WORLDS:
        one = measured(name)
        part = Measured(one.result, one.exact, one.variance[free], one.error[free])
        phi = [PHI[k] for k in free]
        assert np.abs(part.z_variance(one.exact(phi).variance)).max() < LIMIT
        with monkeypatch.context() as patch:
            error(patch)
            seen[name] = np.abs(part.z_variance(one.exact(phi).variance)).max()
    with capsys.disabled():
        print(f"\n{error.__name__} by 3 %: |z| up to " + ", ".join(f"{z:.1f} ({name})" for name, z in seen.items()))
    assert max(seen.values()) > LIMIT
