"""The multi-prompt bandit and its closed forms."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from finite_worlds import random_logits

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.envs.prompts import group_advantage_variance, group_normalised_factor, prompts


def table(env):
    """[S, A] success probabilities that the outcomes hold."""
    return env.finite.expected_reward


def test_outcomes_share_their_next_state_and_differ_in_reward():
    mdp = prompts(success=[[0.9, 0.2, 0.5], [0.0, 1.0, 0.25]]).finite
    assert mdp.probability.shape == (2, 3, 2) and mdp.initial.tolist() == [0.5, 0.5]
    assert bool(mdp.terminated[mdp.probability > 0].all())
    torch.testing.assert_close(mdp.expected_reward, torch.tensor([[0.9, 0.2, 0.5], [0.0, 1.0, 0.25]], dtype=torch.float64))
    for s in range(2):
        for a in range(3):
            possible = mdp.probability[s, a] > 0
            assert set(mdp.reward[s, a, possible].tolist()) <= {0.0, 1.0} and set(mdp.next_state[s, a, possible].tolist()) == {s}
    assert sorted(mdp.reward[0, 0].tolist()) == [0.0, 1.0]


def test_drawn_tables():
    assert torch.equal(table(prompts(3, 4, seed=2)), table(prompts(3, 4, seed=2)))
    assert not torch.equal(table(prompts(3, 4, seed=2)), table(prompts(3, 4, seed=3)))
    drawn = table(prompts(500, 4))
    assert drawn.shape == (500, 4) and abs(float(drawn.mean()) - 0.5) < 4 / (12 * 2000) ** 0.5
    right = table(prompts(500, 4, deterministic=True))
    assert torch.equal(right.sum(1), torch.ones(500).double()) and set(right.flatten().tolist()) == {0.0, 1.0}
    assert right.mean(0).tolist() == pytest.approx([0.25] * 4, abs=4 * (0.25 * 0.75 / 500) ** 0.5)


def test_exact_values():
    """J is the mean over prompts of p(s) = Σ_a π success, and each row of ∇J is ∇p/S = π (success − p)/S."""
    env = prompts(3, 2, seed=1)
    logits = random_logits(0, env.finite)
    policy = policies.prepare(policies.SoftmaxTable(env, logits=logits), torch.float64, "cpu")
    found = varlab.exact(env, policy, ["reward_to_go", "value_baseline"])
    pi, success = logits.softmax(-1), table(env)
    p = (pi * success).sum(-1, keepdim=True)
    assert found.j == pytest.approx(float(p.mean()), abs=1e-14)
    expected = (pi * (success - p) / 3).flatten().numpy()
    np.testing.assert_allclose(found.gradient, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.mean, [expected] * 2, rtol=0, atol=1e-14)


def test_by_its_id():
    env = envs.make("varlab/Prompts-v0", success=[[1.0, 0.0]] * 2)
    assert env.horizon == 1 and env.finite.num_states == 2 and env.num_actions == 2
    single = gymnasium.make("varlab/Prompts-v0", prompts=2, answers=3, deterministic=True)
    seen = set()
    for seed in range(40):
        prompt, _ = single.reset(seed=seed)
        _, reward, terminated, _, _ = single.step(seed % 3)
        seen.add((prompt, seed % 3, reward))
        assert terminated
    assert len(seen) == 6, "an answer is right or wrong"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": 0}, "prompts must be a whole number of at least 1"),
        ({"answers": 1}, "answers must be a whole number of at least 2"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"success": [[0.5, 1.5]]}, r"a success probability must lie in \[0, 1\], but it is 1.5"),
        ({"success": [[0.5, 0.5], [1.0]]}, r"at every prompt, but the rows have \[2, 1\] entries; give each"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        prompts(**arguments)


def test_the_factor_of_group_normalised():
    """Sizes 2 and 3 by hand, symmetry in p, the limit 1/√(p(1 − p)), and a plain simulation."""
    for p in (0.1, 0.5, 0.9):
        assert group_normalised_factor(p, 2) == pytest.approx(math.sqrt(0.5), rel=1e-7)
        assert group_normalised_factor(p, 3) == pytest.approx(2 / math.sqrt(3), rel=1e-7)
        assert group_normalised_factor(p, 8) == pytest.approx(group_normalised_factor(1 - p, 8), rel=1e-12)
        assert group_normalised_factor(p, 100_000) == pytest.approx((p * (1 - p)) ** -0.5, rel=1e-3)
    r = (np.random.default_rng(0).random((400_000, 8)) < 0.2).astype(float)
    a = (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-8)
    one, zero = a[r == 1], a[r == 0]  # entries of one group are dependent: the error of a mean is at most √8 times larger
    error = 8**0.5 * (one.var() / one.size + zero.var() / zero.size) ** 0.5
    assert abs(one.mean() - zero.mean() - group_normalised_factor(0.2, 8)) < 4 * error < 0.02


def test_closed_forms_refuse_nonsense():
    for f in (group_normalised_factor, lambda p, g: group_advantage_variance(p, g, True)):
        with pytest.raises(InputError, match="p must lie in"):
            f(1.1, 4)
        with pytest.raises(InputError, match="group must be a whole number of at least 2"):
            f(0.5, 1)
