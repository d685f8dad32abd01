"""Past rewards (SU-5, SU-7a) and baselines (SU-9a, SU-9b): the map of E[z_t r_u], and the two counter-examples in closed form."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import varlab
from varlab import envs, policies
from varlab.analysis import cross_moments
from varlab.envs.closed_form import constant_return, two_arms
from varlab.estimators.baselines import Baseline
from varlab.studies.claims.catalogue import Budget, study
from varlab.studies.claims.spinning_up_figures import curves_of_p, maps
from varlab.studies.claims.spinning_up_worlds import row, small, table

#: Steps of the sampled map, on CliffWalking, where a fall costs 100 at the step that takes it.
STEPS = 20
PROBABILITIES = np.round(np.arange(0.02, 0.99, 0.02), 2)


def _cells(panel: str, share: np.ndarray, low: np.ndarray, high: np.ndarray, n: int) -> list[dict]:
    steps = range(len(share))
    return [row("share", panel, share[t, u], low[t, u], high[t, u], n, t=t, u=u) for t in steps for u in steps]


@study(
    "su_map",
    "Shares of ⟨E[z_t r_u], ∇J⟩/‖∇J‖² by the time t of the step and u of the reward; they sum to 1. Dots: intervals that "
    "exclude 0; the line parts u < t from u ≥ t.",
    maps,
)
def cross_map(budget: Budget) -> pd.DataFrame:
    """Return the exact map of a random MDP, the sampled one of CliffWalking, and sums of squares on either side."""
    env, policy = small(0, budget.seed, horizon=10)
    found = cross_moments.exact(env, policy)
    rows = _cells("random MDP, exact", *found.share(found.gradient), 0)
    past, size = cross_moments.past(env.horizon), np.linalg.norm(found.value, axis=2)
    rows.append(row("past over largest", "random MDP, exact", size[past].max() / size.max()))
    rows.append(row("past over largest", "shifted by one", size[np.tril(np.ones_like(past))].max() / size.max()))
    live = size[~past] > 1e-6 * size.max()
    rows.append(row("share of entries that differ from 0", "u ≥ t", live.mean()))
    rows.append(row("share of entries that differ from 0", "u < t", (size[past] > 1e-6 * size.max()).mean()))
    cliff = envs.make("CliffWalking-v1", STEPS)
    policy, n = table(cliff, budget.seed), budget.n(20_000)
    found = cross_moments.sampled(cliff, policy, n, budget.seed)
    aim = cross_moments.exact(cliff, policy).gradient
    rows += _cells(f"CliffWalking, n = {n:,}", *found.share(aim), n)
    past, draws = cross_moments.past(STEPS), cross_moments.signs(budget.seed)
    whole, whole_ends = found.square(~past, draws)
    for label, where in (("u < t", past), ("shifted by one", np.tril(np.ones_like(past)))):
        part, ends = found.square(where, draws)
        rows.append(
            row("square over that of u ≥ t", label, part / whole, ends.low / whole_ends.high, ends.high / whole_ends.low, n)
        )
    return pd.DataFrame(rows)


@study(
    "su_counter", "Exact variances of one derivative over p = π(a = 1) on the two worlds that contradict the text.", curves_of_p
)
def counter(budget: Budget) -> pd.DataFrame:
    """Return variances per logit from the exact recursions over p, and the ratios that claims read."""
    rows, worlds = [], {"constant return": constant_return(), "two arms": two_arms()}
    for p in PROBABILITIES:
        for panel, env in worlds.items():
            logits = torch.zeros(env.num_features, 2, dtype=torch.float64)
            logits[:, 1] = float(np.log(p / (1 - p)))
            policy = policies.SoftmaxTable(env, logits)
            phi = ("total_return", "reward_to_go")
            if panel == "two arms":
                always = {"1 − p": 1 - p, "1": 1.0}
                phi = (
                    "reward_to_go",
                    "value_baseline",
                    *(Baseline(lambda s, t, b=b: b * torch.ones(s.shape), k) for k, b in always.items()),
                )
            found = varlab.exact(env, policy, phi)
            # each of the two logits of a state has the same variance
            for label, variance in zip(found.names, found.variance / 2, strict=True):
                rows.append(row("variance", label, variance, panel=panel, x=p))
    table = pd.DataFrame(rows)
    wide = table.pivot(index=["panel", "x"], columns="label", values="value")
    bandit, constant = wide.loc["two arms"], wide.loc["constant return"]
    ratio = bandit["value_baseline"] / bandit["reward_to_go"]
    more = [
        row("difference", "reward-to-go less total return, p = 1/2", (constant["reward_to_go"] - constant["total_return"])[0.5]),
        row("difference", "total return less reward-to-go, p = 1/2", (constant["total_return"] - constant["reward_to_go"])[0.5]),
        row("ratio", "V to no baseline, p = 0.9", ratio[0.9]),
        row("ratio", "b = 1 to no baseline, p = 0.9", (bandit["1"] / bandit["reward_to_go"])[0.9]),
        row("ratio", "V to no baseline, largest for p < 2/3", ratio[ratio.index < 2 / 3].max()),
        row("ratio", "V to no baseline, least for p > 2/3", ratio[ratio.index > 2 / 3].min()),
        row("variance", "1 − p, largest", bandit["1 − p"].max()),
    ]
    return pd.concat([table, pd.DataFrame(more)], ignore_index=True)
