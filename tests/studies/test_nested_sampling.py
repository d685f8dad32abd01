"""Nested samples of simulated worlds against exact components: a finite MDP with endings, a linear system, and CartPole."""

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import policies
from varlab.analysis import nested as statistics
from varlab.envs import finite, lqg
from varlab.oracles.components import components
from varlab.oracles.gaussian_components import gaussian_components
from varlab.policies import Linear, SoftmaxTable
from varlab.studies import nested as sampling
from varlab.values import FunctionValues
from varlab.values.linear_quadratic import QuadraticValues

GAMMA = 0.9


def near(found, wanted, scale):
    """Within 4.5 standard errors (an interval is about 4 wide)."""
    low, high = found.interval()
    assert abs(found.value - wanted) <= 4.5 / 3.92 * (high - low) + 1e-9 * scale, (found.value, wanted, low, high)


def test_a_finite_world_with_endings():
    mdp = random_mdp(4)
    env = finite.environment(mdp, 5)
    policy = SoftmaxTable(env, random_logits(4, mdp))
    table = torch.randn(6, mdp.num_states, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = lambda s, t: table[t, s]  # noqa: E731
    q = lambda s, a, t: table[t, s] * (1.0 + a)  # noqa: E731
    found = sampling.nested(
        env, policy, [0, 1, 3], n=6000, gamma=GAMMA, v=v, lams=(1.0, 0.5), seed=3,
        baselines={"0": lambda s, a, t: 0.0 * t.double(), "v": lambda s, a, t: v(s, t)},
    )  # fmt: skip
    source = FunctionValues(v=v, q=q)
    exact = {
        (1.0, "0"): components(env, policy, "reward_to_go", gamma=GAMMA),
        (1.0, "v"): components(env, policy, "value_baseline", gamma=GAMMA, values=source),
        (0.5, "v"): components(env, policy, "gae(lam=0.5)", gamma=GAMMA, values=source),
    }
    for step in found:
        for (lam, baseline), c in exact.items():
            made = statistics.parts(step.samples[lam], step.baselines)
            for part, name in (("state", ""), ("action", baseline), ("trajectory", "")):
                near(made[part, name], getattr(c, part)[step.time], c.step[step.time])


def test_a_linear_system_with_action_dependent_baselines():
    env = lqg.random_system(4, seed=2, state_dim=2, action_dim=1)
    policy = Linear(env, -0.5).double()
    known = QuadraticValues.of(env, policy, GAMMA)
    baselines = {"v": lambda s, a, t: known.v(s, t), "q": known.q}
    found = sampling.nested(
        env, policy, [2], n=4000, gamma=GAMMA, discount_weighting=False, v=known.v, lams=(1.0, 0.7), baselines=baselines, seed=1,
        actions=3,
    )[0]  # fmt: skip
    for lam, phi in ((1.0, "value_baseline"), (0.7, "gae(lam=0.7)")):
        c = gaussian_components(env, policy, phi, gamma=GAMMA, discount_weighting=False)
        made = statistics.parts(found.samples[lam], found.baselines)
        for part, name in (("state", ""), ("action", "v"), ("trajectory", "")):
            near(made[part, name], getattr(c, part)[2], c.step[2])
        near(made["action", "q"], 0.0, c.step[2])
        assert abs(made["action", "q"].value) < 0.1 * c.action[2]


def test_cartpole_episodes_that_ended_count_as_nothing():
    env = varlab.envs.make("CartPole-v1", horizon=60)
    policy = policies.make("mlp", env, hidden=(8,))
    one, again = (sampling.nested(env, policy, [0, 30], n=150, seed=5) for _ in range(2))
    alive = one[1].samples[1.0].alive
    assert 0 < alive.sum() < 150
    assert (one[0].samples[1.0].alive == 1).all()
    assert (one[1].samples[1.0].phi[alive == 0] == 0).all()
    assert (one[1].samples[1.0].phi[alive == 1] >= 1).all()
    np.testing.assert_array_equal(one[1].samples[1.0].phi, again[1].samples[1.0].phi)
    # The return of a continuation is its length: the steps that were paid for.
    assert one[0].steps == pytest.approx(one[0].samples[1.0].phi.sum())


def test_the_number_of_branches_stepped_together_changes_no_state_or_action(monkeypatch):
    env = lqg.random_system(3, seed=2)
    policy = Linear(env, -0.5)
    whole = sampling.nested(env, policy, [0], n=120, seed=5)[0].samples[1.0]
    monkeypatch.setattr(sampling, "TILE", 100)
    tiled = sampling.nested(env, policy, [0], n=120, seed=5)[0].samples[1.0]
    np.testing.assert_array_equal(whole.gram, tiled.gram)
    assert tiled.phi.shape == whole.phi.shape and not np.array_equal(tiled.phi, whole.phi)


def test_what_it_refuses():
    env = lqg.random_system(3, seed=2)
    policy = Linear(env, -0.5)
    with pytest.raises(varlab.InputError, match="Times from 0 to 2"):
        sampling.nested(env, policy, [3], n=100)
    with pytest.raises(varlab.InputError, match="A function v was expected"):
        sampling.nested(env, policy, [0], n=100, lams=(0.5,))
    mdp = random_mdp(1, ending=2.0)
    ending = finite.environment(mdp, 5)
    with pytest.raises(varlab.InputError, match="Episodes that are alive at time 2"):
        sampling.nested(ending, SoftmaxTable(ending), [2], n=100)
