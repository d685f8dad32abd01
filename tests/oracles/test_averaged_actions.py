"""Action-dependent baselines and averages over actions: varlab.exact() and components against every trajectory, to 1e-12."""

import numpy as np
import pytest
import torch
from action_estimators import WithActions, tables
from components_by_hand import by_hand, equal
from enumerated_moments import Masked, Temperature, averaged_scores, differences, every_trajectory, moments
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, estimators, policies, values
from varlab.estimators import Batch, weight
from varlab.oracles import coordinates
from varlab.oracles.components import components
from varlab.policies import SoftmaxTable
from varlab.values import FunctionValues

TOLERANCE = 1e-12
HORIZON, STATES, ACTIONS = 4, 3, 2
B, PSI = tables(5, HORIZON, STATES, ACTIONS)
BASES = (None, "reward_to_go", "q_value", "td_residual", "n_step(k=2)", "n_step(k=3)", "gae(lam=0.5)")
BASES = [x and estimators.parse(x) for x in BASES]
CHOICES = [
    *(WithActions(base, psi=PSI) for base in (*BASES, estimators.parse("value_baseline"))),
    *(WithActions(base, b=B) for base in BASES),
    *(WithActions(base, b=B, psi=PSI) for base in BASES),
    *(WithActions(base, b=B, psi=B) for base in BASES[1:]),
]  # fmt: skip
OBJECTIVES = ((1.0, True), (0.8, True), (0.8, False))
CUTS = ((None, "bootstrap"), (1, "terminal"), *((2, rule) for rule in estimators.AT_CUT), (3, "bootstrap"))


def wrong_values():
    draw = torch.Generator().manual_seed(2)
    v = 3 * torch.randn(HORIZON + 1, STATES, generator=draw, dtype=torch.float64)
    q = 3 * torch.randn(HORIZON, STATES, ACTIONS, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


KINDS = {
    "table": lambda env: SoftmaxTable(env, random_logits(1, env.finite)),
    "more parameters than pairs": lambda env: Temperature(STATES, ACTIONS),
    "fewer parameters than pairs": lambda env: Masked(),
}


def make(kind):
    env = envs.environment(random_mdp(0), HORIZON)
    return env, policies.prepare(KINDS[kind](env), torch.float64, "cpu")


@pytest.fixture(scope="module", params=KINDS)
def world(request):
    return make(request.param)


@pytest.mark.parametrize("part", (1, 2**16))
@pytest.mark.parametrize(("gamma", "weighting"), OBJECTIVES)
def test_mean_and_variance_by_enumeration(world, gamma, weighting, part, monkeypatch):
    monkeypatch.setattr(coordinates, "PART", part)
    env, policy = world
    settings = {"gamma": gamma, "discount_weighting": weighting}
    for source in ("exact", wrong_values()):
        for cut, at_cut in CUTS if part > 1 and source != "exact" else CUTS[:1]:
            found = varlab.exact(env, policy, CHOICES, values=source, cut=cut, at_cut=at_cut, **settings)
            known = values.ExactValues.of(env.finite, policy, gamma, HORIZON) if source == "exact" else source
            mean, variance = moments(env, policy, CHOICES, known, cut=cut, at_cut=at_cut, **settings)
            assert differences(found.mean, mean).max() < TOLERANCE, (cut, at_cut)
            scale = np.maximum(variance, 1e-3 * mean**2)  # a single step that averages everything has no variance
            assert (np.abs(found.variance_per_parameter - variance).max(1) / scale.max(1)).max() < TOLERANCE, (cut, at_cut)


def test_what_must_be_so_is_so(world):
    """With Q inside, the average over actions has the gradient as its mean; a baseline put back leaves the mean alone."""
    env, policy = world
    _, q = values.ExactValues.of(env.finite, policy, 0.8, HORIZON).table(env.finite, HORIZON)
    plain, averaged, put_back = (
        varlab.exact(env, policy, e, gamma=0.8)
        for e in (estimators.parse("reward_to_go"), WithActions(psi=q), WithActions(BASES[1], b=B, psi=B))
    )
    np.testing.assert_allclose(averaged.mean[0], plain.gradient, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(put_back.mean[0], plain.gradient, rtol=1e-11, atol=1e-13)
    assert averaged.variance[0] < plain.variance[0]
    missing = varlab.exact(env, policy, WithActions(BASES[1], b=B), gamma=0.8)
    assert missing.bias_sq[0] > 1e-3


@pytest.mark.parametrize("kind", ("table", "more parameters than pairs"))
def test_components_by_enumeration(kind):
    """State, action and trajectory parts and every covariance across time, from each step's own term."""
    env, policy = make(kind)
    gamma = 0.8
    traj, probability = every_trajectory(env, policy)
    z = torch.stack([policy_score(policy, o, a) for o, a in zip(traj.obs, traj.action, strict=True)])
    wrong = wrong_values()
    for e in CHOICES[::4]:
        batch = Batch(traj, wrong(traj, frozenset("vq")), gamma)
        w = batch.discount[:, None]
        terms = z * weight(e, batch, True)[:, None]
        if e.psi is not None:
            averaged = torch.stack([averaged_scores(policy, env, x) for x in e.psi])
            terms = terms + w * averaged[traj.time, traj.state]
        ours = components(env, policy, e, gamma=gamma, values=wrong)
        equal(ours, by_hand(traj, probability, terms, torch.ones(len(terms), dtype=torch.float64)))
        total = varlab.exact(env, policy, e, gamma=gamma, values=wrong).variance[0]
        assert abs(ours.total - total) <= TOLERANCE * max(1.0, total)


def policy_score(policy, obs, action):
    free = [p for p in policy.parameters() if p.requires_grad]
    log_p = policy(obs[None]).log_prob(action[None]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(log_p, free)])


def wrong_pairs(factor):
    right = coordinates.TableLogits.add_own_pairs
    return lambda self, part, weight, moment: right(self, part, factor * weight, moment)


@pytest.mark.parametrize("factor", (0.0, 1.03))
def test_an_error_in_pairs_with_the_own_state_is_seen(factor, monkeypatch):
    env, policy = make("table")
    monkeypatch.setattr(coordinates.TableLogits, "add_own_pairs", wrong_pairs(factor))
    found = varlab.exact(env, policy, CHOICES[:1])
    _, variance = moments(env, policy, CHOICES[:1], None)
    assert differences(found.variance_per_parameter, variance).max() > 1e-3
