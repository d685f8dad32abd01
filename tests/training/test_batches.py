"""A quota of steps: the law of its episodes, its cut, its bias; against plain loops and enumeration."""

import functools
from collections import Counter

import hand
import numpy as np
import pytest
import scipy.stats
import torch
from finite_worlds import enumerate_paths, random_mdp

from varlab import envs, policies
from varlab.rng import Streams
from varlab.training import CriticUpdates, train
from varlab.training.batches import by_steps, cut_short
from varlab.values import ExactValues

CPU = torch.device("cpu")


def quota(env, policy, steps, seed=0):
    return by_steps(env, policy, Streams(seed), CPU, steps)


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 17, 40])
def test_a_quota_is_met_exactly_and_only_the_last_episode_is_cut(steps):
    env, policy = hand.world()
    for epoch in range(20):
        traj = quota(env, policy, steps)("train", epoch)
        assert traj.steps == steps and int(traj.length.max()) <= env.horizon
        assert not bool(cut_short(traj)[:-1].any())
        assert bool((traj.terminated | (traj.length == env.horizon) | cut_short(traj)).all())


def lengths_by_enumeration(ending, horizon, quota):
    """P(lengths of the episodes) where one runs after another, each step ends an episode with probability ``ending``."""
    law = Counter()

    def walk(left, lengths, share):
        if left == 0:
            law[lengths] += share
            return
        most, alive = min(horizon, left), 1.0
        for length in range(1, most + 1):
            ends = alive if length == most else alive * ending
            walk(left - length, (*lengths, length), share * ends)
            alive *= 1 - ending

    walk(quota, (), 1.0)
    return law


def fading(ending, horizon):
    """Every step ends the episode with one probability, whatever state and action."""
    mdp = random_mdp(3, states=2, actions=2, ending=0.0).with_termination(1 - ending)
    env = envs.environment(mdp, horizon)
    return env, policies.make("softmax_table", env, theta_seed=0).double()


def p_value(counts, law, n):
    keys = sorted(law)
    assert set(counts) <= set(keys)
    return scipy.stats.chisquare([counts[k] for k in keys], [n * law[k] for k in keys]).pvalue


def test_episodes_side_by_side_have_the_law_of_one_after_another():
    """⌊r/H⌋ episodes at a time change nothing; a law with another ending is told apart by the same test."""
    (env, policy), n = fading(0.4, 3), 1500
    collect = quota(env, policy, 7)
    counts = Counter(tuple(collect("train", epoch).length.tolist()) for epoch in range(n))
    assert p_value(counts, lengths_by_enumeration(0.4, 3, 7), n) > 0.01
    assert p_value(counts, lengths_by_enumeration(0.47, 3, 7), n) < 1e-4


def expected_gradient(env, policy, steps, horizon):
    """E of the mean over a quota's episodes, by every sequence of episodes; the rule at the cut is ``terminal``."""
    logits = policy.logits.weight.detach()
    kinds = {}
    for most in range(1, horizon + 1):
        paths = enumerate_paths(env.finite, horizon, most)
        to_go = hand_reward_to_go(paths.traj)
        kinds[most] = (paths.probability(logits), paths.traj.length, paths.gradients(logits, to_go))

    @functools.cache
    def walk(left):
        """{episodes: (probability, E of the sum of gradients on that event)} of what a rest of steps brings."""
        if left == 0:
            return {0: (1.0, torch.zeros(logits.numel(), dtype=torch.float64))}
        found = {}
        probability, length, g = kinds[min(horizon, left)]
        for size in length.unique().tolist():
            here = length == size
            p, s = float(probability[here].sum()), probability[here] @ g[here]
            for count, (q, later) in walk(left - size).items():
                old = found.get(count + 1, (0.0, 0.0))
                found[count + 1] = (old[0] + p * q, old[1] + q * s + p * later)
        return found

    found = walk(steps)
    assert sum(p for p, _ in found.values()) == pytest.approx(1, abs=1e-12)
    return sum(s / count for count, (_, s) in found.items())


def hand_reward_to_go(traj):
    return torch.tensor(
        [hand.reward_to_go(0, t, r) for _, _, r in hand.episodes(traj) for t in range(len(r))], dtype=torch.float64
    )


def test_the_mean_over_a_quota_is_biased_and_by_how_much():
    """Enumeration: the bias is clear at a small quota and fades as it grows; sampled batches agree with the enumeration."""
    env, policy = hand.world(seed=2, horizon=2)
    paths = enumerate_paths(env.finite, 2)
    logits = policy.logits.weight.detach()
    truth = paths.probability(logits) @ paths.gradients(logits, hand_reward_to_go(paths.traj))
    bias = {m: float((expected_gradient(env, policy, m, 2) - truth).norm() / truth.norm()) for m in (3, 8, 24)}
    assert bias[3] > 0.1 > bias[8] > bias[24] > 1e-3
    assert float(expected_gradient(env, policy, 3, 2) @ truth) < float(truth @ truth)  # it shrinks: what the cut hides is 0

    collect, n = quota(env, policy, 3), 2000
    z = torch.eye(2, dtype=torch.float64)
    sampled = torch.zeros(n, *logits.shape, dtype=torch.float64)
    for epoch in range(n):
        traj = collect("train", epoch)
        score = z[traj.action] - logits.softmax(1)[traj.obs]
        sampled[epoch].index_add_(0, traj.obs, score * hand_reward_to_go(traj).unsqueeze(1) / len(traj))
    sampled = sampled.flatten(1)
    z_score = (sampled.mean(0) - expected_gradient(env, policy, 3, 2)) / (sampled.std(0) / n**0.5)
    assert float(z_score.abs().max()) < 3.5
    assert float(((sampled.mean(0) - truth) / (sampled.std(0) / n**0.5)).abs().max()) > 5


@pytest.mark.parametrize("rule", ["bootstrap", "terminal", "wrong_state"])
def test_the_cut_episode_is_closed_by_its_rule(rule):
    """Exact V, so that a hand loop can look it up: G_t of the cut episode ends in V_L(s_L), 0, or V_L(s_{L−1})."""
    env, policy = hand.world(ending=0.2)
    settings = {"steps": 14, "epochs": 1, "optimizer": "ascent", "lr": 1.0, "values": "exact", "at_cut": rule, "dtype": "float64"}
    start = hand.table(policy.state_dict())
    seed = next(s for s in range(20) if bool(cut_short(quota(env, policy, 14, s)("train", 0)).any()))
    made = train(env, policy, "reward_to_go", seed=seed, **settings)
    traj = quota(env, policy, 14, seed)("train", 0)
    v = ExactValues.of(env.finite, policy, 1.0, env.horizon).v
    last, length = len(traj) - 1, int(traj.length[-1])
    end = {"bootstrap": v[length, int(traj.last_obs[-1])], "terminal": 0.0, "wrong_state": v[length, int(traj.obs[-1])]}

    def phi(i, t, rewards):
        return sum(rewards[t:]) + (float(end[rule]) if i == last else 0.0)

    expected = start + hand.gradient(start, traj, phi)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), expected, rtol=0, atol=1e-10)
    assert abs(float(end["bootstrap"]) - float(end["wrong_state"])) > 1e-3 and abs(float(end["bootstrap"])) > 1e-3
    assert any("quota of 14 steps" in note for note in made.notes)


def test_a_learned_critic_closes_the_cut_even_where_phi_needs_none():
    env, policy = hand.world(ending=0.2)
    made = train(env, policy, "reward_to_go", steps=14, epochs=2, critic=CriticUpdates(hidden=(4,), train_v_iters=2))
    assert made.critic is not None and made.curve["critic_loss"].notna().all()
    terminal = train(env, policy, "reward_to_go", steps=14, epochs=2, at_cut="terminal")
    assert terminal.critic is None and terminal.curve["critic_loss"].isna().all()


def test_returns_are_those_of_whole_episodes():
    env, policy = hand.world(ending=0.2)
    made = train(
        env, policy, "reward_to_go", steps=14, epochs=3, at_cut="terminal", dtype="float64", optimizer="ascent", lr=1e-12
    )
    for epoch, row in made.curve.iterrows():
        traj = quota(env, policy, 14)("train", epoch)
        whole = [sum(r) for (_, _, r), cut in zip(hand.episodes(traj), cut_short(traj).tolist(), strict=True) if not cut]
        assert row["mean_return"] == pytest.approx(np.mean(whole), rel=1e-9)
        assert row["standard_error"] == pytest.approx(np.std(whole, ddof=1) / len(whole) ** 0.5, rel=1e-9)
        assert (row["steps"], row["episodes"]) == (14 * (epoch + 1), len(traj))


def test_a_quota_shorter_than_every_episode_reports_no_return():
    env = envs.environment(random_mdp(1, ending=0.0), 10)
    policy = policies.make("softmax_table", env)
    made = train(env, policy, "reward_to_go", steps=5, epochs=1, at_cut="terminal")
    assert made.curve[["mean_return", "standard_error", "mean_length"]].isna().all(axis=None)
