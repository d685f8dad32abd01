"""What each Φ claims of E g, held against ∇J by full enumeration: E g is a finite sum, so nothing is sampled.

The world pays at every step, has outcomes that differ in reward alone, and episodes of length 1 to H. ∇J comes from autograd
through Σ_τ P(τ | θ) R_γ(τ), which knows neither scores nor Φ.
"""

from dataclasses import replace

import pytest
import torch
from finite_worlds import Enumeration, enumerate_paths, random_logits, random_mdp

from varlab import envs, estimators, policies, scores, values
from varlab.estimators import REGISTRY, Baseline, Batch, FitBatch, make, weight
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.terms import assemble
from varlab.types import Values
from varlab.values import FunctionValues

HORIZON = 4
BOTH = frozenset({"v", "q"})
#: Members with arguments are held to their claim at several.
ARGUMENTS = {
    "n_step": [{"k": 1}, {"k": 2}, {"k": 3}], "gae": [{"lam": 0.0}, {"lam": 0.5}, {"lam": 0.95}, {"lam": 1.0}],
    "importance_weighted": [{}, {"form": "trajectory"}, {"base": "value_baseline"}],
    "surrogate": [{}, {"lam": 1.0}], "clipped_surrogate": [{}, {"lam": 1.0}],
    "factorised_baseline": [{"of": "mean"}, {"of": "optimal"}], "doubly_robust": [{"error": 0.0}, {"error": 0.7}],
}  # fmt: skip
#: Members for continuous actions alone: held to their claim by quadrature in test_q_prop.py.
CONTINUOUS = {"q_prop"}


def members():
    # Units of several trajectories: test_group.py, test_normalised.py; other targets than ∇J: test_natural.py.
    names = [name for name, cls in REGISTRY.items() if cls.target == "gradient" and not cls.batchwise and name not in CONTINUOUS]
    registered = [make(name, **arguments) for name in names for arguments in ARGUMENTS.get(name, [{}])]
    return [*registered, Baseline(lambda obs, t: 3.0 * obs - t**2, called="user baseline")]


def nothing(traj, need):
    return Values()


def path_gradients(paths, logits, policy, estimator, source, gamma, discount_weighting=True, at_cut="bootstrap"):
    """g of every path, [N, P]: the rows that a measurement adds up, with scores in closed form."""

    def read(traj, asks):
        return Batch(traj, source(traj, asks | BOTH), gamma, at_cut)

    g = torch.zeros(len(paths.traj), logits.numel(), dtype=torch.float64)
    for terms in assemble([estimator], paths.traj, policy, read, discount_weighting):
        for j in range(terms.action.shape[1]):
            rows = replace(paths.traj, offsets=terms.offsets, obs=terms.obs, state=terms.obs, action=terms.action[:, j])
            taken = Enumeration(rows, paths.world)
            g += taken.gradients(logits, terms.weights[:, j, 0])
    return g


class World:
    """A random finite MDP with everything enumerated once."""

    def __init__(self, seed):
        self.mdp = random_mdp(seed)
        self.logits = random_logits(seed + 100, self.mdp).requires_grad_()
        self.paths = enumerate_paths(self.mdp, HORIZON)
        probability = self.paths.probability(self.logits)
        self.probability, self.gradient = probability.detach(), {}
        for gamma in (1.0, 0.9):
            j = (probability * self.paths.returns(gamma)).sum()
            self.gradient[gamma] = torch.autograd.grad(j, self.logits, retain_graph=True)[0].flatten()
        env = envs.environment(self.mdp, HORIZON)
        self.policy = policies.SoftmaxTable(env, logits=self.logits)
        # Baselines are fitted on other data, as in a measurement.
        self.env, self.scores = env, scores.FactoredScores(self.policy.double())
        self.critic_stream = rollout(env, self.policy, 20, Streams(seed).sequence("critic"))
        table = torch.Generator().manual_seed(seed)
        v = 3 * torch.randn(HORIZON + 1, 3, generator=table, dtype=torch.float64)
        q = 3 * torch.randn(HORIZON, 3, 2, generator=table, dtype=torch.float64)
        self.wrong = FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])

    def exact(self, gamma):
        return values.ExactValues.of(self.mdp, self.policy, gamma, HORIZON)

    def mean(self, estimator, source, gamma, discount_weighting=True):
        """E g by summing over every path."""
        known = {"env": self.env, "policy": self.policy, "scores": self.scores, "discount_weighting": discount_weighting}
        fitted = estimator.bind(self.env, self.policy).fit(FitBatch(self.critic_stream, Values(), gamma, **known))
        return self.probability @ path_gradients(
            self.paths, self.logits.detach(), self.policy, fitted, source, gamma, discount_weighting
        )


@pytest.fixture(scope="module", params=(0, 5), ids=lambda s: f"world{s}")
def world(request):
    return World(request.param)


def distance(a, b):
    return float((a - b).abs().max())


def test_the_world_is_not_a_special_case(world):
    """Every length occurs, some episodes end and some are truncated, and total return and reward-to-go differ."""
    traj = world.paths.traj
    assert set(traj.length.tolist()) == set(range(1, HORIZON + 1))
    assert bool(traj.terminated.any()) and bool(traj.truncated.any())
    assert not world.mdp.reward_only_at_end
    first, second = (weight(make(n), Batch(traj, Values(), 1.0), True) for n in ("total_return", "reward_to_go"))
    assert distance(first, second) > 0.1
    assert float(world.gradient[1.0].norm()) > 0.1


@pytest.mark.parametrize("gamma", (1.0, 0.9))
@pytest.mark.parametrize("estimator", members(), ids=lambda e: e.label)
def test_claim(world, estimator, gamma):
    """Unbiased always: even with random values. Given exact values: with exact ones, and visibly not with random ones."""
    exact = world.mean(estimator, world.exact(gamma), gamma)
    wrong = world.mean(estimator, world.wrong, gamma)
    if estimator.unbiased in ("always", "given exact values"):
        assert distance(exact, world.gradient[gamma]) < 1e-12
    if estimator.unbiased == "always":
        assert distance(wrong, world.gradient[gamma]) < 1e-12
    else:
        assert distance(wrong, world.gradient[gamma]) > 1e-3, "it claims less than it keeps: raise the claim"


@pytest.mark.parametrize("estimator", [e for e in members() if e.unbiased == "always"], ids=lambda e: e.label)
def test_values_of_another_discount_change_no_mean(world, estimator):
    assert distance(world.mean(estimator, world.exact(1.0), 0.9), world.gradient[0.9]) < 1e-12


def test_unweighted_family_shares_one_mean_that_total_return_does_not(world):
    """w_t = 1 and γ < 1: one common mean, the gradient of no objective here; total_return keeps ∇J_γ."""
    source = world.exact(0.9)
    means = {e.label: world.mean(e, source, 0.9, discount_weighting=False) for e in members()}
    common = means["reward_to_go"]
    for label, mean in means.items():
        if label != "total_return":
            assert distance(mean, common) < 1e-12, label
    assert distance(means["total_return"], world.gradient[0.9]) < 1e-12
    assert distance(common, means["total_return"]) > 1e-3
    assert distance(common, world.gradient[1.0]) > 1e-3


def test_unweighted_mean_is_the_theorem_without_its_discount(world):
    """Σ_t Σ_s d_t(s) Σ_a ∇π Q_t: the same sum as ∇J_γ with γ^t left out."""
    logits = world.logits.detach().requires_grad_()
    pi = logits.softmax(-1)
    _, q = values.evaluate(world.mdp, pi.detach(), 0.9, HORIZON)
    d = values.occupancy(world.mdp, pi.detach(), HORIZON)
    (expected,) = torch.autograd.grad((torch.einsum("ts,tsa->sa", d, q) * pi).sum(), logits)
    assert distance(world.mean(make("reward_to_go"), nothing, 0.9, False), expected.flatten()) < 1e-12


def test_at_gamma_one_the_weighting_does_not_matter(world):
    for estimator in members():
        a, b = (world.mean(estimator, world.exact(1.0), 1.0, weighting) for weighting in (True, False))
        assert torch.equal(a, b)


@pytest.mark.parametrize("gamma", (1.0, 0.9))
def test_bootstrapping_at_a_cut_is_unbiased_given_exact_values_and_the_other_rules_are_not(world, gamma):
    """L < H: V_L(s_L) stands for what is not sampled, for the steps sampled; the gradient of later steps is missing.

    E Σ_{t<L} γ^t z_t Φ_t is then the same for reward_to_go, value_baseline, td_residual, n_step and gae, and equals the first
    L terms of the policy gradient theorem.
    """
    cut = 2
    paths = enumerate_paths(world.mdp, HORIZON, cut=cut)
    logits = world.logits.detach().requires_grad_()
    pi = logits.softmax(-1)
    _, q = values.evaluate(world.mdp, pi.detach(), gamma, HORIZON)
    d = values.occupancy(world.mdp, pi.detach(), HORIZON)
    w = gamma ** torch.arange(HORIZON, dtype=torch.float64)
    (expected,) = torch.autograd.grad((torch.einsum("t,ts,tsa->sa", w[:cut], d[:cut], q[:cut]) * pi).sum(), logits)
    probability = paths.probability(logits.detach())
    plain = ("reward_to_go", "total_return", "value_baseline", "td_residual", "n_step(3)", "gae(0.5)")
    names = (*plain, "q_value", "advantage", "all_action")
    for name in names:
        for rule in estimators.AT_CUT:
            g = path_gradients(
                paths, logits.detach(), world.policy, estimators.parse(name), world.exact(gamma), gamma, True, rule
            )
            off = distance(probability @ g, expected.flatten())
            if rule == "bootstrap" or name not in plain:
                assert off < 1e-12, (name, rule)
            else:
                assert off > 1e-3, (name, rule)
