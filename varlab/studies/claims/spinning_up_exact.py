"""Identities of Spinning Up, exactly: unbiasedness, scores of trajectories, the lemma, baselines, Q and A, and how they may fail.

Means are sums over every trajectory of small random MDPs; ∇J is the derivative of Bellman's recursion, which shares nothing with
the estimators. Every deviation is relative to ‖∇J‖, and the largest of several worlds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from varlab import envs, estimators, policies
from varlab.analysis.expected_score import expected_score
from varlab.estimators.baselines import Baseline, ConstantBaseline
from varlab.oracles.units import Listed
from varlab.rng import Streams, numpy_generator
from varlab.rollout import rollout
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import deviations
from varlab.studies.claims.spinning_up_worlds import Exploring, autograd, of_other, relative, row, small, table
from varlab.values.dynamic_programming import ExactValues, policy_table

WORLDS = 10
#: Φ that share a mean, by their names in Part 3; the baselines are b = 1/2 and V.
SAME_MEAN = ("total_return", "reward_to_go", "constant_baseline", "value_baseline", "q_value", "advantage")
#: Baselines b(s) of SU-8.
BASELINES = ("constant 10", "V", "random b(s)", "100 V")


def forms() -> list[estimators.Estimator]:
    """Return the Φ of :data:`SAME_MEAN`, the constant baseline with b = 1/2."""
    return [ConstantBaseline(fitted=0.5) if p == "constant_baseline" else estimators.parse(p) for p in SAME_MEAN]


def baselines(env: envs.Environment, policy: policies.SoftmaxTable, number: int, seed: int) -> list[Baseline]:
    """Return the baselines of :data:`BASELINES` for a world."""
    v = ExactValues.of(env.finite, policy, 1.0, env.horizon).v
    drawn = numpy_generator(Streams(seed).sequence("critic", number)).standard_normal(len(v[0]))
    b = torch.from_numpy(5 * drawn)
    functions = (lambda s, t: 10 * torch.ones(s.shape), lambda s, t: v[t, s], lambda s, t: b[s], lambda s, t: 100 * v[t, s])
    return [Baseline(f, name) for f, name in zip(functions, BASELINES, strict=True)]


def score_of_paths(listed: Listed, drop_last: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ_t z_t of every trajectory as estimators add it up, and ∇ log P(τ | θ) with ρ_0 and P by autograd, [N, P] each.

    Args:
        listed: the trajectories.
        drop_last: whether the action of the last step is left out of the sum.
    """
    traj, mdp = listed.traj, listed.env.finite
    one = of_other("without the last step" if drop_last else "one")
    ours = listed.gradients(one)[:, 0].numpy()
    theta = list(policies.parameters(listed.policy).values())
    pi = policy_table(listed.policy, mdp)
    s, a = traj.state, traj.action
    following = s.roll(-1)
    following[traj.last_row] = traj.last_state
    ended = torch.zeros_like(s, dtype=torch.bool)
    ended[traj.last_row] = traj.terminated
    same = (mdp.next_state[s, a] == following[:, None]) & (mdp.reward[s, a] == traj.reward[:, None])
    same &= mdp.terminated[s, a] == ended[:, None]
    world = (mdp.probability[s, a] * same).sum(1)
    log_p = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, pi[s, a].log() + world.log())
    log_p = log_p + mdp.initial[s[traj.offsets[:-1]]].log()
    eye = torch.eye(len(log_p), dtype=torch.float64)
    grads = torch.autograd.grad(log_p, theta, eye, is_grads_batched=True)
    return ours, torch.cat([g.flatten(1) for g in grads], 1).numpy()


def _of_world(number: int, seed: int) -> Iterator[dict]:
    env, policy = small(number, seed)
    truth, listed = autograd(env, policy), Listed.of(env, policy)
    wrong = ("mean log-probability", "from the next step", "sees the action", "reward alone", "past")
    chosen = [*forms(), *baselines(env, policy, number, seed), *(of_other(w) for w in wrong)]
    g = listed.gradients(chosen)
    means = dict(zip([e.label for e in chosen], listed.mean(g).numpy(), strict=True))
    for label, mean in means.items():
        yield row("mean", label, relative(truth + mean if label == "past" else mean, truth), world=number)
    yield row("past", "total_return − reward_to_go", relative(means["total_return"], means["reward_to_go"]), world=number)
    yield row(
        "past", "total_return − from the next step", relative(means["total_return"], means["from the next step"]), world=number
    )
    variances = listed.covariance(g).diagonal()[: len(SAME_MEAN)]
    yield row("spread", "largest over smallest variance", float(variances.max() / variances.min()), world=number)
    again = listed.gradients([estimators.parse("gae(lam=1.0)"), estimators.parse("value_baseline")])
    pair = listed.covariance(again).diagonal()
    yield row("spread", "gae(lam=1.0) and value_baseline", float(pair.max() / pair.min()), world=number)
    for label, drop in (("sum of action scores", False), ("without the last step", True)):
        ours, theirs = score_of_paths(listed, drop)
        yield row("score", label, np.abs(ours - theirs).max() / np.abs(theirs).max(), world=number)


@study(
    "su_identities",
    "Relative deviation of what should be equal, exactly; what lies right of the line is wrong on purpose.",
    deviations,
)
def identities(budget: Budget) -> pd.DataFrame:
    """Return the largest deviation of each identity over random MDPs, and expected scores of policies of several kinds."""
    each = pd.DataFrame(r for number in range(WORLDS) for r in _of_world(number, budget.seed))
    least = each["quantity"].eq("spread") & each["label"].str.startswith("largest")
    of = each[~least].groupby(["quantity", "label"], sort=False)["value"].max()
    rows = [row(*key, value) for key, value in of.items()]
    rows.append(row("spread", "largest over smallest variance", each[least]["value"].min()))
    for label, members in (("largest of all forms", SAME_MEAN), ("largest of all b(s)", BASELINES)):
        rows.append(row("mean", label, max(of["mean", member] for member in members)))
    return pd.DataFrame([*rows, *expected_scores(budget.seed)])


def expected_scores(seed: int) -> list[dict]:
    """Return ‖E_a z‖/√E‖z‖², the largest of the states of 100 episodes, several policies, and ε-greedy actions."""
    cartpole, pendulum, lake = envs.make("CartPole-v1", 50), envs.make("Pendulum-v1", 20), envs.make("FrozenLake-v1", 50)
    kinds = {
        "softmax table": (lake, table(lake, seed)),
        "logistic, four parameters": (cartpole, policies.Logistic(cartpole, (0.1, -0.2, 0.3, 1.0))),
        "linear": (cartpole, policies.make("linear", cartpole, theta_seed=seed)),
        "perceptron": (cartpole, policies.make("mlp", cartpole, theta_seed=seed, hidden=(32,))),
        "Gaussian perceptron": (pendulum, policies.make("mlp", pendulum, theta_seed=seed, hidden=(32,))),
    }
    rows = []
    for label, (env, policy) in kinds.items():
        traj = rollout(env, policy, 100, Streams(seed).sequence("pilot"))
        rows.append(row("expected score", label, expected_score(policy, traj).worst))
        if label == "perceptron":
            wrong = expected_score(policy, traj, acting=Exploring(policy, 0.2)).worst
            rows.append(row("expected score", "acts at random with ε = 0.2", wrong))
    return [*rows, row("expected score", "largest of all policies", max(r["value"] for r in rows if "ε" not in r["label"]))]
