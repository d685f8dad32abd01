"""The loss whose gradient is the policy gradient, minimised on data that no longer fit (SU-3): exactly, on random MDPs.

With c(s, a) = Σ over the data of 1{s_t = s, a_t = a} R(τ), the loss of a softmax table is L(θ) = −Σ c(s, a) log π_θ(a | s). All
data of θ_0 stand for a batch without sampling error, twenty episodes for a batch as it is used. The policies were improved first
by 30 exact gradient steps, so that there is performance to lose. Returns are shifted by a constant to either side of 0: that
changes neither ∇J nor which policy is good, but whether L has a floor. Where c ≥ 0 its minimum
is π(a | s) = c(s, a)/Σ_b c(s, b), the
step of reward-weighted regression, which never lowers J: Using Expectation-Maximization for Reinforcement Learning (Dayan and
Hinton, 1997).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor

from varlab import values
from varlab.envs.base import Environment
from varlab.envs.finite import environment
from varlab.envs.random_mdp import random_mdp
from varlab.oracles.units import Listed
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import losses
from varlab.studies.claims.spinning_up_worlds import autograd, relative, row, small, table
from varlab.types import Trajectories
from varlab.values.dynamic_programming import evaluate

STATES, ACTIONS, HORIZON = 3, 2, 3
IMPROVE, RATE, EPISODES = 30, 1.0, 20
#: Steps of gradient descent on the loss, of size 1/max_s Σ_a |c(s, a)|: where c ≥ 0 the loss is convex and falls at every one.
STEPS = 400
#: Rewards are U(0, 1), or U(0, 1) − 1.
SHIFTS = {"returns above 0": 0.0, "returns below 0": -1.0}


def world(number: int, seed: int, shift: float) -> Environment:
    """Return a random MDP of three steps with rewards U(0, 1) plus a shift; episodes have one length."""
    generator = np.random.default_rng(Streams(seed).sequence("rollout", number))
    mdp = random_mdp(generator, states=STATES, actions=ACTIONS, outcomes=2, ending=0.0, rewards="uniform")
    return environment(type(mdp)(mdp.probability, mdp.next_state, mdp.reward + shift, mdp.terminated, mdp.initial), HORIZON)


def gradient_of(env: Environment, policy: SoftmaxTable) -> Tensor:
    """Return ∇J [S, A]."""
    return values.gradient(env.finite, policy.double(), 1.0, env.horizon)[0].view(STATES, ACTIONS)


def improved(env: Environment, policy: SoftmaxTable) -> SoftmaxTable:
    """Return the policy after :data:`IMPROVE` steps of exact gradient ascent."""
    for _ in range(IMPROVE):
        policy = SoftmaxTable(env, policy.logits.weight.detach() + RATE * gradient_of(env, policy))
    return policy


def counts(traj: Trajectories, weight: Tensor) -> Tensor:
    """Return c(s, a) [S, A]: returns of the episodes, weighted, at the pairs that they visit."""
    returns = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, traj.reward) * weight
    out = torch.zeros(STATES, ACTIONS, dtype=torch.float64)
    return out.index_put_((traj.state, traj.action), returns[traj.episode], accumulate=True)


def loss(c: Tensor, logits: Tensor) -> Tensor:
    """Return −Σ c log π, for c and logits [..., S, A]."""
    return -(c * logits.log_softmax(-1)).sum((-2, -1))


def descend(c: Tensor, logits: Tensor, steps: int) -> Tensor:
    """Return θ along gradient descent on the loss, [steps + 1, S, A]."""
    path, rate = [logits], 1.0 / float(c.abs().sum(-1).max())
    for _ in range(steps):
        path.append(path[-1] - rate * (c.sum(-1, keepdim=True) * path[-1].softmax(-1) - c))
    return torch.stack(path)


def minimum(c: Tensor, logits: Tensor) -> Tensor:
    """Return the table of probabilities where the loss is least for c ≥ 0; states outside the data keep theirs."""
    mass = c.sum(-1, keepdim=True)
    return torch.where(mass > 0, c / mass.clamp(min=1e-300), logits.softmax(-1))


def performance(env: Environment, pi: Tensor) -> float:
    """Return J of a table of probabilities [S, A]."""
    v, _ = evaluate(env.finite, pi, 1.0, env.horizon)
    return float(env.finite.initial @ v[0])


def floor(path: Tensor, c: Tensor) -> float:
    """Return the fall of the loss in the second half of the descent over that in the first: 0 at a floor, 1 on a line."""
    first, middle, last = loss(c, path[[0, len(path) // 2, -1]]).tolist()
    return (middle - last) / (first - middle)


def gradients() -> list[dict]:
    """Return how far the loss's gradient is from −∇J where the data are of θ itself, and of a θ two steps before."""
    rows = []
    for label, fresh in (("data of the same policy", True), ("data of the policy two steps before", False)):
        worst = []
        for number in range(10):
            env, policy = small(number)
            grad = torch.from_numpy(autograd(env, policy)).view_as(policy.logits.weight)
            other = SoftmaxTable(env, policy.logits.weight.detach() + 2 * grad / grad.norm())
            listed = Listed.of(env, other, other if fresh else policy)
            g = listed.mean(listed.gradients("total_return"))[0]
            worst.append(relative(g, autograd(env, other)))
        rows.append(row("gradient", label, max(worst) if fresh else min(worst)))
    return rows


def along_the_way(shift: str, seed: int, steps: int = 60) -> list[dict]:
    """Return, step by step on the first world, the cosine of −∇L with ∇J, the loss, and J, each as a curve over the steps."""
    env = world(0, seed, SHIFTS[shift])
    policy = improved(env, table(env, seed))
    listed = Listed.of(env, policy)
    path = descend(c := counts(listed.traj, listed.probability), policy.logits.weight.detach(), steps)
    rows = []
    for k, logits in enumerate(path):
        descent = c - c.sum(-1, keepdim=True) * logits.softmax(-1)
        truth = torch.from_numpy(autograd(env, SoftmaxTable(env, logits)))
        cosine = float(descent.flatten() @ truth / descent.norm() / truth.norm())
        for quantity, value in (("cosine", cosine), ("loss", loss(c, logits)), ("J", performance(env, logits.softmax(-1)))):
            rows.append(row(f"{quantity} along the way", shift, value, x=k))
    return rows


@study(
    "su_surrogate",
    "The loss of the source on the data of one policy, while it is minimised: exact gradients, losses and J.",
    losses,
)
def surrogate(budget: Budget) -> pd.DataFrame:
    """Return gradients of the loss, its way down, and how often J falls: with all data, and with batches of twenty episodes."""
    rows = gradients()
    worlds = budget.n(200, least=50)
    for shift in SHIFTS:
        rows += along_the_way(shift, budget.seed)
        found = {"all data": [], f"{EPISODES} episodes": []}
        falls, step = {name: [] for name in found}, []
        for number in range(worlds):
            env = world(number, budget.seed, SHIFTS[shift])
            policy = improved(env, table(env, budget.seed, number))
            start = policy.logits.weight.detach()
            before = performance(env, start.softmax(-1))
            step.append(performance(env, (start + 0.1 * gradient_of(env, policy)).softmax(-1)) - before)
            listed, batch = Listed.of(env, policy), rollout(env, policy, EPISODES, Streams(budget.seed).sequence("pilot", number))
            for name, traj, weight in zip(
                found,
                (listed.traj, batch),
                (listed.probability, torch.ones(EPISODES, dtype=torch.float64) / EPISODES),
                strict=True,
            ):
                c = counts(traj, weight)
                path = descend(c, start, STEPS)
                end = minimum(c, start) if bool((c >= 0).all()) else path[-1].softmax(-1)
                found[name].append(performance(env, end) - before)
                falls[name].append(floor(path, c))
        rows.append(row("least change of J", f"a step along ∇J, {shift}", min(step)))
        for name in found:
            label = f"{name}, {shift}"
            change = np.array(found[name])
            worse = int((change < -1e-12).sum())
            ends = scipy.stats.binomtest(worse, worlds).proportion_ci(method="exact")
            rows.append(row("share that falls", label, worse / worlds, ends.low, ends.high, worlds))
            rows.append(row("least change of J", label, change.min()))
            rows.append(row("largest floor ratio", label, max(falls[name])))
            rows.append(row("least floor ratio", label, min(falls[name])))
    return pd.DataFrame(rows)
