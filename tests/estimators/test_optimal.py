"""Baselines of least variance are of least variance: exact oracles, on three worlds, for every class."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from contract import WORLDS, distance, exact_mean, random_world

import varlab
from varlab import policies
from varlab.envs import closed_form, lqg
from varlab.estimators import make
from varlab.estimators.optimal import BASES, OptimalBaseline
from varlab.estimators.step_baselines import CLASSES, Rows, StepBaseline
from varlab.oracles.exact import world_of
from varlab.oracles.gaussian import GaussianTrajectory
from varlab.oracles.quadratic_forms import baseline_products, covariance
from varlab.policies import SoftmaxTable
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues

OBJECTIVES = ((1.0, True), (0.8, True), (0.8, False))
OF = (*CLASSES, "parameter")


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return WORLDS[request.param]()


def exact(world, phi, gamma=1.0, weighting=True):
    return varlab.exact(world.env, world.policy, phi, gamma=gamma, discount_weighting=weighting)


def moments(world, base, gamma=1.0, weighting=True):
    return world_of(world.env, world.policy, None, gamma, None, "terminal", weighting).score_moments(base)


def best(world, of, base, gamma=1.0, weighting=True):
    """The population optimum as a fitted estimator, and the moments that it comes from."""
    e, found = make("optimal_baseline", of=of, base=base), moments(world, base, gamma, weighting)
    if of == "parameter":
        return replace(e, by_parameter=torch.from_numpy(found.best_by_parameter)), found
    rows = Rows.grid(world.mdp, world.horizon)
    a, c = (torch.from_numpy(x.ravel()) for x in (found.norm, found.product))
    return replace(e, fitted=StepBaseline.fit(of, a, c, rows)), found


def number(e):
    return e.by_parameter if e.fitted is None else e.fitted.value


def moved(e, step):
    """The same estimator with ``step`` added to its numbers."""
    if e.fitted is None:
        return replace(e, by_parameter=e.by_parameter + step)
    return replace(e, fitted=replace(e.fitted, value=e.fitted.value + step))


@pytest.mark.parametrize(("gamma", "weighting"), OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("of", OF)
def test_no_perturbation_lowers_the_variance_and_its_gradient_is_zero(world, of, base, gamma, weighting):
    """The variance is quadratic in b: a central difference is its derivative, at any step."""
    e, found = best(world, of, base, gamma, weighting)
    least = exact(world, e, gamma, weighting).variance[0]
    unfitted = exact(world, make("optimal_baseline", of=of, base=base), gamma, weighting)
    assert unfitted.variance[0] == pytest.approx(least, rel=1e-12)
    np.testing.assert_allclose(unfitted.mean[0], exact(world, base, gamma, weighting).mean[0], rtol=0, atol=1e-13)
    draw = torch.Generator().manual_seed(1)
    for _ in range(3):
        way = torch.randn(number(e).shape, generator=draw, dtype=torch.float64)
        up, down = (exact(world, moved(e, s * way), gamma, weighting).variance[0] for s in (1.0, -1.0))
        assert abs(up - down) / 2 < 1e-10
        assert min(up, down) > least
        for size in (1e-3, 0.1, 30.0):
            for sign in (1, -1):
                assert exact(world, moved(e, sign * size * way), gamma, weighting).variance[0] >= least - 1e-14
        # The excess is quadratic, with the curvature Σ_t E w_t² b_t² ‖z_t‖².
        if of == "parameter":
            curvature = float((found.norm_by_parameter * way.numpy() ** 2).sum())
        else:
            curvature = float((found.norm * replace(e.fitted, value=way).table(world.mdp) ** 2).sum())
        for size in (0.1, -1.0, 30.0):
            excess = exact(world, moved(e, size * way), gamma, weighting).variance[0] - least
            assert excess == pytest.approx(size**2 * curvature, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("of", ("time", "state", "parameter"))
def test_no_single_number_can_be_better(world, of):
    e, _ = best(world, of, "reward_to_go")
    least = exact(world, e).variance[0]
    for i in range(number(e).numel()):
        step = torch.zeros(number(e).numel(), dtype=torch.float64)
        step[i] = 1.0
        step = step.reshape(number(e).shape)
        up, down = (exact(world, moved(e, s * step)).variance[0] for s in (1.0, -1.0))
        assert abs(up - down) / 2 < 1e-10 and min(up, down) >= least - 1e-14


@pytest.mark.parametrize(("gamma", "weighting"), OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
def test_richer_classes_are_never_worse(world, base, gamma, weighting):
    phi = {of: make("optimal_baseline", of=of, base=base) for of in OF}
    found = exact(world, [*phi.values(), base], gamma, weighting)
    variance = dict(zip((*phi, "none"), found.variance, strict=True))
    assert variance["none"] > variance["constant"] > variance["time"] > variance["state"]
    assert variance["time"] > variance["features"] > variance["state"]
    single = dict(zip((*phi, "none"), found.variance_per_parameter, strict=True))
    assert (single["parameter"] <= single["constant"] + 1e-14).all() and (single["parameter"] < single["none"] + 1e-14).all()
    assert variance["parameter"] < variance["constant"]
    # Total return against reward-to-go: here what came before costs more than any of these baselines takes back.
    assert variance["state"] < exact(world, "value_baseline", gamma, weighting).variance[0] or base == "total_return"


def test_the_constant_of_the_total_return_is_the_published_one(world):
    """b* = E[‖S‖² R] / E[‖S‖²] with S = Σ_t z_t, and (b − b*)² E‖S‖² is what any other b costs, by enumeration."""
    traj, p = world.paths.traj, world.probability
    s = world.paths.gradients(world.logits, torch.ones(traj.steps, dtype=torch.float64)).square().sum(1)
    r = world.paths.returns(0.9)
    published = float((p * s * r).sum() / (p * s).sum())
    e, _ = best(world, "constant", "total_return", 0.9)
    assert float(e.fitted.value) == pytest.approx(published, rel=1e-12)
    average = float((p * r).sum())
    least, other, mean = (exact(world, moved(e, x), 0.9).variance[0] for x in (0.0, -2.0, average - published))
    assert other - least == pytest.approx(4 * float((p * s).sum()), rel=1e-10)
    assert mean - least == pytest.approx((average - published) ** 2 * float((p * s).sum()), rel=1e-9, abs=1e-14)
    assert mean > least, "the average return is not the best constant"


@pytest.mark.parametrize("p", (0.1, 0.5, 0.6, 0.7, 0.9))
def test_two_arms(p):
    """b* = 1 − p leaves no variance at all; V = p is worse than nothing for p > 2/3."""
    env = closed_form.two_arms()
    logits = torch.tensor([[0.0, np.log(p / (1 - p))]], dtype=torch.float64)
    policy = SoftmaxTable(env, logits=logits)
    phi = [make("optimal_baseline", of=of, base=base) for of in OF for base in BASES]
    phi += [make("score_weighted_baseline", of=of) for of in CLASSES[:3]]
    found = varlab.exact(env, policy, [*phi, "reward_to_go", "value_baseline"])
    assert (found.variance[:-2] < 1e-15).all()
    nothing, value = found.variance[-2:]
    assert nothing == pytest.approx(2 * closed_form.two_arms_variance(p), rel=1e-12)
    assert value == pytest.approx(2 * closed_form.two_arms_variance(p, p), rel=1e-12, abs=1e-16)
    assert (value > nothing) == (p > 2 / 3)
    inner = world_of(env, policies.prepare(policy, torch.float64, torch.device("cpu")), None, 1.0, None, "terminal")
    assert phi[0].recursion(inner).subtract(0)[0] == pytest.approx(1 - p, rel=1e-12)
    if p == 0.9:
        assert value / nothing == pytest.approx(64, rel=1e-10)


def bandit_policy(env):
    """a ~ N(0, I) whose mean is its only parameter."""
    policy = policies.Linear(env, log_std=0.0).double()
    with torch.no_grad():
        policy.net.bias.zero_()
    policy.net.weight.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    return policy


@pytest.mark.parametrize("m", (1, 10))
def test_gaussian_bandit(m):
    """(m + 2)(m + 4) : 2 (m + 4) : 2 (m + 2) for no baseline, V and the best constant."""
    env = closed_form.gaussian_bandit(m)
    phi = [make("optimal_baseline", of=of, base=base) for of in ("constant", "time", "parameter") for base in BASES]
    found = varlab.exact(env, bandit_policy(env), ["total_return", "value_baseline", *phi])
    expected = [closed_form.gaussian_bandit_variance(m, b) for b in ("none", "value", *["optimal"] * len(phi))]
    assert expected[:3] == [(m + 2) * (m + 4), 2 * (m + 4), 2 * (m + 2)]
    np.testing.assert_allclose(found.variance_per_parameter, np.repeat(np.array(expected)[:, None], m, 1), rtol=1e-11)
    np.testing.assert_allclose(found.mean, found.gradient[None].repeat(len(found.names), 0), atol=1e-12)


@torch.no_grad()
def test_gaussian_bandit_of_a_thousand_dimensions():
    """All coordinates are alike, so one gives b* = −(m + 2) and the variances of all."""
    m = 1000
    env = closed_form.gaussian_bandit(m)
    policy = bandit_policy(env)
    x = GaussianTrajectory.of(env.system, GaussianPolicy.of(policy), 1, QuadraticValues.of(env, policy, 1.0), 1.0)
    z = next(iter(x.scores()))
    product, square = baseline_products(z, x.reward_to_go)
    b = float(product[0, 0] / square[0])
    assert b == pytest.approx(-(m + 2), rel=1e-12)
    for name, shift in (("none", 0.0), ("value", -m), ("optimal", b)):
        variance = float(covariance(z, x.reward_to_go.shifted(torch.tensor([-shift]))))
        assert variance == pytest.approx(closed_form.gaussian_bandit_variance(m, name), rel=1e-9)


@pytest.mark.parametrize(("gamma", "weighting"), OBJECTIVES)
@pytest.mark.parametrize("base", BASES)
def test_least_variance_on_a_linear_system(base, gamma, weighting):
    """Several steps, a policy whose every part moves: derivative 0 and classes in order."""
    a, b = torch.tensor([[0.9, 0.2], [0.0, 0.7]], dtype=torch.float64), torch.tensor([[0.3], [0.8]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    system = lqg.LinearQuadratic(a, b, eye, 0.1 * eye[:1, :1], 0.05 * eye, torch.tensor([1.0, -0.5]).double(), 0.2 * eye)
    env = lqg.environment(system, 3, "small")
    policy = policies.make("linear", env, theta_seed=2).double()

    def variances(*phi):
        return varlab.exact(env, policy, list(phi), gamma=gamma, discount_weighting=weighting)

    phi = {of: make("optimal_baseline", of=of, base=base) for of in ("constant", "time", "parameter")}
    found = variances(base, *phi.values())
    none, constant, time, single = found.variance
    assert none > constant > time and constant > single
    assert (found.variance_per_parameter[3] <= found.variance_per_parameter[1] * (1 + 1e-12)).all()

    def at(of, value):
        value = torch.as_tensor(value, dtype=torch.float64)
        if of == "parameter":
            return variances(replace(phi[of], by_parameter=value)).variance[0]
        return variances(replace(phi[of], fitted=StepBaseline(of, value, 3))).variance[0]

    # From three values in each direction the parabola of every class, whose minimum must be what the oracle took.
    for of, size, least in (("constant", 1, constant), ("time", 3, time), ("parameter", found.mean.shape[1], single)):
        unit = np.eye(size)
        zero = at(of, np.zeros(size) if size > 1 else 0.0)
        up, down = (np.array([at(of, s * row if size > 1 else s) for row in unit]) for s in (1.0, -1.0))
        curvature, slope = (up + down) / 2 - zero, (up - down) / 2
        assert zero - (slope**2 / 4 / curvature).sum() == pytest.approx(least, rel=1e-9)


# ---- the form that looks at each step by itself


def test_the_score_weighted_baseline_can_be_worse_than_the_value_function():
    """On this world by a fifth, and a third above the least of its class; on another it is worse than no baseline at all."""
    world = random_world(71)
    value, own, least, nothing = exact(
        world, ["value_baseline", "score_weighted_baseline(of=state)", "optimal_baseline(of=state)", "reward_to_go"]
    ).variance
    assert own / value == pytest.approx(1.21, abs=0.005) and own / least == pytest.approx(1.34, abs=0.005)
    assert nothing > own
    other = random_world(17, horizon=3, states=2)
    own, nothing, least = exact(other, ["score_weighted_baseline", "reward_to_go", "optimal_baseline"]).variance
    assert own > 1.015 * nothing > least


def test_the_score_weighted_baseline_is_the_best_for_each_step(world):
    """It minimises Σ_t E‖w_t z_t (G_t − b_t)‖² by enumeration, which its g as a whole does not show."""
    inner = world_of(world.env, world.policy, None, 0.8, None, "terminal")
    traj, p = world.paths.traj, world.probability[world.paths.traj.episode]
    share = p * 0.8 ** (2 * traj.time.double()) * world.paths.scores(world.logits).square().sum(1)
    g = varlab.estimators.Batch(traj, varlab.types.Values(), 0.8).reward_to_go

    def cost(b):
        return float((share * (g - b[traj.time, traj.state]) ** 2).sum())

    before = np.inf
    for of in CLASSES[:3]:
        recursion = make("score_weighted_baseline", of=of).recursion(inner)
        b = torch.from_numpy(np.stack([recursion.subtract(t) for t in range(world.horizon)]))
        least = cost(b)
        assert least < before
        before = least
        way = {"constant": torch.ones(1, 1), "time": torch.arange(1.0, world.horizon + 1)[:, None], "state": b.cos()}[of]
        up, down = cost(b + way), cost(b - way)
        assert abs(up - down) < 1e-10 and up > least


# ---- wrong variants


@dataclass(frozen=True)
class Late(OptimalBaseline):
    """Off by one step: b_{t+1}(s_{t+1}), which has seen where the action led."""

    def phi(self, batch):
        b = self.fitted.at(batch.traj)
        late = torch.cat([b[1:], b[:1]])
        late[batch.traj.last_row] = b[batch.traj.last_row]
        return batch.reward_to_go - late


@dataclass(frozen=True)
class SeesTheAction(OptimalBaseline):
    """A little of b is for one action only."""

    def phi(self, batch):
        return super().phi(batch) - 0.05 * (batch.traj.action == 0).double()


@pytest.mark.parametrize("wrong", [Late(of="state"), Late(of="time"), SeesTheAction(of="state")], ids=["state", "time", "action"])
def test_a_baseline_off_by_one_or_with_sight_of_the_action_is_rejected(wrong):
    world = WORLDS["other"]()
    gradient = world.gradient()
    right = exact_mean(make("optimal_baseline", of=wrong.of), world)
    assert distance(right, gradient) < 1e-12
    bias = float((exact_mean(wrong, world) - gradient).norm() / gradient.norm())
    assert 0.01 < bias < 0.1


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("of", OF)
def test_every_member_is_unbiased_as_fitted(world, of, base):
    for gamma in (1.0, 0.8):
        mean = exact_mean(make("optimal_baseline", of=of, base=base), world, gamma=gamma)
        assert distance(mean, world.gradient(gamma)) < 1e-12
    if base == "reward_to_go" and of in CLASSES[:3]:
        assert distance(exact_mean(make("score_weighted_baseline", of=of), world), world.gradient()) < 1e-12
