"""What the code does beyond the formulas: γ^t left out (SU-13), a bootstrap at a cut (SU-14), normalisation (SU-15, SU-17)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

import varlab
from varlab import envs, storage, values
from varlab.analysis.intervals import student
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.estimators.base import Batch
from varlab.estimators.baselines import Baseline
from varlab.oracles.units import Listed
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import critic_figure, discount_figure, unit_figure
from varlab.studies.claims.spinning_up_worlds import autograd, early_or_late, of_other, relative, row, sine, table
from varlab.types import Trajectories, Values
from varlab.values import CriticSettings, FunctionValues
from varlab.values.dynamic_programming import ExactValues, occupancy, policy_table

#: The code's settings: γ, λ, and T.
GAMMA, LAMBDA, HORIZON = 0.99, 0.97, 1000
GAMMAS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
#: Where episodes are cut.
CUT = 5
#: Episodes that a critic is fitted on, each with several seeds.
EPISODES, CRITICS, PASSES = (2, 5, 20, 100, 500), 4, 20
UNITS = (2, 4, 8, 16, 32, 64)


def corridor(length: int = 20, slip: float = 0.2) -> envs.Environment:
    """Return a corridor: each step costs 1 until the right end; a move goes the other way with probability ``slip``; H = 300.

    Episodes begin anywhere. The left end is a wall. Values differ much between states, and hardly with time.
    """
    lists = []
    for s in range(length):
        left, right = (max(s - 1, 0), -1.0, False), (min(s + 1, length - 1), -1.0, s == length - 1)
        lists.append([[(1 - slip, *one), (slip, *other)] for one, other in ((left, right), (right, left))])
    return environment(FiniteMDP.from_lists(lists, [1 / length] * length), 300, "corridor")


def towards_the_end(env: envs.Environment, seed: int) -> SoftmaxTable:
    """Return a softmax table that prefers right, log-odds N(1, 1/4)."""
    logits = 0.5 * table(env, seed).logits.weight.detach()
    return SoftmaxTable(env, logits + torch.tensor([0.0, 1.0], dtype=logits.dtype))


def early_part(env: envs.Environment, policy: SoftmaxTable) -> np.ndarray:
    """Return E Σ_{t<L} z_t Q_t [P]: what a gradient cut at L should be, with Q_t of the whole horizon."""
    return varlab.exact(env, policy, "q_value", cut=CUT).mean[0]


def _critic(env: envs.Environment, policy: SoftmaxTable, episodes: int, seed: int) -> values.Critic:
    streams, settings = Streams(seed), CriticSettings(n=episodes, epochs=PASSES, minibatch=256)
    traj = rollout(env, policy, settings.n, streams.sequence("critic"))
    target = Batch(traj, Values(), 1.0).reward_to_go
    return values.fit(env, traj, target, settings, streams.sequence("fit", episodes), storage.digest)


def explained(critic: values.Critic, traj: Trajectories) -> float:
    """Return 1 − Var(G − V_φ)/Var(G) over the steps of trajectories that the critic was not fitted on."""
    target = Batch(traj, Values(), 1.0).reward_to_go
    left = target - critic(traj, frozenset({"v"})).v
    return 1 - float(left.var(correction=0) / target.var(correction=0))


@study(
    "su_discount",
    "Bias of the update that discounts advantages and leaves γ^t out, exactly, over γ, on a corridor and on a random MDP whose "
    "states mix at once; T = 1000, λ = 0.97.",
    discount_figure,
)
def discount(budget: Budget) -> pd.DataFrame:
    """Return biases against both objectives over γ, in size and in direction, with and without γ^t."""
    generator = np.random.default_rng(Streams(budget.seed).sequence("rollout"))
    mixing = environment(random_mdp(generator, states=5, actions=3, ending=0.0), HORIZON, "random MDP")
    rows, long = [], replace(corridor(), horizon=HORIZON)
    for world, env, policy in (
        ("corridor", long, towards_the_end(long, budget.seed)), ("random MDP", mixing, table(mixing, budget.seed))
    ):  # fmt: skip
        j_1 = autograd(env, policy)
        for gamma in GAMMAS:
            j_gamma = autograd(env, policy, gamma)
            for label, weighting in (("γ^t left out", False), ("with γ^t", True)):
                found = varlab.exact(env, policy, f"gae(lam={LAMBDA})", gamma=gamma, discount_weighting=weighting)
                for objective, truth in (("J_1", j_1), ("J_γ", j_gamma)):
                    same = {"panel": objective, "x": gamma, "world": world}
                    rows.append(row("bias in size", label, relative(found.mean[0], truth), **same))
                    rows.append(row("bias in direction", label, sine(found.mean[0], truth), **same))
    return pd.DataFrame(rows)


@study(
    "su_critics",
    "Critics V_φ fitted by mean-squared error to 2 to 500 episodes of a corridor: exact variance with G_t − V_φ, and exact bias "
    f"of the gradient of the first {CUT} steps with V_φ at the cut.",
    critic_figure,
)
def critics(budget: Budget) -> pd.DataFrame:
    """Return, for every critic, held-out explained variance, agreement with V^π, variance and biases; and slopes over them."""
    env = corridor()
    policy = towards_the_end(env, budget.seed)
    exact = ExactValues.of(env.finite, policy, 1.0, env.horizon)
    visits = occupancy(env.finite, policy_table(policy, env.finite).detach(), env.horizon)
    held_out = rollout(env, policy, 5000, Streams(budget.seed).sequence("pilot"))
    truth, early = autograd(env, policy), early_part(env, policy)
    plain = varlab.exact(env, policy, "reward_to_go").variance[0]
    best = varlab.exact(env, policy, "value_baseline").variance[0] / plain
    rows, weight = [], visits / visits.sum()
    spread = float((weight * exact.v[:-1].square()).sum() - (weight * exact.v[:-1]).sum() ** 2)

    def at_cut(source: object, rule: str) -> float:
        found = varlab.exact(env, policy, "reward_to_go", cut=CUT, at_cut=rule, values=source)
        return relative(found.mean[0], early)

    for episodes in EPISODES:
        for number in range(CRITICS):
            critic = _critic(env, policy, episodes, budget.seed + 1000 * number)
            v = critic.table(env.finite, env.horizon)[0][:-1]
            error = float((weight * (v - exact.v[:-1]).square()).sum())
            found = varlab.exact(env, policy, "value_baseline", values=critic)
            more = {"episodes": episodes, "number": number, "x": explained(critic, held_out), "error": (error / spread) ** 0.5}
            rows.append(row("variance", "value_baseline", found.variance[0] / plain, **more))
            added = varlab.exact(env, policy, Baseline(lambda s, t, v=v[0]: -v[s], "V_φ added")).variance[0] / plain
            rows.append(row("variance with V_φ added", "V_φ added", added, **more))
            rows.append(row("agreement with V", "value_baseline", 1 - error / spread, **more))
            residual = varlab.exact(env, policy, "td_residual", values=critic).mean[0]
            rows.append(row("bias of td_residual", "td_residual", relative(residual, truth), **more))
            rows.append(row("bias", "value_baseline", relative(found.mean[0], truth), **more))
            rows.append(row("bias at the cut", "bootstrap, V_φ", at_cut(critic, "bootstrap"), **more))
    for label, source, rule in (
        ("bootstrap, V^π", "exact", "bootstrap"), ("terminal", "exact", "terminal"), ("wrong_state", "exact", "wrong_state")
    ):  # fmt: skip
        rows.append(row("bias at the cut", label, at_cut(source, rule)))
    rows.append(row("variance", "V^π", best))
    return pd.DataFrame([*rows, *_summaries(pd.DataFrame(rows), env, policy, plain)])


def _summaries(found: pd.DataFrame, env: envs.Environment, policy: SoftmaxTable, plain: float) -> list[dict]:
    """Return slopes over critics and extremes."""
    of = found[found["episodes"].notna()].pivot(index=["episodes", "number"], columns="quantity", values="value")
    ev = found[found["quantity"] == "variance"].dropna(subset="episodes").set_index(["episodes", "number"])
    cuts = found[found["quantity"] == "bias at the cut"].set_index("label")["value"]
    terminal, last = cuts["terminal"], of.loc[EPISODES[-1]]
    constant = FunctionValues(v=lambda s, t: torch.full(s.shape, 1.0), source="one everywhere")
    worse = varlab.exact(env, policy, "value_baseline", values=constant).variance[0] / plain
    return [
        slope("slope of log variance", "explained variance", ev["x"], np.log(ev["value"])),
        slope("slope of log variance", "V_φ added", ev["x"], np.log(of["variance with V_φ added"])),
        slope("slope of log bias at the cut", "bootstrap", np.log(ev["error"]), np.log(of["bias at the cut"])),
        slope("slope of log bias at the cut", "terminal", np.log(ev["error"]), np.full(len(ev), np.log(terminal))),
        row("least agreement", f"of {EPISODES[-1]} episodes", last["agreement with V"].min()),
        row("least agreement", f"of {EPISODES[0]} episodes", of.loc[EPISODES[0]]["agreement with V"].min()),
        row("largest bias", "value_baseline", of["bias"].max()),
        row("largest bias", "td_residual", of["bias of td_residual"].max()),
        row("largest variance", f"of {EPISODES[-1]} episodes", last["variance"].max()),
        row("largest variance", "b = 1 everywhere", worse),
        row("largest bias at the cut", f"bootstrap, of {EPISODES[-1]} episodes", last["bias at the cut"].max()),
    ]


def slope(quantity: str, label: str, x: pd.Series, y: pd.Series | np.ndarray) -> dict:
    """Return the slope of a least-squares line with its Student interval; the points are independent critics."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centred = x - x.mean()
    b = centred @ y / (centred @ centred)
    left = y - y.mean() - b * centred
    half = student(0.95, len(x) - 2) * np.sqrt(left @ left / (len(x) - 2) / (centred @ centred))
    return row(quantity, label, b, b - half, b + half, len(x))


@study(
    "su_units",
    "Sine of the angle between E ĝ and ∇J over the trajectories N of a batch, exactly, by listing every batch of a world with "
    "three trajectories. normalised, step mean: over the batch; in pairs: two trajectories at a time; own mean: over the "
    "steps of each trajectory.",
    unit_figure,
)
def units(budget: Budget) -> pd.DataFrame:
    """Return sines over N, with the fixed divisors that controls use, and log-log slopes of the last three N."""
    env = early_or_late()
    policy = SoftmaxTable(env, torch.tensor([[0.2, -0.3], [0.6, -0.1]], dtype=torch.float64))
    listed, truth = Listed.of(env, policy), autograd(env, policy)
    rows, normalised = [], f"normalised_advantage(lam={LAMBDA})"
    phi = (normalised, "step_mean", f"gae(lam={LAMBDA})", "reward_to_go")
    for size in UNITS:
        each = listed.units(size)
        means = each.mean(each.gradients([*phi, of_other("mean over its own steps")]))
        labels = (*phi, "mean over its own steps")
        rows += [row("sine", label, sine(mean, truth), x=size) for label, mean in zip(labels, means, strict=True)]
        rows += [
            row("length over that of ∇J", label, np.linalg.norm(m) / np.linalg.norm(truth), x=size)
            for label, m in zip(labels, means, strict=True)
        ]
    first = next(r["value"] for r in rows if r["label"] == normalised)
    rows += [row("sine", "normalised in pairs", first, x=size) for size in UNITS]
    table_of = pd.DataFrame(rows)
    for label in (normalised, "normalised in pairs", "step_mean", "mean over its own steps"):
        part = table_of[(table_of["quantity"] == "sine") & (table_of["label"] == label)].tail(3)
        rate = np.polyfit(np.log(part["x"].astype(float)), np.log(part["value"]), 1)[0]
        rows.append(row("rate", label, rate))
    return pd.DataFrame(rows)
