"""What the variance needs of b_t(s_t), by recursion, against sums over every trajectory; and that pairs of steps drop out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from enumerated_moments import every_trajectory, gradients, moments
from test_exact_enumeration import CUTS, HORIZON, KINDS, OBJECTIVES, Setting

import varlab
from varlab import scores
from varlab.checks import InputError
from varlab.estimators import Batch, make, weight
from varlab.estimators.step_baselines import CLASSES, StepBaseline
from varlab.oracles.exact import fourth_row, world_of
from varlab.oracles.score_moments import score_moments
from varlab.types import Values

TOLERANCE = 1e-12
BASES = ("reward_to_go", "total_return")


@pytest.fixture(scope="module", params=KINDS)
def setting(request):
    return Setting(request.param)


def step_scores(policy, traj):
    """z_t [M, P]: every step as an episode of its own."""
    form = scores.make(policy, traj.obs[:4], traj.action[:4])
    one = torch.ones(traj.steps, 1, 1, dtype=torch.float64)
    return form.at(traj.obs.unsqueeze(1), traj.action.unsqueeze(1)).apply(one)[:, 0].clone()


def enumerated(setting, base, gamma, weighting, h, source=None, cut=None, at_cut="bootstrap"):
    """The five moments as sums over trajectories and steps."""
    env, policy = setting.env, setting.policy
    traj, probability = every_trajectory(env, policy, cut)
    batch = Batch(traj, Values() if source is None else source(traj, frozenset("vq")), gamma, at_cut)
    g0 = gradients(policy, traj, weight(make(base), batch, weighting)[:, None])[:, 0]
    z, p = step_scores(policy, traj), probability[traj.episode]
    w = gamma ** traj.time.double() if weighting and base == "reward_to_go" else torch.ones_like(traj.reward)
    states = env.finite.num_states
    cell = traj.time * states + traj.state

    def by_cell(x):
        return torch.zeros(HORIZON * states, dtype=torch.float64).index_add(0, cell, p * x).reshape(HORIZON, states).numpy()

    shares = h[traj.time, traj.state]
    product = w[:, None] * z * g0[traj.episode]
    return {
        "norm": by_cell(w**2 * z.square().sum(1)),
        "product": by_cell(product.sum(1)),
        "own": by_cell(w**2 * z.square().sum(1) * batch.reward_to_go),
        "norm_by_parameter": ((p * shares**2 * w**2)[:, None] * z**2).sum(0).numpy(),
        "product_by_parameter": ((p * shares)[:, None] * product).sum(0).numpy(),
    }


def random_table(seed, states=3):
    return torch.randn(HORIZON, states, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
def test_moments_are_those_of_enumeration(setting, base, objective):
    gamma, weighting = OBJECTIVES[objective]
    h = random_table(3)
    source = setting.source("wrong", gamma)
    for cut, at_cut in CUTS if objective == "discounted" else ((None, "bootstrap"),):
        truth = enumerated(setting, base, gamma, weighting, h, source, cut, at_cut)
        world = world_of(setting.env, setting.policy, source, gamma, cut, at_cut, weighting)
        found = score_moments(world, base, lambda t: h[t].numpy())
        for name, expected in truth.items():
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(getattr(found, name), expected, rtol=0, atol=TOLERANCE * scale, err_msg=f"{name} {cut}")
        plain = score_moments(world, base)
        assert plain.norm_by_parameter.sum() == pytest.approx(plain.norm.sum(), rel=TOLERANCE)
        assert plain.product_by_parameter.sum() == pytest.approx(plain.product.sum(), rel=1e-11, abs=TOLERANCE)


def given(of, base, seed=0):
    """An optimal_baseline whose b is nobody's."""
    draw = torch.Generator().manual_seed(seed)
    shape = {"constant": (), "time": (HORIZON,), "state": (HORIZON, 3), "features": (3 + 4,)}[of]
    b = StepBaseline(of, torch.randn(shape, generator=draw, dtype=torch.float64), HORIZON, 3)
    return replace(make("optimal_baseline", of=of, base=base), fitted=b)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
def test_exact_rows_of_any_baseline_are_those_of_enumeration(setting, base, objective):
    """Mean and every entry of the variance of g_0 − Σ_t w_t b_t(s_t) z_t, for b that is not the best."""
    gamma, weighting = OBJECTIVES[objective]
    one_hot = setting.env.finite.observations is None
    phi = [given(of, base) for of in CLASSES if one_hot or of != "features"]
    found = varlab.exact(setting.env, setting.policy, phi, gamma=gamma, discount_weighting=weighting)
    mean, variance = moments(setting.env, setting.policy, phi, None, gamma, weighting)
    np.testing.assert_allclose(found.mean, mean, rtol=0, atol=TOLERANCE * max(1.0, np.abs(mean).max()))
    np.testing.assert_allclose(found.variance_per_parameter, variance, rtol=0, atol=TOLERANCE * max(1.0, variance.max()))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["table", "mlp", "masked"])
def test_exact_row_of_one_baseline_for_each_parameter(kind, base):
    setting = Setting(kind)
    gamma, weighting = 0.8, True
    p = sum(x.numel() for x in setting.policy.parameters())
    b = torch.randn(p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    e = replace(make("optimal_baseline", of="parameter", base=base), by_parameter=b)
    traj, probability = every_trajectory(setting.env, setting.policy)
    batch = Batch(traj, Values(), gamma)
    rows = torch.stack([weight(e, batch, weighting), e.companion(batch)], 1)
    g0, s = gradients(setting.policy, traj, rows).unbind(1)
    g = g0 + e.coefficients * s
    mean = probability @ g
    found = varlab.exact(setting.env, setting.policy, e, gamma=gamma)
    np.testing.assert_allclose(found.mean[0], mean.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.variance_per_parameter[0], (probability @ (g - mean).square()).numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("weighting", [True, False])
def test_pairs_of_steps_drop_out_for_baselines_that_see_the_state_alone(setting, weighting):
    """E z_t·z_u b_t b_u = 0 for t ≠ u, as normal equations assume; and not 0 where b_u sees what is decided at u."""
    traj, probability = every_trajectory(setting.env, setting.policy)
    z = step_scores(setting.policy, traj)
    w = 0.8 ** traj.time.double() if weighting else torch.ones_like(traj.reward)
    table = random_table(5)

    def pairs(b):
        """Σ_{t≠u} E w_t w_u b_t b_u z_t·z_u, and the same with every pair made positive."""
        total = size = 0.0
        padded = traj.padded((w * b)[:, None] * z)
        for t in range(HORIZON):
            for u in range(t):
                inner = (padded[:, t] * padded[:, u]).sum(1)
                total, size = total + float(probability @ inner), size + float(probability @ inner.abs())
        return total, size

    total, size = pairs(table[traj.time, traj.state])
    assert abs(total) < 1e-13 * max(size, 1.0) and size > 1e-3
    seen = table[traj.time, traj.state] + (traj.action == 0)
    total, size = pairs(seen)
    assert abs(total) > 1e-3 * size


def test_what_other_moments_do_not_cover_is_one_sentence():
    setting = Setting("table")
    world = world_of(setting.env, setting.policy, None, 1.0, None, "terminal")
    for e in (make("optimal_baseline", of="parameter"), make("optimal_baseline", of="time", base="total_return")):
        with pytest.raises(InputError, match="baseline of all parameters alike was expected"):
            fourth_row(world, e, True)
        with pytest.raises(InputError, match="take its mean and variance alone"):
            varlab.exact(setting.env, setting.policy, e, fourth=True)
    covered = [make("optimal_baseline", of=of) for of in CLASSES] + [make("optimal_baseline", base="total_return")]
    found = varlab.exact(setting.env, setting.policy, covered, fourth=True)
    assert (found.kurtosis > 1).all()


@pytest.mark.parametrize("of", (*CLASSES, "parameter"))
def test_the_weighting_is_part_of_the_population_value(of):
    """γ^t changes which b is best: each is better than the other under its own weighting."""
    setting, e = Setting("table", 1), make("optimal_baseline", of=of)
    worlds = {x: world_of(setting.env, setting.policy, None, 0.6, None, "terminal", x) for x in (True, False)}
    if of == "parameter":
        best = {x: torch.from_numpy(w.score_moments("reward_to_go").best_by_parameter) for x, w in worlds.items()}
        best = {x: replace(e, by_parameter=b) for x, b in best.items()}
    else:
        best = {x: e.recursion(w) for x, w in worlds.items()}
        tables = {x: torch.from_numpy(np.stack([r.subtract(t) for t in range(HORIZON)])) for x, r in best.items()}
        best = {x: replace(e, fitted=StepBaseline("state", b, HORIZON)) for x, b in tables.items()}
    for weighting in (True, False):
        settings = {"gamma": 0.6, "discount_weighting": weighting}
        own, other, same = (
            varlab.exact(setting.env, setting.policy, x, **settings).variance[0]
            for x in (best[weighting], best[not weighting], e)
        )
        assert own == pytest.approx(same, rel=1e-12) and own < other


def test_values_that_are_looked_up_do_not_touch_it():
    """Population values are those of the policy, whatever values other Φ look up."""
    setting = Setting("table")
    phi = [make("optimal_baseline", of=of) for of in CLASSES]
    a, b = (varlab.exact(setting.env, setting.policy, phi, values=x).variance for x in ("exact", setting.wrong))
    np.testing.assert_array_equal(a, b)
