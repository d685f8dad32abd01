"""Nested estimates of variance components: their exact mean by enumeration, and against plug-in variances that leak."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from varlab.analysis import nested
from varlab.analysis.nested import NestedSample
from varlab.analysis.replicates import Replicated, combine, squared_mean
from varlab.checks import InputError

#: Three states, two actions each with scores of two parameters, two outcomes of Φ for each; all with their probabilities.
RHO = np.array([0.2, 0.5, 0.3])
PI = np.array([[0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
Z = np.array([[[0.7, 1.0], [-0.3, -3 / 7]], [[0.4, -1.0], [-0.6, 1.5]], [[0.9, 0.9], [-0.1, -0.1]]])
OUTCOME = np.array([[[1.0, 3.0], [-2.0, 0.5]], [[0.0, 4.0], [2.0, 2.5]], [[-1.0, 1.0], [5.0, -3.0]]])
CHANCE = np.array([[0.5, 0.1], [0.25, 0.5], [0.8, 0.4]])  # of the first outcome
STATE_BASELINE = np.array([1.0, 2.0, -1.0])
BASELINE = np.array([[0.4, -1.0], [2.0, 1.0], [0.0, 3.0]])


def truth(baseline):
    """(S_s, S_a, S_τ) from their definitions."""
    mean = CHANCE * OUTCOME[..., 0] + (1 - CHANCE) * OUTCOME[..., 1]
    spread = CHANCE * OUTCOME[..., 0] ** 2 + (1 - CHANCE) * OUTCOME[..., 1] ** 2 - mean**2
    size = (Z**2).sum(-1)
    given_state = np.einsum("sa,sap,sa->sp", PI, Z, mean)
    left = np.einsum("sa,sap,sa->sp", PI, Z, mean - baseline)
    action = RHO @ ((PI * size * (mean - baseline) ** 2).sum(1) - (left**2).sum(1))
    return RHO @ (given_state**2).sum(1) - ((RHO @ given_state) ** 2).sum(), action, RHO @ (PI * size * spread).sum(1)


def sample_of(rows, weight=1.0):
    """A sample of independent (state, (action, (outcome, …)), …) rows."""
    s = np.array([r[0] for r in rows])
    a = np.array([[x[0] for x in r[1]] for r in rows])
    o = np.array([[x[1] for x in r[1]] for r in rows])
    z = Z[s[:, None], a]
    phi = OUTCOME[s[:, None, None], a[..., None], o]
    level = STATE_BASELINE[s]
    mean = (z * (phi.mean(2) - level[:, None])[..., None]).mean(1)
    made = NestedSample(phi, np.einsum("njp,nkp->njk", z, z), np.ones(len(rows)), mean, level, weight)
    return made, BASELINE[s[:, None], a]


def draw(n, generator, actions=2, rollouts=2):
    def outcome(s, a):
        return tuple(int(generator.random() > CHANCE[s, a]) for _ in range(rollouts))

    rows = []
    for s in generator.choice(3, n, p=RHO):
        rows.append((s, [(a, outcome(s, a)) for a in generator.choice(2, actions, p=PI[s])]))
    return rows


@pytest.mark.parametrize(("actions", "rollouts"), [(2, 2), (3, 2), (2, 3)])
def test_inner_statistics_are_unbiased_by_enumeration(actions, rollouts):
    """Every inner draw of every state, with its probability: S_τ, S_a and E ‖E[g|s]‖² exactly."""
    rows, weights = [], []
    for s in range(3):
        options = [
            ((a, o), PI[s, a] * np.prod([CHANCE[s, a] if x == 0 else 1 - CHANCE[s, a] for x in o]))
            for a in range(2) for o in itertools.product(range(2), repeat=rollouts)
        ]  # fmt: skip
        for combination in itertools.product(options, repeat=actions):
            rows.append((s, [c[0] for c in combination]))
            weights.append(RHO[s] * np.prod([c[1] for c in combination]))
    found, b = sample_of(rows)
    weights = np.array(weights)
    size = np.einsum("njj->nj", found.gram)
    left = found.phi - b[..., None]
    action = (size * nested._pairs(left)).mean(1) - nested._between_actions(found.gram, left.mean(2))
    s_s, s_a, s_tau = truth(BASELINE)
    assert weights.sum() == pytest.approx(1.0)
    assert weights @ (size * found.phi.var(2, ddof=1)).mean(1) == pytest.approx(s_tau, rel=1e-12)
    assert weights @ action == pytest.approx(s_a, rel=1e-12)
    between = weights @ nested._between_actions(found.gram, found.phi.mean(2) - found.level[:, None])
    mean = weights @ found.mean
    assert between - mean @ mean == pytest.approx(s_s, rel=1e-12)
    # The plug-in variance of the inner means counts 1/R of the trajectories' noise as the actions': a falsehood that is seen.
    plug_in = weights @ ((size * left.mean(2) ** 2).mean(1) - nested._between_actions(found.gram, left.mean(2)))
    assert plug_in - s_a == pytest.approx(s_tau / rollouts, rel=1e-9)


@pytest.mark.parametrize("actions", [3, 4])
def test_the_component_under_the_exact_v_is_unbiased_by_enumeration(actions, monkeypatch):
    """Every inner draw of every state, with its probability, against S_a with the true V as baseline."""
    rows, weights = [], []
    options = [[((a, (o, u)), PI[s, a] * np.prod([CHANCE[s, a] if x == 0 else 1 - CHANCE[s, a] for x in (o, u)]))
                for a in range(2) for o in range(2) for u in range(2)] for s in range(3)]  # fmt: skip
    for s in range(3):
        for combination in itertools.product(options[s], repeat=actions):
            rows.append((s, [c[0] for c in combination]))
            weights.append(RHO[s] * np.prod([c[1] for c in combination]))
    found, _ = sample_of(rows)
    kept = {}
    monkeypatch.setattr(nested.Replicated, "mean", classmethod(lambda cls, x, blocks: kept.update(x=x)))
    mean = CHANCE * OUTCOME[..., 0] + (1 - CHANCE) * OUTCOME[..., 1]
    v = (PI * mean).sum(1, keepdims=True)
    # A number of the state moves neither: both are written in differences.
    for shift in (0.0, 1e3):
        nested.best_value_part(replace(found, phi=found.phi + shift))
        assert np.array(weights) @ kept["x"] == pytest.approx(truth(v)[1], rel=1e-9)
    # The mean over all actions, a_ij among them, in the place of V: biased.
    own = found.phi - found.phi.mean((1, 2), keepdims=True)
    size = np.einsum("njj->nj", found.gram)
    plug_in = (size * nested._pairs(own)).mean(1) - nested._between_actions(found.gram, own.mean(2))
    assert abs(np.array(weights) @ plug_in / truth(v)[1] - 1) > 0.05


def test_the_component_under_the_exact_v_needs_three_actions():
    made, _ = sample_of(draw(100, np.random.default_rng(0)))
    with pytest.raises(InputError, match="At least three actions in each state"):
        nested.best_value_part(made)


def test_the_square_of_a_mean_is_a_mean_over_pairs():
    x = np.random.default_rng(0).standard_normal((110, 3)) + 1.0
    pairs = [x[i] @ x[j] for i in range(110) for j in range(110) if i != j]
    found = squared_mean(x, 50)
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-12)
    kept = np.delete(x, np.arange(round(110 / 50)), axis=0)  # the first block
    m = len(kept)
    assert found.without[0] == pytest.approx(((kept.sum(0) ** 2).sum() - (kept**2).sum()) / (m * (m - 1)), rel=1e-12)


def test_estimates_are_near_the_truth_and_their_intervals_cover_it():
    generator = np.random.default_rng(5)
    hits, values, wanted = np.zeros(3), [], truth(BASELINE)
    for _ in range(100):
        made, b = sample_of(draw(400, generator))
        found = nested.parts(made, {"b": b})
        numbers = [found["state", ""], found["action", "b"], found["trajectory", ""]]
        values.append([x.value for x in numbers])
        hits += [x.interval().low <= t <= x.interval().high for x, t in zip(numbers, wanted, strict=True)]
    values = np.array(values)
    assert (np.abs(values.mean(0) - wanted) < 4 * values.std(0) / 10).all()
    assert (hits >= 88).all()


def test_a_component_that_is_zero_may_be_estimated_below_it():
    """With b = E[Φ | s, a] nothing is left to the actions; nothing is clipped."""
    mean = CHANCE * OUTCOME[..., 0] + (1 - CHANCE) * OUTCOME[..., 1]
    generator, values = np.random.default_rng(1), []
    for _ in range(40):
        rows = draw(100, generator)
        made, _ = sample_of(rows)
        b = np.array([[mean[s, a] for a, _ in inner] for s, inner in rows])
        values.append(nested.action_part(made, b).value)
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(40)


def test_time_steps_add_up_and_weights_are_squared():
    generator = np.random.default_rng(2)
    made, b = sample_of(draw(200, generator))
    half = replace(made, weight=0.5)
    one, quarter = (nested.parts(x, {"b": b}) for x in (made, half))
    both = nested.summed([one, quarter])
    for key, number in both.items():
        assert number.value == pytest.approx(1.25 * one[key].value, rel=1e-12)
        np.testing.assert_allclose(number.without, 1.25 * one[key].without, rtol=1e-12)


def test_functions_of_numbers_keep_their_replicates():
    a, b = Replicated.mean(np.arange(1.0, 101.0), 50), Replicated.mean(np.arange(101.0, 1.0, -1.0), 50)
    ratio = a / b
    assert ratio.value == pytest.approx(a.value / b.value)
    assert ratio.without[3] == pytest.approx(a.without[3] / b.without[3])
    assert (a - b).scaled(2.0).value == pytest.approx(2 * (a.value - b.value))
    assert combine(np.log, a).value == pytest.approx(np.log(50.5))
    low, high = ratio.interval(log=True)
    assert low < ratio.value < high
    assert np.isnan(combine(np.log, a.scaled(-1.0)).interval().low)


def test_too_little_to_compare_is_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(InputError, match="At least 100 states with two actions and two continuations"):
        sample_of(draw(200, generator, rollouts=1))
    with pytest.raises(InputError, match="has 60, 2 and 2"):
        sample_of(draw(60, generator))
