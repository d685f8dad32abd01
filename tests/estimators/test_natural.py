"""The natural gradient: F by summing over paths, E F⁺g by enumeration, closed forms of softmax tables and of two arms."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from contract import UNIT_WORLDS, WORLDS, bandit, bound, distance, exact_mean, moments

import varlab
from varlab import envs, policies, values
from varlab.checks import InputError
from varlab.envs.closed_form import two_arms_natural_variance
from varlab.estimators import Batch, FitBatch, make
from varlab.estimators.natural import BASES, NaturalGradient
from varlab.types import Values
from varlab.values.fisher import inverse_fisher, score_table

GAMMAS = (1.0, 0.9)


@pytest.fixture(scope="module", params=[*WORLDS, *UNIT_WORLDS])
def world(request):
    return (WORLDS.get(request.param) or UNIT_WORLDS[request.param])()


def fisher(world, gamma):
    """E Σ_t γ^t z_t z_tᵀ over all paths."""
    traj, z = world.paths.traj, world.paths.scores(world.logits)
    weight = world.probability[traj.episode] * gamma ** traj.time.double()
    return (z.T * weight) @ z


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_inverse_is_that_of_the_sum_over_paths(world, gamma):
    f = fisher(world, gamma)
    found = torch.from_numpy(inverse_fisher(world.mdp, world.policy, world.horizon, gamma, 1e-10))
    assert distance(found, torch.linalg.pinv(f, rtol=1e-10, hermitian=True)) < 1e-9 * float(found.abs().max())
    for a, b in ((f @ found @ f, f), (found @ f @ found, found), ((f @ found).T, f @ found), ((found @ f).T, found @ f)):
        assert distance(a, b) < 1e-10 * max(1.0, float(found.abs().max()))


def test_without_discount_it_is_the_fisher_matrix_of_trajectories(world):
    """E[(Σ_t z_t)(Σ_t z_t)ᵀ]: scores of different times are uncorrelated."""
    g = world.paths.gradients(world.logits, torch.ones(world.paths.traj.steps, dtype=torch.float64))
    assert distance((g.T * world.probability) @ g, fisher(world, 1.0)) < 1e-13


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("base", BASES)
def test_the_mean_is_the_inverse_times_the_gradient(world, base, gamma):
    estimator = make("natural_gradient", base=base)
    matrix = torch.linalg.pinv(fisher(world, gamma), rtol=1e-10, hermitian=True)
    source = world.wrong if estimator.unbiased == "always" else world.exact(gamma)
    mean = exact_mean(estimator, world, gamma=gamma, source=source)
    assert distance(mean, matrix @ world.gradient(gamma)) < 1e-10
    assert distance(bound(estimator, world, gamma).matrix @ world.gradient(gamma), mean) < 1e-10


@pytest.mark.parametrize("base", ["q_value", "advantage"])
def test_wrong_values_show(base):
    world = WORLDS["long"]()
    off = exact_mean(make("natural_gradient", base=base), world, source=world.wrong)
    assert distance(off, exact_mean(make("natural_gradient"), world)) > 1e-2


def test_without_step_weights_the_fisher_matrix_has_none(world):
    """w_t = 1: F = Σ_t Σ_s d_t E z zᵀ for the reward-to-go family; total_return keeps γ^t, as its gradient does."""
    plain = torch.linalg.pinv(fisher(world, 1.0), rtol=1e-10, hermitian=True)
    mean = exact_mean(make("reward_to_go"), world, gamma=0.9, discount_weighting=False)
    natural = exact_mean(make("natural_gradient", base="reward_to_go"), world, gamma=0.9, discount_weighting=False)
    assert distance(natural, plain @ mean) < 1e-10
    kept = exact_mean(make("natural_gradient", base="total_return"), world, gamma=0.9, discount_weighting=False)
    discounted = torch.linalg.pinv(fisher(world, 0.9), rtol=1e-10, hermitian=True)
    assert distance(kept, discounted @ world.gradient(0.9)) < 1e-10


@pytest.mark.parametrize("gamma", GAMMAS)
def test_for_a_softmax_table_it_is_the_mean_advantage_of_each_action(world, gamma):
    """Σ_t γ^t d_t(s) A_t(s, a) / Σ_t γ^t d_t(s), less its mean over actions."""
    exact = world.exact(gamma)
    pi = world.logits.softmax(-1)
    d = values.occupancy(world.mdp, pi, world.horizon) * gamma ** torch.arange(world.horizon).double()[:, None]
    a = (d[:, :, None] * (exact.q - exact.v[:-1, :, None])).sum(0) / d.sum(0)[:, None]
    expected = (a - a.mean(1, keepdim=True)).flatten()
    assert distance(exact_mean(make("natural_gradient"), world, gamma=gamma), expected) < 1e-10


def test_a_state_that_is_never_reached_has_none():
    world = replace(WORLDS["long"](), mdp=replace(WORLDS["long"]().mdp, initial=torch.tensor([1.0, 0.0, 0.0]).double()))
    mdp = replace(world.mdp, next_state=torch.zeros_like(world.mdp.next_state))
    alone = replace(world, mdp=mdp)
    mean = exact_mean(make("natural_gradient"), alone).view(3, 2)
    assert float(mean[0].abs().sum()) > 0.1 and torch.equal(mean[1:], torch.zeros_like(mean[1:]))


def test_blocks_of_a_table_are_the_dense_form_of_a_network():
    """A linear layer on one-hot states without bias is a softmax table with its parameters transposed."""
    world = WORLDS["wide"]()
    linear = policies.make("linear", world.env).double()
    with torch.no_grad():
        linear.net.weight.copy_(world.logits.T)
        linear.net.bias.zero_()
    linear.net.bias.requires_grad_(False)
    assert score_table(world.mdp, linear)[2] is None
    order = torch.arange(9).view(3, 3).T.flatten()
    table, dense = (torch.from_numpy(inverse_fisher(world.mdp, p, 3, 0.9, 1e-10)) for p in (world.policy, linear))
    assert distance(table[order][:, order], dense) < 1e-10


def test_small_eigenvalues_count_as_zero():
    world = bandit(((1.0, 0.0), (0.5, 0.2)), ((0.0, 0.0), (0.0, 7.0)))
    strict, loose = (inverse_fisher(world.mdp, world.policy, 1, 1.0, r) for r in (1e-10, 1e-2))
    assert np.abs(strict[2:, 2:]).max() > 100 and np.abs(loose[2:, 2:]).max() == 0.0
    np.testing.assert_allclose(strict[:2, :2], loose[:2, :2], rtol=1e-12)


@dataclass(frozen=True)
class OneStepShort(NaturalGradient):
    """Wrong by one index: the Fisher matrix leaves out the last step."""

    def fit(self, batch):
        return super().fit(replace(batch, env=replace(batch.env, horizon=batch.env.horizon - 1)))


def test_a_fisher_matrix_of_one_step_less_is_rejected():
    world = WORLDS["long"]()
    right, wrong = (exact_mean(e, world, gamma=0.9) for e in (NaturalGradient(), OneStepShort()))
    expected = torch.linalg.pinv(fisher(world, 0.9), rtol=1e-10, hermitian=True) @ world.gradient(0.9)
    assert distance(right, expected) < 1e-10
    assert 1e-3 < float((wrong - expected).norm() / expected.norm()) < 0.1


# ---- Two arms: the variance has no bound as the policy becomes certain


@pytest.mark.parametrize("rewards", [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.3)])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 0.999])
def test_the_variance_on_two_arms(rewards, p):
    world = bandit((rewards,), ((0.0, float(np.log(p / (1 - p)))),))
    v = (1 - p) * rewards[0] + p * rewards[1]
    for base, b in (("reward_to_go", 0.0), ("value_baseline", v), ("advantage", v)):
        mean, variance = moments(make("natural_gradient", base=base), world)
        assert float(variance.sum()) == pytest.approx(two_arms_natural_variance(p, b, rewards), rel=1e-9)
        gap = (rewards[1] - rewards[0]) / 2
        assert distance(mean, torch.tensor([-gap, gap], dtype=torch.float64)) < 1e-10


def test_the_variance_has_no_bound_with_or_without_the_value_baseline():
    """tr Cov (1 − p) → (r_0 − b)² / 2: each factor of ten towards certainty makes it ten times as large."""
    sure = 1 - np.array([1e-3, 1e-4, 1e-5, 1e-6])
    for b, limit in ((lambda p: 0.0, 0.125), (lambda p: 0.5 + 0.5 * p, 0.125)):
        variance = np.array([two_arms_natural_variance(p, b(p), (0.5, 1.0)) for p in sure])
        assert (variance[1:] / variance[:-1] > 9).all()
        np.testing.assert_allclose(variance * (1 - sure), limit, rtol=5e-3)
    plain = [varlab.envs.closed_form.two_arms_variance(p, 0.0) for p in sure]
    assert max(plain) < 1e-8, "the plain gradient's variance vanishes meanwhile"
    # The optimal constant, and no baseline where the other arm pays nothing, are the exceptions.
    for p in sure:
        assert two_arms_natural_variance(p, (1 - p) + 0.5 * p, (0.5, 1.0)) == pytest.approx(0.0, abs=1e-9)
        assert two_arms_natural_variance(p, 0.0) == pytest.approx((1 - p) / (2 * p), rel=1e-6)


# ---- In a measurement


def test_a_measurement_refers_to_the_inverse_times_the_gradient():
    world = WORLDS["wide"]()
    natural = make("natural_gradient")
    found = varlab.measure(world.env, world.policy, ["value_baseline", natural], n=20_000, dtype="float64", seed=3)
    plain, row = (r for _, r in found.summary.iterrows())
    exact = float(moments(natural, world)[1].sum())
    assert row.variance_low < exact < row.variance_high and row.bias_sq_low == 0.0
    assert row.values_source == "exact" and np.isnan(row.exact_variance) and plain.exact_variance > 0
    assert row.steps == plain.steps, "the Fisher matrix is computed, not sampled"
    free = varlab.measure(world.env, world.policy, ["natural_gradient(base='reward_to_go')"], n=200, reference="exact").summary
    assert free.values_source[0] == "none"


def test_a_world_that_is_not_finite_is_refused():
    env = envs.make("CartPole-v1", horizon=5)
    with pytest.raises(InputError, match="A finite MDP was expected for natural_gradient.* CartPole-v1 has no outcome"):
        varlab.measure(env, policies.make("linear", env), ["natural_gradient"], n=100)


def test_a_matrix_before_the_world_is_refused():
    with pytest.raises(InputError, match="A Fisher matrix was expected for natural_gradient"):
        make("natural_gradient").matrix  # noqa: B018  (reading it raises)
    with pytest.raises(InputError, match="a recursion over states was expected"):
        varlab.exact("varlab/TwoArms-v0", policies.make("softmax_table", envs.make("varlab/TwoArms-v0")), ["natural_gradient"])
    world = WORLDS["long"]()
    batch = FitBatch(world.critic_stream, Values(), 1.0, env=world.env, policy=world.policy.float())
    fitted = make("natural_gradient").fit(batch)
    assert fitted.matrix.dtype == torch.float64 and fitted == make("natural_gradient")
    traj = world.paths.traj
    same = Batch(traj, world.wrong(traj, frozenset("v")), 1.0)
    assert torch.equal(fitted.phi(same), make("value_baseline").phi(same))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("natural_gradient(base='gae')", "No base of natural_gradient is called 'gae'"),
        ("natural_gradient(rcond=-1)", "rcond of natural_gradient must lie in"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(InputError, match=message):
        varlab.estimators.parse(text)
