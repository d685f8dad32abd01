"""Importance weights and surrogates where another policy took the actions, by enumeration of every path under it.

∇J(θ) comes from autograd through P(τ | θ), and once from finite differences; the surrogate objectives are written out and
differentiated, and know no Φ.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from contract import UNIT_WORLDS, WORLDS, distance, exact_mean, moments

import varlab
from varlab import policies
from varlab.checks import InputError
from varlab.estimators import Batch, make, tail_sum
from varlab.estimators.off_policy import BASES, FORMS, ClippedSurrogate, ImportanceWeighted, prefix_products
from varlab.types import Values

GAMMAS = (1.0, 0.9)
MEMBERS = [make("importance_weighted", base=base, form=form) for base in BASES for form in FORMS]


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return WORLDS[request.param]()


def behaviour(world, size=0.6):
    """Logits of a policy some way from θ."""
    generator = torch.Generator().manual_seed(0)
    return world.logits + size * torch.randn(world.logits.shape, generator=generator, dtype=torch.float64)


def read(world, logits, gamma=1.0, source=None):
    """The batch of all paths with ratios to a policy that acts."""
    traj = world.paths.traj
    ours, theirs = (x.log_softmax(-1)[traj.state, traj.action] for x in (world.logits, logits))
    values = (source or world.wrong)(traj, frozenset({"v", "q"}))
    return Batch(traj, values, gamma, log_ratio=ours - theirs)


def share(wrong, right):
    return float((wrong - right).norm() / right.norm())


# ---- Importance weights


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("estimator", MEMBERS, ids=lambda e: e.label)
def test_importance_weights_are_unbiased_whatever_acts(world, estimator, gamma):
    """Even with values that are nobody's; and the plain base is visibly biased on the same paths."""
    acting = behaviour(world)
    mean = exact_mean(estimator, world, source=world.wrong, gamma=gamma, behaviour=acting)
    assert distance(mean, world.gradient(gamma)) < 1e-12
    plain = exact_mean(make(estimator.base), world, source=world.wrong, gamma=gamma, behaviour=acting)
    assert share(plain, world.gradient(gamma)) > 0.05


@pytest.mark.parametrize("estimator", MEMBERS[:3], ids=lambda e: e.label)
def test_the_mean_is_the_slope_of_j(world, estimator):
    mean = exact_mean(estimator, world, source=world.wrong, gamma=0.9, behaviour=behaviour(world)).view(world.logits.shape)
    for s, a in ((0, 0), (1, 1), (2, 0)):
        step = torch.zeros_like(world.logits)
        step[s, a] = 1e-5
        up, down = (world.paths.probability(world.logits + d) @ world.paths.returns(0.9) for d in (step, -step))
        assert float(mean[s, a]) == pytest.approx(float(up - down) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("estimator", MEMBERS, ids=lambda e: e.label)
def test_without_step_weights_they_share_the_mean_of_their_base(world, estimator):
    settings = {"source": world.wrong, "gamma": 0.9, "discount_weighting": False}
    expected = exact_mean(make(estimator.base), world, **settings)
    assert distance(exact_mean(estimator, world, behaviour=behaviour(world), **settings), expected) < 1e-12


@pytest.mark.parametrize("estimator", MEMBERS, ids=lambda e: e.label)
def test_weights_by_a_plain_loop(world, estimator):
    """Φ_t from the definition: each reward times the product of the ratios that it needs."""
    batch = read(world, behaviour(world), 0.9)
    found, ratio, rewards = estimator.phi(batch), batch.log_ratio.exp().tolist(), batch.traj.reward.tolist()
    v, bounds = batch.values.v.tolist(), batch.traj.offsets.tolist()
    total_return, whole = estimator.base == "total_return", estimator.form == "trajectory"

    def product(i, u):
        out = 1.0
        for k in range(u + 1):
            out *= ratio[i + k]
        return out

    for i, j in list(zip(bounds[:-1], bounds[1:], strict=True))[::7]:
        for t in range(j - i):
            first = 0 if total_return else t
            total = 0.0
            for u in range(first, j - i):
                total += 0.9 ** (u - first) * product(i, j - i - 1 if whole else max(t, u)) * rewards[i + u]
            if estimator.base == "value_baseline":
                total -= product(i, j - i - 1 if whole else t) * v[i + t]
            assert float(found[i + t]) == pytest.approx(total, rel=1e-11, abs=1e-12)


def test_where_theta_acts_each_is_its_base_bit_for_bit(world):
    for log_ratio in (None, torch.zeros_like(world.paths.traj.reward)):
        batch = replace(read(world, world.logits, 0.9), log_ratio=log_ratio)
        for e in MEMBERS:
            assert torch.equal(e.phi(batch), make(e.base).phi(batch)) and e.weighted == make(e.base).weighted
        for lam in (0.0, 0.95, 1.0):
            for name in ("surrogate", "clipped_surrogate"):
                assert torch.equal(make(name, lam=lam).phi(batch), make("gae", lam=lam).phi(batch))


def test_the_exact_oracle_knows_them_where_theta_acts():
    world = WORLDS["long"]()
    names = [*(e.label for e in MEMBERS), "surrogate", "clipped_surrogate"]
    same = [*(e.base for e in MEMBERS), "gae", "gae"]
    for name, base in zip(names, same, strict=True):
        mine, theirs = (varlab.exact(world.env, world.policy, x, gamma=0.9).variance[0] for x in (name, base))
        assert mine == theirs > 0


@dataclass(frozen=True)
class OneRatioShort(ImportanceWeighted):
    """Wrong by one index: the reward r_u with the product up to u − 1."""

    def phi(self, batch):
        late = prefix_products(batch) / batch.log_ratios.exp()
        return tail_sum(batch.traj, late * batch.reward, batch.gamma)


@dataclass(frozen=True)
class PastWithoutItsScore(ImportanceWeighted):
    """Wrong: a past reward with the ratios up to itself, not up to the score."""

    def phi(self, batch):
        return make("total_return").phi(replace(batch, traj=replace(batch.traj, reward=prefix_products(batch) * batch.reward)))


@pytest.mark.parametrize(("wrong", "base"), [(OneRatioShort, "reward_to_go"), (PastWithoutItsScore, "total_return")])
def test_wrong_products_are_rejected(wrong, base):
    """A bias of at most a tenth of ‖∇J‖, which the equality shows."""
    world = WORLDS["long"]()
    acting = behaviour(world, 0.03)
    truth = world.gradient(0.9)
    assert 1e-3 < share(exact_mean(wrong(base=base), world, gamma=0.9, behaviour=acting), truth) < 0.1
    assert share(exact_mean(make("importance_weighted", base=base), world, gamma=0.9, behaviour=acting), truth) < 1e-12


@pytest.mark.parametrize("base", BASES)
def test_whole_products_cost_variance_on_these_worlds(world, base):
    each, whole = (
        float(moments(make("importance_weighted", base=base, form=f), world, behaviour=behaviour(world))[1].sum()) for f in FORMS
    )
    assert whole > each


# ---- Surrogates


def objective(world, acting, gamma, lam, eps=None):
    """E_b Σ_t w_t min(ρ A, clip(ρ) A) as a function of θ's logits, A of the policy that acts; without ε, E_b Σ_t w_t ρ A."""
    a = make("gae", lam=lam).phi(read(world, acting, gamma, replace(world, logits=acting).exact(gamma)))
    traj, chance = world.paths.traj, world.probability_under(acting)
    w = chance[traj.episode] * gamma ** traj.time.double()

    def value(logits):
        ours, theirs = (x.log_softmax(-1)[traj.state, traj.action] for x in (logits, acting))
        ratio = (ours - theirs).exp()
        term = ratio * a if eps is None else torch.minimum(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)
        return (w * term).sum()

    return value


def slope(value, logits):
    theta = logits.clone().requires_grad_()
    return torch.autograd.grad(value(theta), theta)[0].flatten()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("eps", [None, 0.05, 0.2])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_surrogates_have_the_gradient_of_their_objectives(world, gamma, eps, lam):
    acting = behaviour(world, 0.4)
    source = replace(world, logits=acting).exact(gamma)
    estimator = make("surrogate", lam=lam) if eps is None else make("clipped_surrogate", lam=lam, eps=eps)
    mean = exact_mean(estimator, world, source=source, gamma=gamma, behaviour=acting)
    assert distance(mean, slope(objective(world, acting, gamma, lam, eps), world.logits)) < 1e-12
    if eps is not None:
        plain = exact_mean(make("surrogate", lam=lam), world, source=source, gamma=gamma, behaviour=acting)
        assert share(plain, mean) > 0.1, "something is clipped"


@dataclass(frozen=True)
class ClippedOnOneSide(ClippedSurrogate):
    """Wrong by one sign: where A_t < 0 it clips ratios above 1 + ε instead of below 1 − ε."""

    def phi(self, batch):
        surrogate, ratio = make("surrogate", lam=self.lam).phi(batch), batch.log_ratios.exp()
        return surrogate.masked_fill(ratio > 1 + self.eps, 0.0)


def test_a_clip_on_the_wrong_side_is_rejected():
    world = WORLDS["wide"]()
    acting = behaviour(world, 0.1)
    source = replace(world, logits=acting).exact(0.9)
    expected = slope(objective(world, acting, 0.9, 0.95, 0.2), world.logits)
    wrong = exact_mean(ClippedOnOneSide(), world, source=source, gamma=0.9, behaviour=acting)
    assert 1e-3 < float((wrong - expected).norm() / world.gradient(0.9).norm()) < 0.1
    assert distance(exact_mean(make("clipped_surrogate"), world, source=source, gamma=0.9, behaviour=acting), expected) < 1e-12


@pytest.mark.parametrize("name", ["surrogate", "clipped_surrogate"])
def test_surrogates_leave_the_gradient_as_theta_moves_along_the_step(world, name):
    """θ = θ_b + c ∇J(θ_b)/‖∇J(θ_b)‖: the surrogate is ∇J at c = 0, and biased from there on, the more the further.

    Clipping at first removes nothing, and then most of what was right: at c = 1/2 its share of ∇J is below 0.3, or negative.
    """
    off, cosines, shares = [], [], []
    step = (world.gradient() / world.gradient().norm()).view(world.logits.shape)
    for c in (0.0, 0.1, 0.5, 1.0):
        moved = replace(world, logits=world.logits + c * step)
        mean, truth = exact_mean(make(name), moved, source=world.exact(), behaviour=world.logits), moved.gradient()
        off.append(share(mean, truth))
        cosines.append(float(mean @ truth / (mean.norm() * truth.norm())))
        shares.append(float(mean @ truth / (truth @ truth)))
    assert off[0] < 1e-12 and 0.01 < off[1] < 0.05 and off[2] > 0.1
    assert 1 - cosines[0] < 1e-12
    if name == "surrogate":
        assert off == sorted(off) and cosines == sorted(cosines, reverse=True) and cosines[-1] < 0.996
        # Too short on two of the worlds, too long on the third: the sign is the world's.
        assert shares == sorted(shares, reverse=shares[-1] < 1) and abs(shares[-1] - 1) > 0.1
    else:
        assert shares[2] < 0.3 and off[2] > 0.7 and cosines[2] < 0.9


def test_on_a_bandit_the_surrogate_is_the_gradient_and_clipping_loses_of_it():
    """One state, one step: no state can differ, so that ρ z A is unbiased whatever acts."""
    world = UNIT_WORLDS["three arms"]()
    acting = world.logits - 0.5 * (world.gradient() / world.gradient().norm()).view(world.logits.shape)
    settings = {"source": replace(world, logits=acting).exact(), "behaviour": acting}
    assert share(exact_mean(make("surrogate"), world, **settings), world.gradient()) < 1e-12
    clipped = exact_mean(make("clipped_surrogate"), world, **settings)
    assert float(clipped @ world.gradient()) < 0.95 * float(world.gradient() @ world.gradient())


# ---- In a measurement


def test_a_measurement_under_another_policy_finds_the_gradient_of_theta():
    world = WORLDS["long"]()
    acting = policies.SoftmaxTable(world.env, logits=behaviour(world))
    phi = [MEMBERS[2], MEMBERS[1], "surrogate", "reward_to_go"]
    found = varlab.measure(world.env, world.policy, phi, n=20_000, behaviour=acting, dtype="float64", seed=2).summary
    right, whole, surrogate, plain = (row for _, row in found.iterrows())
    assert right.reference_kind == "exact"
    for row, estimator in ((right, MEMBERS[2]), (whole, MEMBERS[1])):
        exact = float(moments(estimator, world, behaviour=behaviour(world))[1].sum())
        assert row.variance_low < exact < row.variance_high and row.bias_sq_low == 0.0
    assert surrogate.bias_sq_low > 0 and plain.bias_sq_low > 0


def test_claims_and_needs():
    assert all(e.off_policy and e.unbiased == "always" for e in MEMBERS)
    assert {e.base for e in MEMBERS if e.needs == {"v"}} == {"value_baseline"}
    for name in ("surrogate", "clipped_surrogate"):
        assert not make(name).off_policy
        assert (make(name, lam=1.0).unbiased, make(name).unbiased) == ("always", "given exact values")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("importance_weighted(base='gae')", "No base of importance_weighted is called 'gae'"),
        ("importance_weighted(form='step')", "No form of importance_weighted is called 'step'"),
        ("surrogate(lam=2)", "lam of surrogate must lie in"),
        ("clipped_surrogate(lam=-1)", "lam of clipped_surrogate must lie in"),
        ("clipped_surrogate(eps=-0.1)", "eps of clipped_surrogate must lie in"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(InputError, match=message):
        varlab.estimators.parse(text)


def test_extreme_ratios_have_finite_products():
    """Products are sums of logarithms: ratios of e^±460 in turn."""
    traj = WORLDS["long"]().paths.traj
    even = traj.time % 2 == 0
    product = prefix_products(Batch(traj, Values(), 1.0, log_ratio=torch.where(even, -460.0, 460.0).double()))
    assert torch.equal(product, torch.where(even, torch.tensor(-460.0).double().exp(), 1.0))
