"""Mean squared errors against batch size: the table's own numbers, blocks left out one by one, exact values."""

from dataclasses import replace

import numpy as np
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, policies
from varlab.analysis.mse import Estimate, error_table, ratio, squared_error_at, squared_errors
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


def test_relative_errors_are_over_the_debiased_square_and_leave_blocks_out_of_both(result):
    _, _, found = result
    moments, reference = found.moments, found.references["J_1"]
    at, plain = (squared_error_at(moments, 0, reference, relative=r) for r in (True, False))
    square = found.summary["grad_norm"].iloc[0] ** 2
    assert at(30).value == pytest.approx(plain(30).value / square, rel=1e-10)
    np.testing.assert_allclose(at(30).own, plain(30).own / square, rtol=1e-10)
    if reference.block_mean is None:
        assert at(30).other is None
        return
    for b in (0, 31):
        count, means = np.delete(np.asarray(reference.block_count), b), np.delete(reference.block_mean, b, 0)
        less = replace(reference, block_count=count, block_mean=means, grad=count @ means / count.sum())
        assert at(30).other[b] == pytest.approx(squared_error_at(moments, 0, less, relative=True)(30).value, rel=1e-9)


def test_an_unbiased_choice_has_the_noise_to_signal_ratio_over_n(result):
    _, _, found = result
    row = found.summary.iloc[2]  # λ = 1 is unbiased whatever V is
    at = squared_error_at(found.moments, 2, found.references["J_1"], relative=True, unbiased=True)
    low, high = at(40).interval()
    assert (at(40).value, low, high) == pytest.approx((row.nsr / 40, row.nsr_low / 40, row.nsr_high / 40), rel=1e-10)


def test_a_table_names_lambda_and_the_best_choice(result):
    env, policy, found = result
    table = error_table(found.moments, found.references["J_1"], SIZES, unbiased=[PHI[2]])
    assert table["lam"].tolist() == [0.0, 0.0, 0.9, 0.9, 1.0, 1.0]
    truth = varlab.exact(env, policy, PHI, values=wrong(env))
    square = (truth.gradient**2).sum()
    for size, part in table.groupby("batch_size"):
        assert part["best"].sum() == 1 and part.loc[part["mse"].idxmin(), "best"]
        np.testing.assert_allclose(part["mse"], (truth.bias_sq + truth.variance / size) / square, rtol=0.25)
        assert (part["mse_low"] < part["mse"]).all() and (part["mse"] < part["mse_high"]).all()


def test_a_gradient_lost_in_the_reference_has_no_relative_error(result):
    _, _, found = result
    reference = found.references["J_1"]
    noise = np.random.default_rng(0).standard_normal((50, len(reference.grad)))
    lost = replace(reference, grad=0 * reference.grad, block_mean=noise - noise.mean(0), block_count=np.full(50, 10))
    with pytest.raises(InputError, match="reference.n"):
        squared_error_at(found.moments, 0, lost, relative=True)
