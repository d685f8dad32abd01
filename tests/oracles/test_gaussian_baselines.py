"""Baselines of least variance on linear systems: population values and exact variances against product quadrature."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_quadrature import Paths
from test_gaussian import WORLDS, agree, linear, tiny

import varlab
from varlab.checks import InputError
from varlab.estimators import Batch, make, weight
from varlab.estimators.optimal import BASES
from varlab.estimators.step_baselines import StepBaseline
from varlab.oracles.gaussian import CLASSES, covers, gaussian
from varlab.oracles.rows import exact_rows
from varlab.types import Values

OBJECTIVES = [(1.0, True), (0.8, True), (0.8, False)]


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    env = tiny(*WORLDS[request.param])
    policy = linear(env)
    return env, policy, Paths(env.system, policy, env.horizon)


def optimum(paths, base, of, gamma, weighted):
    """b of a class from sums over quadrature points: E w_t ⟨z_t, g_0⟩ over E w_t² ‖z_t‖²."""
    phi = weight(make(base), Batch(paths.trajectories, Values(), gamma), weighted).reshape(paths.reward.shape)
    horizon = paths.reward.shape[1]
    discount = gamma if weighted and base == "reward_to_go" else 1.0
    w = discount ** torch.arange(horizon, dtype=torch.float64)
    z = w[:, None] * paths.score
    g0 = torch.einsum("nt,ntp->np", phi, paths.score)
    a = torch.einsum("n,ntp->tp", paths.weight, z**2)
    c = torch.einsum("n,ntp,np->tp", paths.weight, z, g0)
    if of == "parameter":
        # Written with S itself: the pairs of steps that the oracle leaves out are in here.
        s = z.sum(1)
        return torch.einsum("n,np,np->p", paths.weight, s, g0) / torch.einsum("n,np->p", paths.weight, s**2)
    over = (1,) if of == "time" else (0, 1)
    return c.sum(over) / a.sum(over)


def enumerated(paths, e, gamma, weighted):
    """E g and diag Cov g, with what is subtracted parameter by parameter."""
    batch = Batch(paths.trajectories, Values(), gamma)
    g = torch.einsum("nt,ntp->np", weight(e, batch, weighted).reshape(paths.reward.shape), paths.score)
    if e.coefficients is not None:
        g = g + e.coefficients * torch.einsum("nt,ntp->np", e.companion(batch).reshape(paths.reward.shape), paths.score)
    mean = paths.weight @ g
    return mean.numpy(), (paths.weight @ (g - mean) ** 2).numpy()


@pytest.mark.parametrize(("gamma", "weighted"), OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("of", CLASSES)
def test_population_values_are_those_of_quadrature(world, of, base, gamma, weighted):
    env, policy, paths = world
    e, b = make("optimal_baseline", of=of, base=base), optimum(paths, base, of, gamma, weighted)
    if of == "parameter":
        given = replace(e, by_parameter=b, discounted=weighted)
    else:
        given = replace(e, fitted=StepBaseline(of, b, env.horizon), discounted=weighted)
    mean, variance = enumerated(paths, given, gamma, weighted)
    for phi in (e, given):
        found = gaussian(env, policy, phi, gamma=gamma, discount_weighting=weighted)
        agree(found.mean[0], mean)
        agree(found.variance_per_parameter[0], variance)
    for size in (0.1, -1.0):
        if of == "parameter":
            other = replace(given, by_parameter=b + size)
        else:
            other = replace(given, fitted=StepBaseline(of, b + size, env.horizon))
        worse = gaussian(env, policy, other, gamma=gamma, discount_weighting=weighted)
        agree(worse.variance_per_parameter[0], enumerated(paths, other, gamma, weighted)[1])
        assert worse.variance[0] > variance.sum()


@pytest.mark.parametrize("base", BASES)
def test_fitted_features_are_quadratic_forms(world, base):
    env, policy, paths = world
    n = env.system.state_dim
    beta = torch.randn(2 * n + 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e = replace(make("optimal_baseline", of="features", base=base), fitted=StepBaseline("features", beta, env.horizon))
    found = gaussian(env, policy, e, gamma=0.8)
    mean, variance = enumerated(paths, e, 0.8, True)
    agree(found.mean[0], mean)
    agree(found.variance_per_parameter[0], variance)


def test_what_it_does_not_cover_has_no_row():
    env = tiny(*WORLDS["1x1 H=2"])
    policy = linear(env)
    features, state = (make("optimal_baseline", of=of) for of in ("features", "state"))
    assert not covers(features) and not covers(state) and covers(make("optimal_baseline"))
    with pytest.raises(InputError, match="A Φ that is quadratic.*optimal_baseline of constant, time, parameter"):
        gaussian(env, policy, state)
    settings = {"gamma": 1.0, "discount_weighting": True, "cut": None, "at_cut": "bootstrap", "wanted": True}
    rows, _ = exact_rows(env, policy, [features, make("optimal_baseline")], None, **settings)
    assert rows[0] is None and rows[1] is not None


def test_a_measurement_has_exact_variances():
    env = tiny(*WORLDS["2x2 H=2"])
    policy = linear(env)
    phi = [make("optimal_baseline", of=of) for of in ("constant", "time", "features", "parameter")]
    rows = varlab.measure(env, policy, ["reward_to_go", *phi], n=4000, gamma=0.9, dtype="float64", pilot=200, seed=2).summary
    error = rows.variance * np.sqrt((rows["kurtosis"] - 1) / 4000)
    assert ((rows.variance - rows.exact_variance).abs() / error).max() < 4
    assert (rows.exact_variance[1:] < rows.exact_variance[0]).all()
