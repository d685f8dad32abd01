"""The closed-form worlds: formulas against varlab.exact, against the Gaussian oracle, and against simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import varlab
from varlab import policies
from varlab.checks import InputError
from varlab.envs import closed_form
from varlab.estimators.baselines import Baseline, ConstantBaseline
from varlab.oracles.gaussian import gaussian
from varlab.types import Reference

PROBABILITIES = [0.1, 0.5, 2 / 3, 0.9]


def logit(p):
    return math.log(p / (1 - p))


def table(env, p):
    """A softmax table with π(a = 1) = p in every state."""
    row = torch.tensor([0.0, logit(p)], dtype=torch.float64)
    return policies.SoftmaxTable(env, row.expand(env.num_features, 2)).double()


def shared(env, p):
    """Logits w x without bias: one p where x = 1, no score where x = 0."""
    policy = policies.Linear(env).double()
    policy.net.bias.requires_grad_(False)
    with torch.no_grad():
        policy.net.weight.copy_(torch.tensor([[0.3], [0.3 + logit(p)]], dtype=torch.float64))
        policy.net.bias.zero_()
    return policy


def bandit_policy(env, std):
    """a ~ N(0, s² I) whose mean is its only parameter."""
    policy = policies.Linear(env, log_std=math.log(std)).double()
    with torch.no_grad():
        policy.net.bias.zero_()
        policy.log_std.value.fill_(math.log(std))
    policy.net.weight.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    return policy


def constant(b):
    return Baseline(b=lambda obs, t: torch.full(t.shape, b, dtype=torch.float64), called=f"b={b:g}")


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("b", [0.0, 0.3, -1.0])
def test_two_arms(p, b):
    env = closed_form.two_arms()
    found = varlab.exact(env, table(env, p), [constant(b), "value_baseline", constant(1 - p + 1e-9)])
    expected = [closed_form.two_arms_variance(p, x) for x in (b, p, 1 - p)]
    np.testing.assert_allclose(found.variance_per_parameter, np.array(expected)[:, None] * [[1, 1]], rtol=0, atol=1e-12)
    assert expected[2] == pytest.approx(0.0, abs=1e-30)
    np.testing.assert_allclose(found.mean, np.array([[-1, 1]] * 3) * p * (1 - p), atol=1e-12)


def test_the_value_function_is_worse_than_no_baseline_beyond_two_thirds():
    def worse(p):
        return closed_form.two_arms_variance(p, p) > closed_form.two_arms_variance(p)

    assert not worse(0.66) and worse(0.67)
    ratio = closed_form.two_arms_variance(0.9, 0.9) / closed_form.two_arms_variance(0.9)
    assert ratio == pytest.approx(64.0)  # "sixty-four times worse" at p = 0.9


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_sign_flip(p, gamma):
    env = closed_form.sign_flip()
    expected = closed_form.sign_flip_derivatives(p, gamma)
    family = ["reward_to_go", "value_baseline", "advantage", "td_residual"]

    def mean(**kwargs):
        found = varlab.exact(env, shared(env, p), family, **kwargs)
        return found.mean, found.gradient

    def is_slope(found, slope):
        np.testing.assert_allclose(found, np.broadcast_to([-slope, slope], found.shape), rtol=0, atol=1e-12)

    for kwargs, name in (({"gamma": gamma}, "J_gamma"), ({"gamma": 1.0}, "J_1")):
        estimated, gradient = mean(**kwargs)
        is_slope(estimated, expected[name])
        is_slope(gradient, expected[name])
    is_slope(mean(gamma=gamma, discount_weighting=False)[0], expected["dropped"])
    if gamma == 0.5:
        wanted = {"J_gamma": 0.25, "J_1": 6.5, "dropped": -0.5}
        assert expected == pytest.approx({k: x * p * (1 - p) for k, x in wanted.items()}, abs=1e-15)


def test_following_the_sign_flipped_update_ends_at_the_worst_policy():
    env = closed_form.sign_flip()
    for gamma in (0.5, 1.0):
        j = [varlab.exact(env, shared(env, p), "reward_to_go", gamma=gamma).j for p in (0.01, 0.5, 0.99)]
        assert j[0] < j[1] < j[2]
    assert all(closed_form.sign_flip_derivatives(p)["dropped"] < 0 for p in (0.01, 0.5, 0.99))


@pytest.mark.parametrize("p", PROBABILITIES)
def test_constant_return(p):
    env = closed_form.constant_return()
    found = varlab.exact(env, table(env, p), ["total_return", "reward_to_go"])
    expected = closed_form.constant_return_variance(p)
    assert expected["total_return"] == 0 and found.variance[0] == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_allclose(found.variance_per_parameter[1], [0, 0, p * (1 - p), p * (1 - p)], rtol=0, atol=1e-12)
    assert expected["reward_to_go"] == pytest.approx(p * (1 - p)) and found.j == pytest.approx(0.0, abs=1e-15)
    np.testing.assert_allclose(found.mean, 0.0, atol=1e-15)
    if p == 0.5:
        assert expected["reward_to_go"] == 0.25


@pytest.mark.parametrize("m", [1, 6, 30])
@pytest.mark.parametrize("std", [1.0, 0.4])
def test_gaussian_bandit_against_the_gaussian_oracle(m, std):
    env = closed_form.gaussian_bandit(m)
    best = ConstantBaseline(fitted=-(m + 2) * std**2)
    found = gaussian(env, bandit_policy(env, std), ["total_return", "value_baseline", best])
    expected = [closed_form.gaussian_bandit_variance(m, name, std) for name in ("none", "value", "optimal")]
    np.testing.assert_allclose(found.variance_per_parameter, np.repeat(np.array(expected)[:, None], m, 1), rtol=1e-12)
    assert found.j == pytest.approx(-m * std**2, rel=1e-12)
    for shift in (-0.1, 0.1):  # the best constant is the best
        other = gaussian(env, bandit_policy(env, std), ConstantBaseline(fitted=best.fitted + shift))
        assert other.variance[0] > found.variance[2]


@pytest.mark.parametrize("std", [1.0, 0.4])
def test_the_factorised_baseline_by_quadrature(std):
    x, w = np.polynomial.hermite_e.hermegauss(6)
    w, a = w / w.sum(), std * x
    for shift, excess in ((0.0, 0.0), (1.0, 1.0), (-2.0, 4.0)):
        g = a / std**2 * (-(a**2) + (3 + shift) * std**2)  # r − b_j leaves −a_j² + 3 s²
        variance = w @ g**2 - (w @ g) ** 2
        assert variance == pytest.approx(closed_form.gaussian_bandit_variance(6, "factorised", std) + excess * std**2, rel=1e-12)


def test_gaussian_bandit_numbers_of_a_thousand_dimensions():
    numbers = [closed_form.gaussian_bandit_variance(1000, b) for b in ("none", "value", "optimal", "factorised")]
    assert numbers == [1_006_008, 2_008, 2_004, 6]


WORLDS = {
    "two arms": (closed_form.two_arms, lambda e: table(e, 0.8), ["total_return", "value_baseline"], 1.0),
    "sign flip": (closed_form.sign_flip, lambda e: shared(e, 0.6), ["total_return", "reward_to_go", "value_baseline"], 0.5),
    "constant return": (closed_form.constant_return, lambda e: table(e, 0.7), ["total_return", "reward_to_go"], 1.0),
    "gaussian bandit": (
        lambda: closed_form.gaussian_bandit(6), lambda e: bandit_policy(e, 0.7),
        ["total_return", ConstantBaseline(fitted=-4.0)], 1.0,
    ),
}  # fmt: skip


def deviations(found, truth):
    """z of the mean of every parameter and of the variance of every Φ."""
    moments, rows = found.moments, found.summary
    mean = np.einsum("b,bkp->kp", moments.count / moments.n, moments.mean)
    spread = np.sqrt(truth.variance_per_parameter / moments.n)
    means = np.divide(mean - truth.mean, spread, out=np.zeros_like(mean), where=spread > 1e-9)
    random = truth.variance > 1e-20
    assert (rows.variance[~random] < 1e-20).all()
    rows = rows[random]
    error = rows.variance * np.sqrt((rows["kurtosis"] - 1) / moments.n)
    return np.concatenate([means.ravel(), ((rows.variance - truth.variance[random]) / error).to_numpy()])


@pytest.mark.parametrize("name", WORLDS)
def test_simulation_agrees(name):
    make, act, phi, gamma = WORLDS[name]
    env = make()
    policy = act(env)
    finite = env.finite is not None
    truth = varlab.exact(env, policy, phi, gamma=gamma) if finite else gaussian(env, policy, phi)
    known = Reference(truth.gradient, None, None, truth.j, "exact", 0, "J_1")
    phi = phi if finite else ["total_return", constant(-4.0)]  # a fitted number would be fitted anew
    found = varlab.measure(
        env, policy, phi, n=20_000, gamma=gamma, dtype="float64", seed=5, reference="exact" if finite else known
    )
    z = deviations(found, truth)
    assert np.abs(z).max() < norm.isf(1e-3 / (2 * z.size)), np.abs(z).max()
    off = type(truth)(truth.names, truth.mean, truth.variance * 1.2, truth.variance_per_parameter, truth.gradient, truth.j)
    assert np.abs(deviations(found, off)).max() > norm.isf(1e-3 / (2 * z.size)), "a wrong variance must be seen"


def test_what_cannot_be_is_told():
    for wrong in (lambda: closed_form.two_arms_variance(1.2), lambda: closed_form.sign_flip_derivatives(-0.1),
                  lambda: closed_form.constant_return_variance(float("nan"))):  # fmt: skip
        with pytest.raises(InputError, match=r"p must lie in \[0, 1\]"):
            wrong()
    with pytest.raises(InputError, match="nearest names are .*value"):
        closed_form.gaussian_bandit_variance(3, "values")
    with pytest.raises(InputError, match="dim must be a whole number"):
        closed_form.gaussian_bandit(0)
