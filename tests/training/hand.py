"""Vanilla policy gradient once more, by plain loops over episodes and steps: the other route that tests compare with."""

import itertools

import torch
from finite_worlds import random_mdp

from varlab import envs, policies
from varlab.rng import Streams
from varlab.rollout import rollout

HORIZON = 4


def world(seed=1, ending=0.3, horizon=HORIZON):
    """A random finite MDP whose every step pays, and a softmax table in float64."""
    env = envs.environment(random_mdp(seed, states=3, actions=2, ending=ending), horizon)
    return env, policies.make("softmax_table", env, theta_seed=seed).double()


def batch(env, logits, epoch, n, seed=0, stream="train"):
    """The episodes that epoch draws at these logits."""
    policy = policies.SoftmaxTable(env, logits=logits).double()
    return rollout(env, policy, n, Streams(seed).sequence(stream, epoch, 0))


def episodes(traj):
    """Episode by episode: lists of states, actions, rewards."""
    rows = [traj.obs.tolist(), traj.action.tolist(), traj.reward.tolist()]
    return [tuple(x[i:j] for x in rows) for i, j in itertools.pairwise(traj.offsets.tolist())]


def gradient(logits, traj, phi):
    """(1/N) Σ_i Σ_t ∇ log π(a_t | s_t) φ_t by autograd of every single log-probability; φ: (i, t, rewards) → number."""
    theta = logits.clone().requires_grad_()
    total = torch.zeros_like(logits)
    for i, (states, actions, rewards) in enumerate(episodes(traj)):
        for t, (s, a) in enumerate(zip(states, actions, strict=True)):
            log_pi = torch.log_softmax(theta[s], 0)[a]
            total += torch.autograd.grad(log_pi, theta)[0] * phi(i, t, rewards)
    return total / len(traj)


def total_return(i, t, rewards):
    return sum(rewards)


def reward_to_go(i, t, rewards):
    return sum(rewards[t:])


def table(state):
    """The logits of a checkpoint."""
    return state["logits.weight"]
