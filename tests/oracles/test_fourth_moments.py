"""Exact fourth moments against sums over every trajectory of tiny worlds, and the standard error that follows from them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from action_estimators import WithActions, tables
from enumerated_moments import Masked, Temperature, every_gradient, fourth_moments
from finite_worlds import random_logits, random_mdp
from test_exact_enumeration import SameTable, TotalReturnLessStart

import varlab
from varlab import envs, estimators, policies, values
from varlab.envs import lqg
from varlab.estimators import Baseline
from varlab.oracles import fourth_moments as room
from varlab.oracles.exact import fourth_row, world_of
from varlab.policies import SoftmaxTable
from varlab.values import FunctionValues

TOLERANCE = 1e-11
HORIZON, STATES, ACTIONS = 4, 3, 2
B, PSI = tables(5, HORIZON, STATES, ACTIONS)
NAMES = (
    *(name for name in estimators.SOURCE_TEXT if not estimators.parse(name).fits), "n_step(k=1)", "n_step(k=2)", "n_step(k=3)",
    "n_step(k=4)", "gae(lam=0.0)", "gae(lam=0.5)", "gae(lam=1.0)",
)  # fmt: skip
CHOICES = [
    *map(estimators.parse, NAMES), TotalReturnLessStart(), Baseline(lambda s, t: 3.0 * s - t**2, called="user"),
    WithActions(psi=PSI), WithActions(b=B),
    *(WithActions(estimators.parse(x), b=B, psi=p) for x in ("reward_to_go", "n_step(k=3)") for p in (None, B, PSI)),
]  # fmt: skip
KINDS = {
    "table": lambda env: SoftmaxTable(env, random_logits(1, env.finite)),
    "more parameters than pairs": lambda env: Temperature(STATES, ACTIONS),
    "fewer parameters than pairs": lambda env: Masked(),
}
OBJECTIVES = ((1.0, True), (0.8, True), (0.8, False))


def prepared(env, make):
    return policies.prepare(make(env), torch.float64, "cpu")


def wrong_values(horizon=HORIZON, states=STATES, actions=ACTIONS):
    draw = torch.Generator().manual_seed(2)
    v = 3 * torch.randn(horizon + 1, states, generator=draw, dtype=torch.float64)
    q = 3 * torch.randn(horizon, states, actions, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


@pytest.fixture(scope="module", params=KINDS)
def world(request):
    env = envs.environment(random_mdp(0), HORIZON)
    return env, prepared(env, KINDS[request.param])


def largest_error(env, policy, phi, source, **settings):
    """The largest relative difference of E ‖·‖⁴, tr Σ² and kurtosis from enumeration over Φ."""
    found = varlab.exact(env, policy, phi, values=source, fourth=True, **settings)
    known = values.ExactValues.of(env.finite, policy, settings.get("gamma", 1.0), env.horizon) if source == "exact" else source
    truth = fourth_moments(env, policy, phi, known, **settings)
    pairs = [(found.fourth, truth["fourth"]), (found.trace_sq, truth["trace_sq"])]
    pairs.append((found.kurtosis, truth["fourth"] / truth["variance"] ** 2))
    return max(np.abs(ours / theirs - 1).max() for ours, theirs in pairs)


@pytest.mark.parametrize(("gamma", "weighting"), OBJECTIVES)
def test_every_phi_by_enumeration(world, gamma, weighting):
    settings = {"gamma": gamma, "discount_weighting": weighting}
    for cut, at_cut in ((None, "bootstrap"), (3, "bootstrap"), (2, "wrong_state"), (1, "terminal")):
        assert largest_error(*world, CHOICES, wrong_values(), cut=cut, at_cut=at_cut, **settings) < TOLERANCE, (cut, at_cut)
    if gamma < 1 and weighting:
        assert largest_error(*world, [e for e in CHOICES], "exact", **settings) < TOLERANCE


def test_baselines_of_the_population(world):
    env, policy = world
    chosen = [estimators.parse(name) for name in ("constant_baseline", "time_baseline")]
    inner = world_of(env, policy, None, 0.9, None, "terminal")
    fitted = (inner.mean_reward_to_go, torch.from_numpy(inner.mean_reward_to_go_at))
    fixed = [replace(e, fitted=b) for e, b in zip(chosen, fitted, strict=True)]
    found = varlab.exact(env, policy, chosen, gamma=0.9, fourth=True)
    truth = fourth_moments(env, policy, fixed, None, gamma=0.9)
    np.testing.assert_allclose(found.fourth, truth["fourth"], rtol=TOLERANCE)


@pytest.mark.parametrize(
    "change",
    (
        {"horizon": 1}, {"gamma": 0.0}, {"gamma": 0.0, "discount_weighting": False}, {"outcomes": 1}, {"ending": 0.0},
        {"ending": 1.1}, {"states": 1}, {"actions": 3, "outcomes": 2},
    ),
    ids=str,
)  # fmt: skip
def test_degenerate_worlds(change):
    change = dict(change)
    settings = {k: change.pop(k) for k in ("gamma", "discount_weighting") if k in change}
    env = envs.environment(random_mdp(6, **{k: v for k, v in change.items() if k != "horizon"}), change.get("horizon", 3))
    for make in (lambda env: SoftmaxTable(env, random_logits(5, env.finite)), lambda env: policies.make("mlp", env, hidden=(3,))):
        assert largest_error(env, prepared(env, make), [estimators.parse(x) for x in NAMES], "exact", **settings) < TOLERANCE


def test_no_choice_no_spread():
    env = envs.environment(random_mdp(6, actions=1), 3)
    found = varlab.exact(env, SoftmaxTable(env), NAMES, fourth=True)
    assert not found.fourth.any() and not found.trace_sq.any() and np.isnan(found.kurtosis).all()
    assert not found.variance_standard_error(10).any()


def test_routes_agree_on_a_larger_world():
    """The table's own rows, all logits, θ shared by states; the trace of the covariance is the other oracle's variance."""
    mdp = random_mdp(11, states=9, actions=3, outcomes=4, ending=0.03)
    env, logits = envs.environment(mdp, 15), random_logits(12, mdp)
    phi = ("total_return", "reward_to_go", "value_baseline", "td_residual", "n_step(k=3)", "gae(lam=0.9)")
    one, other = (varlab.exact(env, p, phi, gamma=0.95, fourth=True) for p in (SoftmaxTable(env, logits), SameTable(logits)))
    for name in ("fourth", "trace_sq", "kurtosis"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-10)
    shared = SameTable(logits, torch.tensor([0, 1, 1, 0, 2, 2, 1, 0, 1]))
    for policy in (SoftmaxTable(env, logits), shared):
        double = policies.prepare(policy, torch.float64, "cpu")
        inner = world_of(env, double, values.ExactValues.of(mdp, double, 0.95, 15), 0.95, None, "bootstrap")
        found = [fourth_row(inner, estimators.parse(x), True) for x in phi]
        known = varlab.exact(env, policy, phi, gamma=0.95).variance
        np.testing.assert_allclose([x.variance for x in found], known, rtol=1e-11)
        assert all(x.variance**2 < x.fourth and x.trace_sq < x.variance**2 for x in found)


def test_large_rewards_that_a_baseline_takes_away():
    """Rewards of 1000 ± 1 without an end: exact values remove them, and digits must not go with them."""
    mdp = random_mdp(3, ending=0.0)
    phi = ("value_baseline", "time_baseline", "td_residual", "n_step(k=2)", "n_step(k=4)", "gae(lam=0.9)", "advantage")
    found = []
    for constant in (0.0, 1000.0):
        env = envs.environment(replace(mdp, reward=mdp.reward + constant), 12)
        found.append(varlab.exact(env, SoftmaxTable(env, random_logits(4, mdp)), phi, fourth=True))
    np.testing.assert_allclose(found[1].fourth, found[0].fourth, rtol=1e-9)
    np.testing.assert_allclose(found[1].trace_sq, found[0].trace_sq, rtol=1e-9)


@pytest.mark.parametrize("ratio", (1.0, 1e3, 1e5))
def test_a_mean_far_larger_than_the_spread(ratio):
    """One state: what averages over actions is a constant, and adds nothing but a mean."""
    mdp = random_mdp(3, states=1, ending=0.0)
    env = envs.environment(mdp, 5)
    policy = prepared(env, lambda env: SoftmaxTable(env, random_logits(4, mdp)))
    psi = torch.tensor([ratio, 0.0], dtype=torch.float64).expand(5, 1, 2)
    base = estimators.parse("reward_to_go")
    plain, shifted = (
        fourth_row(world_of(env, policy, None, 1.0, None, "terminal"), e, True) for e in (base, WithActions(base, psi=psi))
    )
    for name in ("fourth", "variance", "trace_sq"):
        assert getattr(shifted, name) == pytest.approx(getattr(plain, name), rel=1e-9)


def test_a_total_return_with_a_mean_above_its_spread():
    """Each of two arms pays what its score lacks: ‖E g‖ = 25 spreads."""
    mdp = random_mdp(3, states=1, actions=2, outcomes=2)
    reward = torch.tensor([[[-1.03, -0.97], [1.05, 0.98]]], dtype=torch.float64)
    env = envs.environment(replace(mdp, reward=reward), 1)
    policy = prepared(env, SoftmaxTable)
    found = varlab.exact(env, policy, "total_return")
    assert found.nsr[0] < 25**-2
    truth = fourth_moments(env, policy, [estimators.parse("total_return")], None)
    ours = fourth_row(world_of(env, policy, None, 1.0, None, "terminal"), estimators.parse("total_return"), True)
    for name, x in truth.items():
        assert getattr(ours, name) == pytest.approx(x[0], rel=1e-9)


def test_the_standard_error_by_all_samples(world):
    """Var of the unbiased variance of n = 2 and 3 draws, as a sum over all pairs and triples of trajectories."""
    env, policy = envs.environment(world[0].finite, 1), world[1]
    for name in ("reward_to_go", "value_baseline"):
        e = estimators.parse(name)
        p, g = every_gradient(env, policy, [e], wrong_values(1))
        p, g = p.numpy(), g[:, 0].numpy()
        found = varlab.exact(env, policy, e, values=wrong_values(1), fourth=True)
        for n in (2, 3):
            index = np.array(list(itertools.product(range(len(p)), repeat=n)))
            weight, drawn = p[index].prod(1), g[index]
            estimate = drawn.var(1, ddof=1).sum(-1)
            mean = weight @ estimate
            assert mean == pytest.approx(found.variance[0], rel=1e-12)
            error = np.sqrt(weight @ (estimate - mean) ** 2)
            assert found.variance_standard_error(n)[0] == pytest.approx(error, rel=1e-11)


def test_the_standard_error_by_simulation(world):
    """Over 20,000 samples of 12 trajectories, corrected for the number of tests; an error of 3 % in it would be seen."""
    env, policy = world
    phi, n, repeats = [estimators.parse(x) for x in ("total_return", "value_baseline", "n_step(k=2)")], 12, 20_000
    p, g = every_gradient(env, policy, phi, values.ExactValues.of(env.finite, policy, 1.0, HORIZON))
    found = varlab.exact(env, policy, phi, fourth=True)
    p, g = p.numpy(), g.numpy()
    drawn = np.random.default_rng(1).choice(len(p), (repeats, n), p=p / p.sum())
    for k, error in enumerate(found.variance_standard_error(n)):
        square = (g[drawn, k].var(1, ddof=1).sum(-1) - found.variance[k]) ** 2
        noise = square.std() / np.sqrt(repeats)
        assert abs(square.mean() - error**2) < 3.6 * noise  # nine tests at 0.3 % together


# Negative controls: each changes one term, and enumeration must notice at least one Φ.


def scaled_table(name):
    """One kind of moment at t + 1 too large."""

    def patch(monkeypatch):
        right = room._Step.__init__

        def wrong(self, chain, t, later):
            right(self, chain, t, replace(later, **{name: {m: 1.03 * x for m, x in getattr(later, name).items()}}))

        monkeypatch.setattr(room._Step, "__init__", wrong)

    return patch


def scaled_function(name):
    def patch(monkeypatch):
        right = getattr(room._Step, name)
        monkeypatch.setattr(room._Step, name, lambda self, *a: {m: 1.03 * x for m, x in right(self, *a).items()})

    return patch


def scaled_projection(monkeypatch):
    right = room._Step.projected
    monkeypatch.setattr(room._Step, "projected", lambda self: lambda m, f=None: 1.03 * right(self)(m))


def scaled_weight(power):
    def patch(monkeypatch):
        right = room._Step.__init__

        def wrong(self, *arguments):
            right(self, *arguments)
            self.weight[power] = 1.03 * self.weight[power]

        monkeypatch.setattr(room._Step, "__init__", wrong)

    return patch


def half_a_shift(monkeypatch):
    right = room._shift
    monkeypatch.setattr(room, "_shift", lambda moments, u: right(moments, 1.03 * u))


ERRORS = {
    **{f"moments of the kind {name}": scaled_table(name) for name in ("one", "vector", "matrix", "cubic", "quartic")},
    **{f"power {power} of x": scaled_weight(power) for power in range(5)},
    "what is mixed of the matrices": scaled_function("mixed"),
    "what the score sees of the matrices": scaled_projection,
    "the shift to mean zero": half_a_shift,
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_three_percent_in_one_term_is_seen(error, monkeypatch):
    env = envs.environment(random_mdp(0), HORIZON)
    policy, phi = prepared(env, KINDS["table"]), [*CHOICES[:4], WithActions(psi=PSI)]
    assert largest_error(env, policy, phi, wrong_values()) < TOLERANCE
    ERRORS[error](monkeypatch)
    assert largest_error(env, policy, phi, wrong_values()) > 1e-5


def refuses(match, call):
    with pytest.raises(varlab.InputError, match=match) as caught:
        call()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_what_is_refused(monkeypatch):
    env = envs.environment(random_mdp(0), 30)
    policy = SoftmaxTable(env)
    plain = varlab.exact(env, policy, "reward_to_go")
    assert plain.fourth is None and plain.trace_sq is None
    for call in (lambda: plain.kurtosis, lambda: plain.variance_standard_error(10)):
        refuses("Fourth moments were expected.*fourth=True", call)
    full = varlab.exact(env, policy, "reward_to_go", fourth=True)
    np.testing.assert_array_equal(full.variance, plain.variance)
    refuses("At least n = 2 trajectories", lambda: full.variance_standard_error(1))
    refuses("n must be a whole number", lambda: full.variance_standard_error(2.5))
    refuses(r"A window of at most 10 steps.*n_step\(k=11\)", lambda: varlab.exact(env, policy, "n_step(k=11)", fourth=True))
    assert varlab.exact(env, policy, "n_step(k=30)", fourth=True).kurtosis[0] > 1  # as long as the episode: no window
    big = envs.environment(random_mdp(0, states=300), 3)
    refuses("S · D² of at most 1e.07.*2.7e.07 in 300 states", lambda: varlab.exact(big, SoftmaxTable(big), fourth=True))
    system = lqg.random_system(3, seed=1)
    refuses("A finite MDP was expected for fourth", lambda: varlab.exact(system, policies.make("linear", system), fourth=True))
