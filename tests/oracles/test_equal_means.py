"""Which Φ share a mean, on 200 random MDPs, and the counter-examples to "less noise" that textbooks leave out.

The source text says that every Φ of its list gives the same expected gradient. With γ = 1, or γ < 1 and steps weighted by γ^t,
that mean is ∇J_γ. With γ < 1 and no weights the reward-to-go family shares a mean that is no gradient, and total_return has
another. A wrong V or Q takes those out that bootstrap.
"""

import numpy as np
import pytest
import torch
from finite_worlds import enumerate_paths, random_logits, random_mdp
from torch import nn

import varlab
from varlab import envs
from varlab.envs import FiniteMDP
from varlab.estimators import Baseline
from varlab.policies import SoftmaxTable
from varlab.values import FunctionValues

MDPS = 200
GAMMA = 0.85
#: Unbiased whatever V; then those that need exact values.
ALWAYS = (
    "total_return", "reward_to_go", "constant_baseline", "time_baseline", "value_baseline", "n_step(k=9)", "gae(lam=1.0)",
)  # fmt: skip
GIVEN_EXACT = ("q_value", "advantage", "td_residual", "n_step(k=2)", "gae(lam=0.95)", "all_action")


def world(seed):
    """S of 2 to 5, A of 2 or 3, H of 2 to 5, one to four outcomes; rewards everywhere; several ways to end."""
    shape = {"states": 2 + seed % 4, "actions": 2 + seed % 2, "outcomes": 1 + seed % 4, "ending": 0.1 * (seed % 4)}
    mdp = random_mdp(seed, **shape)
    env = envs.environment(mdp, 2 + (seed // 4) % 4)
    return env, SoftmaxTable(env, random_logits(seed + 1000, mdp))


def wrong_values(env, seed):
    draw, (s, a) = torch.Generator().manual_seed(seed), (env.finite.num_states, env.finite.num_actions)
    v = 3 * torch.randn(env.horizon + 1, s, generator=draw, dtype=torch.float64)
    q = 3 * torch.randn(env.horizon, s, a, generator=draw, dtype=torch.float64)
    return FunctionValues(v=lambda state, t: v[t, state], q=lambda state, action, t: q[t, state, action])


def furthest(mean, target):
    """The largest distance of a mean from ``target``, relative to the latter's largest entry."""
    return np.abs(mean - target).max() / np.abs(target).max()


def test_random_worlds_differ():
    shapes = {(e.finite.probability.shape, e.horizon) for e, _ in map(world, range(MDPS))}
    assert len(shapes) >= 12


@pytest.mark.parametrize("share", range(4))
def test_all_means_are_the_gradient_where_steps_carry_their_discount(share):
    """Σ_t γ^t z_t Φ_t (γ = 1 included) has mean ∇J_γ for every Φ with exact values."""
    for seed in range(share, MDPS, 4):
        env, policy = world(seed)
        for gamma in (1.0, GAMMA):
            found = varlab.exact(env, policy, ALWAYS + GIVEN_EXACT, gamma=gamma)
            assert furthest(found.mean, found.gradient) < 1e-12, (seed, gamma)


@pytest.mark.parametrize("share", range(4))
def test_without_weights_the_reward_to_go_family_shares_a_mean_that_total_return_does_not(share):
    for seed in range(share, MDPS, 4):
        env, policy = world(seed)
        found = varlab.exact(env, policy, ALWAYS + GIVEN_EXACT, gamma=GAMMA, discount_weighting=False)
        total, family = found.mean[0], found.mean[1:]
        assert furthest(total, found.gradient) < 1e-12, seed
        assert furthest(family, family[0]) < 1e-12, seed
        assert furthest(family, total) > 1e-4, seed


def test_wrong_values_move_only_the_mean_of_those_that_need_them():
    b = Baseline(lambda s, t: 5.0 * s - t, called="any function of state and time")
    safe, moved = len(ALWAYS) + 1, []
    for seed in range(0, MDPS, 3):
        env, policy = world(seed)
        found = varlab.exact(env, policy, (*ALWAYS, b, *GIVEN_EXACT), values=wrong_values(env, seed))
        assert furthest(found.mean[:safe], found.gradient) < 1e-12, seed
        moved.append([furthest(m, found.gradient) > 1e-3 for m in found.mean[safe:]])
        if env.horizon == 2:  # two steps reach the end, where nothing is looked up
            assert furthest(found.mean[safe + GIVEN_EXACT.index("n_step(k=2)")], found.gradient) < 1e-12, seed
    # in some worlds no action changes what follows, and a wrong V(s_{t+1}) is then a baseline
    assert np.mean(moved, 0).min() > 0.5


def test_means_agree_with_finite_differences_of_performance():
    """∂J_γ/∂θ by central differences of Σ_τ P(τ | θ) R_γ(τ), in which no score occurs."""
    step = 1e-5
    for seed in range(0, MDPS, 5):
        env, policy = world(seed)
        if env.horizon > 3:
            continue
        paths = enumerate_paths(env.finite, env.horizon)
        theta = policy.logits.weight.detach().double()
        moves = step * torch.eye(theta.numel(), dtype=torch.float64).reshape(-1, *theta.shape)
        for gamma in (1.0, GAMMA):
            returns = paths.returns(gamma)
            slope = [(paths.probability(theta + d) - paths.probability(theta - d)) @ returns / (2 * step) for d in moves]
            found = varlab.exact(env, policy, ALWAYS, gamma=gamma)
            assert abs(found.j - float(paths.probability(theta) @ returns)) < 1e-12
            assert np.abs(found.gradient - np.array(slope)).max() < 1e-6, (seed, gamma)
            assert np.abs(found.mean - np.array(slope)).max() < 1e-6, (seed, gamma)


class Bernoulli(nn.Module):
    """p = P(a = 1) = 1/(1 + e^{−θ}), the same in every state."""

    def __init__(self, p):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(p, dtype=torch.float64).logit())

    def forward(self, obs):
        logit = self.theta.expand(len(obs))
        return torch.distributions.Categorical(logits=torch.stack([torch.zeros_like(logit), logit], -1))


def variances(lists, horizon, p, phi):
    env = envs.environment(FiniteMDP.from_lists(lists, [1.0] + [0.0] * (len(lists) - 1)), horizon)
    return varlab.exact(env, Bernoulli(p), phi).variance


def test_dropping_past_rewards_may_add_variance():
    """r_0 = 1 and r_1 = −1 whatever is done: R = 0 and its gradient with it, but z_1 G_1 = −z_1 has variance p (1 − p)."""
    lists = [[[(1.0, 1, 1.0, False)]] * 2, [[(1.0, 1, -1.0, True)]] * 2]
    total, to_go = variances(lists, 2, 0.5, ("total_return", "reward_to_go"))
    assert total < 1e-15 and to_go == pytest.approx(0.25, rel=1e-12)


@pytest.mark.parametrize("p", (0.1, 0.3, 0.5, 0.6, 0.66, 0.68, 0.9))
def test_the_value_function_may_be_a_bad_baseline(p):
    """Two arms that pay 1{a = 1}: the variance is p (1 − p) (1 − p − b)², so that b = V = p helps only below p = 2/3."""
    lists = [[[(1.0, 0, 0.0, True)], [(1.0, 0, 1.0, True)]]]
    b = {name: value for name, value in (("none", 0.0), ("best", 1 - p), ("other", -0.4))}
    phi = [Baseline(lambda s, t, x=x: torch.full(s.shape, x, dtype=torch.float64), called=name) for name, x in b.items()]
    none, best, other, value, plain = variances(lists, 1, p, (*phi, "value_baseline", "total_return"))
    formula = {x: p * (1 - p) * (1 - p - x) ** 2 for x in (0.0, -0.4, p)}
    assert [none, plain, other, value] == pytest.approx([formula[0.0], formula[0.0], formula[-0.4], formula[p]], rel=1e-12)
    assert best < 1e-15
    assert (value < none) == (p < 2 / 3)
    if p == 0.9:
        assert value / none == pytest.approx(64, rel=1e-10)
