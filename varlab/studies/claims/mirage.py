"""Action-dependent baselines on linear systems, MI-1, MI-2, MI-6 and MI-7: exact variance components of each step's term."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.linalg
import torch

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.lqg import LQG, LinearQuadratic, point_mass, random_system, with_clock
from varlab.oracles.components import Components
from varlab.oracles.gaussian_components import gaussian_components
from varlab.oracles.time_unaware import time_unaware
from varlab.policies.networks import Linear
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect
from varlab.values.linear_quadratic import QuadraticValues

TUCKER = "Tucker, Bhupatiraju, Gu, Turner, Ghahramani, Levine, 2018, The Mirage of Action-Dependent Baselines"
HORIZON, GAMMA = 100, 0.99
#: σ_a on the point mass, Σ_a = 1e-4 I, and on random systems.
SIGMA, SPREAD = 1e-2, 0.3
SYSTEMS = (1, 2, 3)
HORIZONS, DISCOUNTS = (2, 5, 10, 20, 50, 100), (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
#: Factor on V that makes it wrong.
WRONG = 10.0
#: What dominates is more than half; what is negligible could not save more than what the source's logs call nothing:
#: (Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V) in [−0.09, 0.06] for returns. A gain is more than from 0.050 to 0.040, the upper ends on
#: Humanoid, where the source's logs show none.
MOST, NEGLIGIBLE, NOTHING, GAIN = 0.5, 0.1, 0.09, 0.8
NO, V = r"$\Sigma_a$, no baseline", r"$\Sigma_a$, exact V"
TAU, GAE, LAMBDAS = r"$\Sigma_\tau$, returns", r"$\Sigma_\tau$, GAE(0)", (0.0, 0.99)
#: Steps that the figure shows; after the last action nothing is left of Σ_τ.
STEPS = range(0, HORIZON - 1, 7)


def open_loop(env: LQG, clocked: LQG, mean: torch.Tensor, sigma: float = SIGMA) -> Linear:
    """Return a_t ~ N(μ_t, σ² I), whatever s_t is; scores are those of μ_t.

    Args:
        env: a linear system.
        clocked: the same with a clock, on which the policy acts.
        mean: [H, D] μ_t.
        sigma: σ.

    Returns:
        The policy: W = [0, μᵀ] is frozen, and the score of its free bias at step t is the score of μ_t.
    """
    policy = Linear(clocked).double()
    with torch.no_grad():
        policy.log_std.value.fill_(math.log(sigma))
        policy.net.weight.zero_()
        policy.net.weight[:, env.system.state_dim :] = mean.T
        policy.net.bias.zero_()
    for name, p in policy.named_parameters():
        p.requires_grad_(name == "net.bias")
    return policy


def best_means(system: LinearQuadratic, horizon: int, gamma: float) -> torch.Tensor:
    """Return the μ_t [H, D] of largest J_γ: Riccati's recursion backwards, then its path without noise forwards."""
    value, gains, g = torch.zeros_like(system.state_cost), [], gamma
    for _ in range(horizon):
        push = g * system.b.T @ value
        gains.append(-torch.linalg.solve(system.action_cost + push @ system.b, push @ system.a))
        loop = system.a + system.b @ gains[-1]
        value = system.state_cost + gains[-1].T @ system.action_cost @ gains[-1] + g * loop.T @ value @ loop
    state, means = system.initial_mean, []
    for gain in reversed(gains):
        means.append(gain @ state)
        state = system.a @ state + system.b @ means[-1]
    return torch.stack(means)


def feedback(env: LQG, gamma: float, share: float, sigma: float) -> Linear:
    """Return a ~ N(share · K* s, σ² I), K* optimal at an infinite horizon; K and the bias are θ."""
    a, b, q, r = (getattr(env.system, name).numpy() for name in ("a", "b", "state_cost", "action_cost"))
    a, b = math.sqrt(gamma) * a, math.sqrt(gamma) * b
    p = scipy.linalg.solve_discrete_are(a, b, q, r)
    policy = Linear(env).double()
    with torch.no_grad():
        policy.log_std.value.fill_(math.log(sigma))
        policy.net.weight.copy_(torch.from_numpy(-share * np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)))
        policy.net.bias.zero_()
    policy.log_std.value.requires_grad_(False)
    return policy


def parts(env: LQG, policy: Linear, phi: str, gamma: float, values: QuadraticValues | None = None) -> Components:
    """Return the exact components of z_t Φ_t at every step, not weighted by γ^t, as in the source."""
    return gaussian_components(env, policy, phi, gamma=gamma, discount_weighting=False, values=values)


def saved(v: Components, q: Components) -> float:
    """Return (Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V), all summed over steps."""
    return float((v.action - q.action).sum() / (v.trajectory + v.action).sum())


def _steps(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    shown = rows[(rows["panel"] != "") & (rows["value"] > 0)]
    return estimates.draw(shown, style, xlabel="step t", ylabel="component, summed over entries", log="y")


@study(
    "mirage_point_mass",
    "The point mass of the source, 2-D, 100 steps, γ = 0.99, an open-loop Gaussian mean at each step (σ_a = 0.01): exact "
    "components of the variance of each step's term without a baseline, with the exact V, and of Σ_τ for returns and GAE; at "
    "μ_t = 0 and at the best μ_t. With the exact Q nothing is left of Σ_a, and after the last action nothing of Σ_τ.",
    draw=_steps,
)
def mirage_point_mass(budget: Budget) -> pd.DataFrame:
    """Take the components at every step; nothing is drawn.

    Args:
        budget: not used.

    Returns:
        One row per policy, component and step; with an empty panel, the ratios that claims read.
    """
    rows = []
    env = point_mass(HORIZON)
    clocked, best = with_clock(env), best_means(env.system, HORIZON, GAMMA)
    for name, mean in (("first policy", 0 * best), ("trained policy", best)):
        policy = open_loop(env, clocked, mean)
        none, v, q = (
            parts(clocked, policy, phi, GAMMA) for phi in ("reward_to_go", "value_baseline", "state_action_control_variate")
        )
        gae = {lam: parts(clocked, policy, f"gae(lam={lam})", GAMMA) for lam in LAMBDAS}
        known = QuadraticValues.of(clocked, policy, GAMMA)
        wrong = replace(known, **{k: WRONG * getattr(known, k) for k in ("v_hessian", "v_slope", "v_constant")})
        shown = {NO: none.action, TAU: none.trajectory, GAE: gae[0.0].trajectory, V: v.action}
        for label, y in shown.items():
            rows += [row(label, float(y[t]), panel=name, x=t, what="") for t in STEPS]
        told = {
            "share of Σ_a": none.action.sum() / none.step.sum(), "share with V": v.action.sum() / v.step.sum(),
            "Σ_a over Σ_τ": v.action.sum() / v.trajectory.sum(), "without V": none.action.sum() / none.trajectory.sum(),
            "saved by Q": saved(v, q), "saved by Q from nothing": saved(none, q),
        }  # fmt: skip
        for lam, c in gae.items():
            other = parts(clocked, policy, f"gae(lam={lam})", GAMMA, wrong)
            told[f"GAE({lam:g})"] = c.trajectory[0] / none.trajectory[0]
            told[f"GAE({lam:g}), wrong V"] = other.trajectory[0] / none.trajectory[0]
        rows += [row(name, float(value), panel="", x=0, what=what) for what, value in told.items()]
    return pd.DataFrame(rows)


@study(
    "mirage_horizons",
    "Three random linear systems (four state and two action dimensions, σ_a = 0.3, γ = 0.99) over the horizon H, at K = 0 and at "
    "the optimal K: with the exact V, Σ_a over Σ_τ, and what the exact Q would save beyond it. Largest of the systems; dashed, "
    "0.09, the most that counts as nothing saved.",
    draw=lambda rows, style=None: estimates.draw(
        rows[rows["panel"] != ""], style, xlabel="horizon H", ylabel="ratio", log="xy", line=NOTHING
    ),
)
def mirage_horizons(budget: Budget) -> pd.DataFrame:
    """Take the components on systems of several lengths; nothing is drawn but the systems.

    Args:
        budget: not used.

    Returns:
        One row per panel, policy and horizon.
    """
    rows = []
    for horizon in HORIZONS:
        for name, share in (("K = 0", 0.0), ("K = K*", 1.0)):
            found = []
            for seed in SYSTEMS:
                env = random_system(horizon, seed=seed)
                policy = feedback(env, GAMMA, share, SPREAD)
                none, v, q = (
                    parts(env, policy, phi, GAMMA)
                    for phi in ("reward_to_go", "value_baseline", "state_action_control_variate")
                )
                found.append((v.action.sum() / v.trajectory.sum(), saved(v, q), none.action.sum() / none.trajectory.sum(),
                              saved(none, q)))  # fmt: skip
            most = np.max(found, axis=0)
            for panel, value in zip((r"$\Sigma_a^V/\Sigma_\tau$", r"saved by Q beyond V"), most, strict=False):
                rows.append(row(name, float(value), panel=panel, x=horizon, what=""))
            for what, value in zip(("Σ_a over Σ_τ", "saved by Q", "without V", "saved by Q from nothing"), most, strict=True):
                rows.append(row(name, float(value), panel="", x=horizon, what=what))
    return pd.DataFrame(rows)


@study(
    "mirage_time",
    "Baselines V_t(s) against the best V(s) that does not see the time, 100 steps, over γ: Σ_a with the one over Σ_a with the "
    "other, and the same of Σ_τ + Σ_a. Largest of three random linear systems at K = 0 and at the optimal K, and the point mass "
    "of the source at its optimal K. Dashed, what counts as a gain.",
    draw=lambda rows, style=None: estimates.draw(
        rows[rows["panel"] != ""], style, xlabel="γ", ylabel="with $V_t(s)$ over with $V(s)$", log="y", line=GAIN
    ),
)
def mirage_time(budget: Budget) -> pd.DataFrame:
    """Take the components with both values; nothing is drawn but the systems.

    Args:
        budget: not used.

    Returns:
        One row per panel, system and γ.
    """
    rows = []
    random = [(random_system(HORIZON, seed=seed), SPREAD) for seed in SYSTEMS]
    cases = {"random, K = 0": (random, 0.0), "random, K = K*": (random, 1.0),
             "point mass, K = K*": ([(point_mass(HORIZON), SIGMA)], 1.0)}  # fmt: skip
    for gamma in DISCOUNTS:
        for name, (worlds, share) in cases.items():
            found = []
            for env, sigma in worlds:
                policy = feedback(env, GAMMA, share, sigma)
                aware, blind = (
                    parts(env, policy, "value_baseline", gamma, v) for v in (None, time_unaware(env, policy, gamma))
                )
                found.append((aware.action.sum() / blind.action.sum(), (aware.action + aware.trajectory).sum()
                              / (blind.action + blind.trajectory).sum()))  # fmt: skip
            for panel, value in zip((r"$\Sigma_a$", r"$\Sigma_\tau+\Sigma_a$"), np.max(found, axis=0), strict=True):
                rows.append(row(name, float(value), panel=panel, x=gamma))
    return pd.DataFrame(rows)


def _told(what: str, *policies: str, choose=max):  # noqa: ANN001, ANN202
    """Return rows → a number of the point mass, the largest or least of these policies."""
    return lambda rows: Effect.exact(choose(cell(rows, what=what, label=p).value for p in policies))


def _worst(what: str):  # noqa: ANN202
    """Return rows → a number of random systems, the largest over policies and horizons."""
    return lambda rows: Effect.exact(float(rows[rows["what"] == what]["value"].max()))


def _time(panel: str, gamma: float, *labels: str):  # noqa: ANN202
    """Return rows → the largest ratio of these systems at γ."""
    return lambda rows: Effect.exact(max(cell(rows, panel=panel, x=gamma, label=x).value for x in labels))


BOTH = ("first policy", "trained policy")
POINT_MASS = "the point mass of the source, exact, sums over its 100 steps"
RANDOM = "in general: random linear systems of 2 to 100 steps, exact"
claim(
    id="MI-1a", sentence="Without a baseline Σ_a dominates the variance of a step's term.", source=TUCKER, tag="C",
    study="mirage_point_mass", statistic="Σ_a/(Σ_s + Σ_a + Σ_τ), at least half, the less of the first and the trained policy",
    direction="above", bound=MOST, effect=_told("share of Σ_a", *BOTH, choose=min), condition=POINT_MASS, needs=("reward_to_go",),
    control=Control("so it does with the exact V", _told("share with V", *BOTH, choose=min)),
)  # fmt: skip
for _id, _policy in (("b", BOTH[0]), ("c", BOTH[1])):
    claim(
        id=f"MI-1{_id}", sentence="With V as baseline Σ_a is negligible beside Σ_τ.", source=TUCKER, tag="C",
        study="mirage_point_mass", statistic="Σ_a/Σ_τ with the exact V, at most 0.1", direction="below", bound=NEGLIGIBLE,
        effect=_told("Σ_a over Σ_τ", _policy), needs=("value_baseline",),
        condition=f"{POINT_MASS}, {'μ_t = 0' if _id == 'b' else 'the best μ_t'}",
        control=Control("so it is without a baseline", _told("without V", _policy)),
    )  # fmt: skip
claim(
    id="MI-1f", sentence="With V as baseline Σ_a is negligible beside Σ_τ.", source=TUCKER, tag="C", study="mirage_horizons",
    statistic="Σ_a/Σ_τ with the exact V, at most 0.1, largest over systems, horizons, K = 0 and K*", direction="below",
    bound=NEGLIGIBLE, effect=_worst("Σ_a over Σ_τ"), condition=RANDOM, needs=("value_baseline",),
    control=Control("so it is without a baseline", _worst("without V")),
)  # fmt: skip
for _id, _lam in (("a", 0.0), ("b", 0.99)):
    claim(
        id=f"MI-2{_id}", sentence="GAE lowers Σ_τ.", source=TUCKER, tag="C", study="mirage_point_mass",
        statistic=f"Σ_τ of GAE({_lam:g}) with the exact V over that of returns at t = 0, the larger of both policies",
        direction="below", bound=1.0, effect=_told(f"GAE({_lam:g})", *BOTH), needs=(f"gae(lam={_lam})",),
        condition="the point mass of the source, exact, first and trained policy",
        control=Control("so it does with V times ten", _told(f"GAE({_lam:g}), wrong V", *BOTH)),
    )  # fmt: skip
claim(
    id="MI-6a", sentence="An action-dependent baseline gives nothing over a state baseline.", source=TUCKER, tag="C",
    study="mirage_point_mass", direction="below", bound=NOTHING, published="-0.09 to 0.06 in MuJoCo, learned [C]",
    statistic="(Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V) with exact V and Q, at most 0.09, the larger of both policies",
    effect=_told("saved by Q", *BOTH), condition=POINT_MASS, needs=("value_baseline", "state_action_control_variate"),
    control=Control("nor over none", _told("saved by Q from nothing", *BOTH)),
)  # fmt: skip
claim(
    id="MI-6b", sentence="An action-dependent baseline gives nothing over a state baseline.", source=TUCKER, tag="C",
    study="mirage_horizons", direction="below", bound=NOTHING, published="-0.09 to 0.06 in MuJoCo, learned [C]",
    statistic="(Σ_a^V − Σ_a^Q)/(Σ_τ + Σ_a^V) with exact V and Q, at most 0.09, largest over systems, horizons, K = 0 and K*",
    effect=_worst("saved by Q"), condition=RANDOM, needs=("value_baseline", "state_action_control_variate"),
    control=Control("nor over none", _worst("saved by Q from nothing")),
)  # fmt: skip
_STATIONARY = ("random, K = 0", "random, K = K*")
claim(
    id="MI-7a", sentence="A horizon-aware V gives a real gain.", source=TUCKER, tag="C", study="mirage_time",
    statistic="Σ_a with V_t(s) over Σ_a with the best V(s), at most 0.8, largest over systems, K = 0 and K*", direction="below",
    bound=GAIN, effect=_time(r"$\Sigma_a$", GAMMA, *_STATIONARY), needs=("value_baseline",),
    condition="random linear systems of 100 steps, γ = 0.99, exact",
    published="Σ_a^V/Σ_a^0 on HalfCheetah 0.039-0.059 to 0.0004-0.028, on Humanoid 0.020-0.050 to 0.024-0.040 [C]",
    control=Control("so it does at γ = 0, where V_t(s) is E[r | s] at all t", _time(r"$\Sigma_a$", 0.0, *_STATIONARY)),
)  # fmt: skip
claim(
    id="MI-7b", sentence="A horizon-aware V gives a real gain.", source=TUCKER, tag="C", study="mirage_time",
    statistic="Σ_τ + Σ_a with V_t(s) over the same with the best V(s), at most 0.8", direction="below", bound=GAIN,
    effect=_time(r"$\Sigma_\tau+\Sigma_a$", GAMMA, "point mass, K = K*"), needs=("value_baseline",),
    condition="in general: the point mass of the source at its optimal K, where the state tells the time; exact",
    control=Control("so it does at γ = 0", _time(r"$\Sigma_\tau+\Sigma_a$", 0.0, "point mass, K = K*")),
)  # fmt: skip
