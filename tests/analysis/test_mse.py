"""Mean squared errors against batch size: the table's own numbers, blocks left out one by one, exact values."""

from dataclasses import replace

import numpy as np
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, policies
from varlab.analysis.mse import Estimate, ratio, squared_errors
from varlab.checks import InputError
from varlab.values import FunctionValues

PHI = ("gae(lam=0.0)", "gae(lam=0.9)", "gae(lam=1.0)")
SIZES = (10, 100)


def wrong(env):
    v = np.random.default_rng(0).standard_normal((env.horizon + 1, env.finite.num_states))
    return FunctionValues(v=lambda s, t: env.finite.initial.new_tensor(v)[t, s])


@pytest.fixture(scope="module", params=("exact", "sampled"))
def result(request):
    mdp = random_mdp(3)
    env = envs.environment(mdp, 4)
    policy = policies.SoftmaxTable(env, logits=random_logits(1, mdp))
    settings = {"n": 4000, "pilot": 100, "dtype": "float64", "reference": request.param, "n_reference": 3000}
    return env, policy, varlab.measure(env, policy, PHI, values=wrong(env), batch_size=100, **settings)


def without(x, b):
    return None if x is None else np.delete(x, b, axis=0)


def test_values_are_those_of_the_table(result):
    _, _, found = result
    errors = squared_errors(found.moments, found.references["J_1"], SIZES)
    for row in found.summary.itertuples():
        np.testing.assert_allclose(errors[row.phi, 100].value, row.mse, rtol=1e-12)
        np.testing.assert_allclose(errors[row.phi, 10].value, row.bias_sq + row.variance / 10, rtol=1e-12)


def test_leaving_a_block_out_is_measuring_without_it(result):
    """Measurement and reference are cut down to the other blocks and everything is estimated again."""
    _, _, found = result
    moments, reference = found.moments, found.references["J_1"]
    errors = squared_errors(moments, reference, SIZES)
    for b in (0, 17, 49):
        names = [k for k, v in vars(moments).items() if isinstance(v, np.ndarray) and len(v) == len(moments.count)]
        fewer = replace(moments, **{k: without(getattr(moments, k), b) for k in names})
        for key, again in squared_errors(fewer, reference, SIZES).items():
            np.testing.assert_allclose(errors[key].own[b], again.value, rtol=1e-10)
        if reference.block_mean is None:
            assert errors[PHI[0], 10].other is None
            continue
        count = without(np.asarray(reference.block_count), b)
        means = without(reference.block_mean, b)
        less = replace(reference, block_count=count, block_mean=means, grad=count @ means / count.sum())
        for key, again in squared_errors(moments, less, SIZES).items():
            np.testing.assert_allclose(errors[key].other[b], again.value, rtol=1e-10)


def test_intervals_hold_the_exact_values(result):
    env, policy, found = result
    truth = varlab.exact(env, policy, PHI, values=wrong(env))
    errors = squared_errors(found.moments, found.references["J_1"], SIZES)
    for size in SIZES:
        exact = dict(zip(PHI, truth.bias_sq + truth.variance / size, strict=True))
        for phi in PHI:
            low, high = errors[phi, size].interval(0.999)
            assert low < exact[phi] < high, (phi, size)
        paired = ratio(errors[PHI[0], size], errors[PHI[2], size])
        low, high = paired.interval(0.999)
        assert low < exact[PHI[0]] / exact[PHI[2]] < high and high / low < 3


def test_ratios_are_of_the_same_blocks():
    ten, nine = Estimate(1.0, np.ones(10)), Estimate(2.0, np.ones(9))
    assert ratio(ten, ten).interval() == (1.0, 1.0)
    with pytest.raises(InputError, match="same blocks"):
        ratio(ten, nine)
    with pytest.raises(InputError, match="same blocks"):
        ratio(Estimate(1.0, np.ones(10), np.ones(5)), ten)


def test_a_value_below_zero_has_an_interval_too():
    x = np.linspace(-1.0, 1.0, 20)
    low, high = Estimate(-0.1, -0.1 + 0.01 * x).interval()
    assert low < -0.1 < high
