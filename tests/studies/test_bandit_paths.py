"""Learning on bandits: a loop twin, moments of one update against sums over arms, and baselines of least variance."""

import numpy as np
import pytest

from varlab import checks
from varlab.envs.closed_form import two_arms_natural_variance
from varlab.rng import Streams, numpy_generator
from varlab.studies import bandit_paths as bandits

R = np.array([[1.0, 0.7, 0.0], [0.2, -0.5, 0.4]])
PI = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 5))


def updates(pi, rule):
    """The vectors by which r − b is multiplied, one for each arm, from the Fisher matrix itself."""
    z = np.eye(3) - pi
    fisher = np.diag(pi) - np.outer(pi, pi)
    return z if rule == "plain" else z @ np.linalg.pinv(fisher)


@pytest.mark.parametrize("rule", bandits.RULES)
def test_moments_of_an_update(rule):
    log_pi = np.log(PI)
    for b in (np.zeros((2, 5)), np.full((2, 5), 0.6), bandits.value(log_pi, R)):
        mean, variance = (f(log_pi, R, b, rule) for f in (bandits.mean_update, bandits.variance))
        norm = np.exp(bandits.log_norm(log_pi, rule))
        for e in range(2):
            for i in range(5):
                u = updates(PI[e, i], rule)
                step = u * (R[e] - b[e, i])[:, None]
                np.testing.assert_allclose(norm[e, i], (u**2).sum(1), rtol=1e-9)
                np.testing.assert_allclose(mean[e, i], PI[e, i] @ step, atol=1e-10)
                spread = PI[e, i] @ ((step - PI[e, i] @ step) ** 2).sum(1)
                assert variance[e, i] == pytest.approx(spread, rel=1e-8)


@pytest.mark.parametrize("rule", bandits.RULES)
def test_b_star_is_best_and_shifts_are_alike(rule):
    log_pi = np.log(PI)

    def at(shift):
        return bandits.variance(log_pi, R, bandits.best(rule, shift)(log_pi, R), rule)

    assert (at(0.01) > at(0)).all() and (at(-0.01) > at(0)).all()
    np.testing.assert_allclose(at(0.5), at(-0.5), rtol=1e-10)


def test_two_arms_have_the_closed_form():
    p = 0.83
    log_pi = np.log([[[1 - p, p]]])
    for b in (0.0, 0.4):
        found = bandits.variance(log_pi, np.array([[0.6, 1.0]]), np.full((1, 1), b), "natural")
        assert found[0, 0] == pytest.approx(two_arms_natural_variance(p, b, (0.6, 1.0)), rel=1e-12)


def test_baselines_survive_certain_policies():
    log_pi = np.array([[[0.0, -800.0, -2000.0]]])
    r = R[:1]
    assert bandits.best("natural")(log_pi, r)[0, 0] == pytest.approx(0.0)  # the rarest arm's reward
    assert np.isfinite(bandits.best("plain")(log_pi, r)).all()


@pytest.mark.parametrize("rule", bandits.RULES)
def test_a_loop_learns_the_same(rule):
    found = bandits.learn(R, bandits.shared_value, seed=5, runs=3, keep=(0, 2, 6), step=0.7, rule=rule)
    rng = numpy_generator(Streams(5).sequence("rollout"))
    theta = np.zeros((2, 3, 3))
    kept = []
    for t in range(7):
        pi = np.exp(theta) / np.exp(theta).sum(-1, keepdims=True)
        if t in (0, 2, 6):
            kept.append(pi)
        u = rng.random((2, 3, 1))
        b = np.array([np.mean([pi[e, i] @ R[e] for e in range(2)]) for i in range(3)])
        for e in range(2):
            for i in range(3):
                arm = next(a for a in range(3) if u[e, i, 0] < pi[e, i, : a + 1].sum() or a == 2)
                theta[e, i] += 0.7 * (R[e, arm] - b[i]) * updates(pi[e, i], rule)[arm]
    np.testing.assert_allclose(found.policy, np.stack(kept), rtol=1e-8)
    np.testing.assert_allclose(found.gap[2], R.max(1)[:, None] - np.einsum("era,ea->er", kept[2], R), atol=1e-8)


def test_runs_share_numbers_by_part():
    same = {"seed": 1, "runs": 4, "keep": (5,), "step": 0.3}
    one, two = (bandits.learn(R, bandits.none, **same).policy for _ in range(2))
    other = bandits.learn(R, bandits.none, part=1, **same).policy
    assert (one == two).all() and (one != other).any()
    with pytest.raises(checks.InputError, match="rule of learning"):
        bandits.learn(R, bandits.none, rule="mirror", **same)
