"""Exact errors of GAE over λ, critic error and batch size: against the oracle one by one, and laws of the dial."""

import numpy as np
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.studies.lambda_errors import exact_errors

LAMBDAS = (0.0, 0.5, 0.9, 1.0)


@pytest.fixture(scope="module")
def case():
    mdp = random_mdp(3)
    env = envs.environment(mdp, 4)
    policy = policies.SoftmaxTable(env, logits=random_logits(1, mdp)).double()
    return env, policy, exact_errors(env, policy, LAMBDAS, errors=(0.0, 0.5, 1.0), gamma=0.9, error_seed=7)


def test_without_error_only_the_variance_is_left(case):
    env, policy, table = case
    exact = varlab.exact(env, policy, [f"gae(lam={lam})" for lam in LAMBDAS], gamma=0.9)
    part = table[(table["error"] == 0) & (table["batch_size"] == 100)]
    np.testing.assert_allclose(part["bias_sq"], 0.0, atol=1e-20)
    np.testing.assert_allclose(part["mse"], exact.nsr / 100, rtol=1e-10)


def test_bias_is_quadratic_in_the_error_and_nil_at_one(case):
    _, _, table = case
    one = table[table["batch_size"] == 10].set_index(["error", "lam"])["bias_sq"]
    for lam in LAMBDAS[:-1]:
        assert one[1.0, lam] == pytest.approx(4 * one[0.5, lam], rel=1e-10) and one[1.0, lam] > 1e-6
    assert one[1.0, 1.0] < 1e-20


def test_the_best_lambda_rises_with_the_batch(case):
    _, _, table = case
    best = table[table["best"] & (table["error"] == 1.0)].set_index("batch_size")["lam"]
    assert best.is_monotonic_increasing and (table.groupby(["error", "batch_size"])["best"].sum() == 1).all()
    chosen = table.loc[table.groupby(["error", "batch_size"])["mse"].idxmin()]
    assert chosen["best"].all()


def test_a_measurement_with_the_same_dial_finds_the_same_errors(case):
    """values.error with the same seed is the same critic; at a fixed n and seed, each within its 99.9 % interval."""
    env, policy, table = case
    names = [f"gae(lam={lam})" for lam in LAMBDAS]
    same = {"gamma": 0.9, "values": "exact", "values_error": 1.0, "error_seed": 7, "dtype": "float64", "exact": False}
    result = varlab.measure(env, policy, names, n=8000, pilot=100, **same)
    part = table[(table["error"] == 1.0) & (table["batch_size"] == 100)]
    square = result.summary["grad_norm"] ** 2
    np.testing.assert_allclose(result.summary["mse"] / square, part["mse"], rtol=0.25)
    wrong = table[(table["error"] == 0.5) & (table["batch_size"] == 100)]  # negative control: half the error
    assert not np.allclose(result.summary["mse"] / square, wrong["mse"], rtol=0.25)


def test_a_world_that_is_not_finite_is_refused():
    env = envs.make("CartPole-v1", horizon=5)
    with pytest.raises(InputError, match="finite MDP"):
        exact_errors(env, policies.make("linear", env), LAMBDAS)
