"""Claims about horizons: exploring actions against exploring parameters, ZH-1 … ZH-3, on a drifting point."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import torch

from varlab import envs, policies
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.linear_drift import linear_drift
from varlab.policies.parameter_exploring import Controller, ParameterDistribution
from varlab.rng import Streams
from varlab.studies.claims.baselines import log_slope
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect
from varlab.studies.horizon_sweep import horizon_sweep

#: s' = s + a + ε with a ~ N(−1.5 s, 1), or a = θ s with θ ~ N(−1.5, 1); rewards at most 2.
GAIN, SIGMA, TAU, REWARD, GAMMA = -1.5, 1.0, 1.0, 2.0, 0.9
DRIFT = (10, 20, 50, 100)
PLAIN, BEST = "total_return", "optimal_baseline(of='constant', base='total_return')"
SCALED = "tr Cov over ((1 − γ^T)/(1 − γ))²"
KINDS = ("REINFORCE", "PGPE")


def discounted(horizon: int, gamma: float) -> float:
    """Return 1 + γ + … + γ^{H−1}."""
    return float(np.sum(gamma ** np.arange(horizon)))


def drift_bound(kind: str, horizon: int) -> float:
    """Return a bound of E g² in the mean parameter of the drifting point, from |R_γ| ≤ 2 Σ γ^t alone.

    REINFORCE: g = S R_γ with E S² = Σ_t E s_t²/σ², as scores of different steps are uncorrelated, so that E g² is at most
    (2 Σ γ^t)² Σ_t E s_t²/σ². PGPE has one score for the whole episode, (θ − η)/τ² with mean square 1/τ²: E g² ≤ (2 Σ γ^t)²/τ².

    Args:
        kind: of :data:`KINDS`.
        horizon: T.

    Returns:
        The bound.
    """
    most = (REWARD * discounted(horizon, GAMMA)) ** 2
    if kind == "PGPE":
        return most / TAU**2
    square, total = 1.0, 0.0
    for _ in range(horizon):
        total, square = total + square, (1 + GAIN) ** 2 * square + SIGMA**2 + 0.25
    return most * total / SIGMA**2


def drifting(kind: str, horizon: int) -> tuple[envs.Environment, torch.nn.Module]:
    """Return the drifting point with a Gaussian policy, or with a Gaussian over the gain; the mean parameter alone is θ."""
    env = linear_drift(horizon)
    policy = policies.Linear(env, log_std=math.log(SIGMA)).double()
    with torch.no_grad():
        policy.net.weight.fill_(GAIN)
        policy.net.bias.zero_()
    policy.net.bias.requires_grad_(False)
    if kind == "REINFORCE":
        policy.log_std.value.requires_grad_(False)
        return env, policy
    controller = Controller(policy, env)
    over = ParameterDistribution(controller.start, TAU)
    over.log_std.value.requires_grad_(False)
    return envs.parameter_exploring(env, controller, GAMMA), over


def _panels(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    shown = rows[rows["panel"] != ""]
    pretty = shown.assign(panel=shown["panel"].replace(SCALED, r"tr Cov over $((1-\gamma^T)/(1-\gamma))^2$"))
    figure = estimates.draw(pretty, style, xlabel="$T$", ylabel="", log="xy", columns=2)
    for ax, (_, part) in zip(figure.axes, shown.groupby("panel", sort=False), strict=True):
        ax.set_ylim(top=1.5 * part["exact"].max())  # room for the bounds
    return figure


@study(
    "drifting_horizons",
    "Variance of the mean parameter on the drifting point, γ = 0.9, against the horizon: measured (left), and over "
    "((1 − γ^T)/(1 − γ))² (right; dotted: bounds from the size of the rewards alone), without baseline and with b*.",
    draw=_panels,
)
def drifting_horizons(budget: Budget) -> pd.DataFrame:
    """Measure at every horizon with random numbers of its own."""
    rows, n = [], budget.n(20_000)
    seeds = Streams(budget.seed).sequence("theta").generate_state(2 * len(DRIFT)).tolist()
    for kind in KINDS:
        found: dict[str, list[Effect]] = {}
        table = horizon_sweep(
            functools.partial(drifting, kind), DRIFT, [PLAIN, BEST], n=n, gamma=GAMMA, seeds=[seeds.pop() for _ in DRIFT],
            n_reference=500, exact=False, dtype="float64",
        )  # fmt: skip
        for t in DRIFT:
            summary = table[table["run"] == str(t)].set_index("phi")
            scale, bound = discounted(t, GAMMA) ** 2, drift_bound(kind, t)
            for phi, name in ((PLAIN, kind), (BEST, f"{kind} with b*")):
                one = summary.loc[phi]
                e = Effect(one["variance"], one["variance_low"], one["variance_high"], n, log=True)
                plain = phi == PLAIN
                rows.append(row(name, e, panel="tr Cov", x=t, exact=bound if plain else np.nan))
                found.setdefault(name, []).append(scaled := times(e, 1 / scale))
                rows.append(row(name, scaled, panel=SCALED, x=t, exact=bound / scale if plain else np.nan))
                rows.append(row(name, times(e, 1 / bound), panel="", what="over bound", x=t))
            best = summary.loc[BEST]
            rows.append(row(kind, inverse(best, n), panel="", what="gain", x=t))
        rows += [row(name, log_slope(DRIFT, es), panel="", what="slope") for name, es in found.items()]
        bounds = [Effect.exact(drift_bound(kind, t) / discounted(t, GAMMA) ** 2) for t in DRIFT]
        rows.append(row(kind, log_slope(DRIFT, bounds), panel="", what="slope of bound"))
    table = pd.DataFrame(rows)
    more = []
    for label, above, below in (
        ("b* in both", "PGPE with b*", "REINFORCE with b*"), ("b* in REINFORCE", "PGPE", "REINFORCE with b*"),
    ):  # fmt: skip
        for t in DRIFT:
            one, other = (cell(table, panel="tr Cov", label=name, x=t) for name in (above, below))
            more.append(row(label, quotient(one, other), panel="", what="PGPE over REINFORCE", x=t))
    ends = [cell(table, panel="tr Cov", label="PGPE", x=t) for t in (DRIFT[0], DRIFT[2], DRIFT[3])]
    more.append(row("T = 10 to 100", quotient(ends[2], ends[0]), panel="", what="growth"))
    more.append(row("T = 50 to 100", quotient(ends[2], ends[1]), panel="", what="growth"))
    ends = [cell(table, panel="tr Cov", label="REINFORCE", x=t) for t in (DRIFT[2], DRIFT[3])]
    more.append(row("REINFORCE", quotient(ends[1], ends[0]), panel="", what="growth"))
    return pd.concat([table, pd.DataFrame(more)], ignore_index=True)


def times(e: Effect, factor: float) -> Effect:
    """Return an estimate times a positive number."""
    return Effect(e.value * factor, e.low * factor, e.high * factor, e.n, e.log)


def inverse(one: pd.Series, n: int) -> Effect:
    """Return the inverse of a row's variance ratio."""
    return Effect(1 / one["variance_ratio"], 1 / one["variance_ratio_high"], 1 / one["variance_ratio_low"], n, log=True)


def quotient(above: Effect, below: Effect) -> Effect:
    """Return the ratio of two independent positive estimates: half widths of logarithms add in squares."""
    value = above.value / below.value
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    return Effect(value, value * math.exp(-down), value * math.exp(up), min(above.n, below.n), log=True)


ZHAO = "Zhao, Hachiya, Niu, Sugiyama, 2011, Analysis and Improvement of Policy Gradient Estimation"
WHERE = "drifting point, γ = 0.9, T = 10 … 100, mean parameter"
OVER = "over ((1 − γ^T)/(1 − γ))²"
for _id, _kind, _other, _target, _words in (
    ("a", "REINFORCE", "PGPE", 1.0, "The bound of REINFORCE's variance grows in proportion to T"),
    ("b", "PGPE", "REINFORCE", 0.0, "The bound of PGPE's variance does not grow with T"),
):
    claim(
        id=f"ZH-1{_id}", sentence=f"{_words}, but for the size of the return.", source=ZHAO, tag="M", study="drifting_horizons",
        statistic=f"slope of log bound {OVER} over log T, within 0.1 of {_target:g}", direction="within", bound=_target,
        margin=0.1, effect=lambda rows, kind=_kind: cell(rows, what="slope of bound", label=kind), condition=WHERE,
        control=Control(f"so for {_other}", lambda rows, kind=_other: cell(rows, what="slope of bound", label=kind)),
    )  # fmt: skip
for _id, _kind, _other in (("c", "REINFORCE", "PGPE"), ("d", "PGPE", "REINFORCE")):
    claim(
        id=f"ZH-1{_id}", sentence=f"The bound of {_kind} holds.", source=ZHAO, tag="M", study="drifting_horizons",
        statistic="measured variance over bound, T = 100", direction="below", bound=1.0, condition=WHERE,
        effect=lambda rows, kind=_kind: cell(rows, what="over bound", label=kind, x=DRIFT[-1]),
        control=Control(
            "REINFORCE keeps that of PGPE",
            lambda rows: times(
                cell(rows, panel="tr Cov", label="REINFORCE", x=DRIFT[-1]), 1 / drift_bound("PGPE", DRIFT[-1])
            ),
        ),
    )  # fmt: skip
for _id, _kind, _other, _target, _words in (
    ("e", "REINFORCE", "PGPE", 1.0, "REINFORCE's variance grows in proportion to T"),
    ("f", "PGPE", "REINFORCE", 0.0, "PGPE's variance does not grow with T"),
):
    claim(
        id=f"ZH-1{_id}", sentence=f"{_words}, but for the size of the return.", source=ZHAO, tag="M", study="drifting_horizons",
        statistic=f"slope of log variance {OVER} over log T, within 0.15 of {_target:g}", direction="within", bound=_target,
        margin=0.15, effect=lambda rows, kind=_kind: cell(rows, what="slope", label=kind), condition=WHERE,
        control=Control(f"so does {_other}'s", lambda rows, kind=_other: cell(rows, what="slope", label=kind)),
    )  # fmt: skip
claim(
    id="ZH-1g", sentence="PGPE's variance does not grow with T.", source=ZHAO, tag="M", study="drifting_horizons",
    statistic="variance at T = 100 over that at T = 10", direction="below", bound=1.2,
    effect=lambda rows: cell(rows, what="growth", label="T = 10 to 100"),
    condition="in general: as measured, while γ^T still shrinks and the return grows",
    control=Control("REINFORCE's from T = 50 to 100", lambda rows: cell(rows, what="growth", label="REINFORCE")),
)  # fmt: skip
claim(
    id="ZH-1h", sentence="PGPE's variance does not grow with T.", source=ZHAO, tag="M", study="drifting_horizons",
    statistic="variance at T = 100 over that at T = 50", direction="below", bound=1.2,
    effect=lambda rows: cell(rows, what="growth", label="T = 50 to 100"), condition="horizons T with γ^T < 0.006",
    control=Control("REINFORCE's", lambda rows: cell(rows, what="growth", label="REINFORCE")),
)  # fmt: skip
for _id, _t in (("a", 50), ("b", 10)):
    claim(
        id=f"ZH-2{_id}", sentence="b* lowers REINFORCE's variance by two orders of magnitude.", source=ZHAO, tag="M",
        study="drifting_horizons", statistic="variance without baseline over that with b*", direction="above", bound=100.0,
        effect=lambda rows, t=_t: cell(rows, what="gain", label="REINFORCE", x=t), condition=f"drifting point, T = {_t}",
        needs=("optimal_baseline",),
        control=Control("so it does PGPE's", lambda rows, t=_t: cell(rows, what="gain", label="PGPE", x=t)),
    )  # fmt: skip
claim(
    id="ZH-2c", sentence="b* lowers PGPE's variance by one order of magnitude.", source=ZHAO, tag="M", study="drifting_horizons",
    statistic="variance without baseline over that with b*, T = 50", direction="above", bound=10.0,
    effect=lambda rows: cell(rows, what="gain", label="PGPE", x=50), condition="drifting point, T = 50",
    control=Control(
        "T = 50 raises REINFORCE's by as much from T = 10",
        lambda rows: quotient(*(cell(rows, panel=SCALED, label="REINFORCE", x=t) for t in (50, 10))),
    ),
)  # fmt: skip
for _id, _t in zip("abc", DRIFT[:3], strict=True):
    claim(
        id=f"ZH-3{_id}", sentence="PGPE with b* varies less than REINFORCE with b*.", source=ZHAO, tag="A",
        study="drifting_horizons", statistic="ratio of variances", direction="below", bound=1.0,
        effect=lambda rows, t=_t: cell(rows, what="PGPE over REINFORCE", label="b* in both", x=t),
        condition=f"drifting point, T = {_t}", needs=("optimal_baseline",),
        control=Control(
            "so does PGPE without it", lambda rows, t=_t: cell(rows, what="PGPE over REINFORCE", label="b* in REINFORCE", x=t)
        ),
    )  # fmt: skip
