"""Q against the sampled return (SU-11): term by term it has the smaller variance, as a whole sum it may have the larger one.

Given s_t and a_t, Q_t is the mean of G_t, so that Var(z_t Q_t) ≤ Var(z_t G_t) at every t and for every parameter: the law of
total variance. The sum over t adds covariances between times, and where one θ serves several times these may be less
favourable for Q. The random MDPs are those of :mod:`varlab.studies.textbook_order`; all numbers are exact sums over their
trajectories.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from varlab import estimators
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.estimators.base import Batch
from varlab.oracles.units import Listed
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import ratios
from varlab.studies.claims.spinning_up_worlds import Written, of_other, relative, row
from varlab.studies.textbook_order import HORIZON, Draw, FeatureSoftmax
from varlab.values.dynamic_programming import gradient

#: (law of the rewards, policy, standard deviation of a logit): θ shared by all states, and one row of θ for each.
CELLS = (("U(0, 1)", "table", 3.0), ("U(0, 1)", "features", 3.0), ("N(0, 1)", "features", 3.0))
MDPS = 300


def fork() -> tuple[Environment, FeatureSoftmax]:
    """Return the world where the gradient with Q varies and that with the return does not; π = 1/2, one θ for both steps.

    Action 0 ends the episode at once; action 1 leads to one of two states by chance, in which action 0 pays 2 or −2 and action 1
    nothing. Every trajectory that is paid has taken action 1 and then action 0, with scores 1/2 and −1/2, so that Σ z_t G_t = 0
    always. Both actions of the first step are worth Q_0 = 0, and Σ z_t Q_t = z_1 Q_1 = ∓1 with probability 1/4: variance 1/4.
    """
    end = (1.0, 0, 0.0, True)
    lists = [
        [[end], [(0.5, 1, 0.0, False), (0.5, 2, 0.0, False)]],
        [[(1.0, 0, 2.0, True)], [end]],
        [[(1.0, 0, -2.0, True)], [end]],
    ]
    plain = FiniteMDP.from_lists(lists, [1.0, 0.0, 0.0])
    seen = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(3, 2, 1)
    return environment(replace(plain, observations=seen), 2, "fork"), FeatureSoftmax(torch.zeros(1, dtype=torch.float64))


def at_step(name: str, t: int) -> Written:
    """Return the Φ of a name at step t alone, 0 at all others."""
    inner = estimators.parse(name)

    def phi(batch: Batch) -> torch.Tensor:
        return torch.where(batch.traj.time == t, inner.phi(batch), 0.0)

    return Written(phi, f"{name} at {t}", inner.needs)


def compared(number: int, cell: tuple[str, str, float], seed: int) -> dict[str, float]:
    """Return the variance of Q over that of G of one MDP, of the whole sum and of single terms, and errors of means."""
    env, policy = Draw.of(seed, number).make(*cell)
    listed = Listed.of(env, policy)
    names = ("q_value", "reward_to_go")
    chosen = [*(estimators.parse(n) for n in (*names, "advantage")), of_other("reward alone")]
    chosen += [at_step(n, t) for t in range(HORIZON) for n in names]
    g = listed.gradients(chosen)
    trace = listed.covariance(g).diagonal().numpy()
    terms = trace[4:].reshape(HORIZON, 2)
    kept = terms[:, 1] > 1e-12
    means, truth = listed.mean(g).numpy(), gradient(env.finite, listed.policy, 1.0, env.horizon)[0].numpy()
    return {
        "whole sum": trace[0] / trace[1],
        "a single term": float((terms[kept, 0] / terms[kept, 1]).max()),
        "q_value": relative(means[0], truth),
        "advantage": relative(means[2], truth),
        "reward alone": relative(means[3], truth),
    }


@study(
    "su_q",
    "Variance with Q over variance with the reward-to-go, exactly: share of random MDPs of three steps below each ratio. Above "
    "each panel: law of the rewards, policy, standard deviation of a logit.",
    ratios,
)
def q_against_return(budget: Budget) -> pd.DataFrame:
    """Return the ratios of every MDP, and the largest of each cell."""
    rows, mdps = [], budget.n(MDPS, least=50, multiple=10)
    for cell in CELLS:
        panel = f"{cell[0]}, {cell[1]}, {cell[2]:g}"
        found = [compared(number, cell, budget.seed) for number in range(mdps)]
        for label in ("a single term", "whole sum"):
            ordered = np.sort([f[label] for f in found])
            rows += [row("ratio", label, (i + 1) / mdps, panel=panel, x=r) for i, r in enumerate(ordered)]
            rows.append(row("largest ratio", label, ordered[-1], panel=panel))
        for label in ("q_value", "advantage", "reward alone"):
            rows.append(row("largest deviation of the mean", label, max(f[label] for f in found), panel=panel))
    table = pd.DataFrame(rows)
    most = table[table["quantity"].isin(("largest ratio", "largest deviation of the mean"))]
    worst = most.groupby(["quantity", "label"], sort=False)["value"].max()
    over = [row(f"{q} of all", label, v) for (q, label), v in worst.items()]
    listed = Listed.of(*fork())
    trace = listed.covariance(listed.gradients(("q_value", "reward_to_go"))).diagonal()
    over.append(row("variance on the fork", "Q less return", trace[0] - trace[1]))
    over += [row("largest ratio of all", "return over Q, a single term", wrong_way_round(budget.seed))]
    return pd.concat([table, pd.DataFrame(over)], ignore_index=True)


def wrong_way_round(seed: int, mdps: int = 30) -> float:
    """Return the largest Var(z_t G_t)/Var(z_t Q_t) of single terms: the same comparison the wrong way round."""
    worst = 0.0
    for number, cell in itertools.product(range(mdps), CELLS[:1]):
        env, policy = Draw.of(seed, number).make(*cell)
        listed = Listed.of(env, policy)
        g = listed.gradients([at_step(n, t) for t in range(HORIZON) for n in ("reward_to_go", "q_value")])
        trace = listed.covariance(g).diagonal().numpy().reshape(HORIZON, 2)
        worst = max(worst, float((trace[:, 0] / trace[:, 1]).max()))
    return worst
