"""Claims about linear systems, PR-1, PR-2 and NS-1: exact variances of the whole trajectory's gradient, and training runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.linalg
import torch

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.lqg import LQG, environment, random_system
from varlab.oracles.exact import ExactMoments, exact
from varlab.policies.base import parameters
from varlab.policies.networks import Linear
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, mean_of, ratio, row
from varlab.studies.claims.verdicts import Effect
from varlab.training import train
from varlab.values.linear_quadratic import expected_return, gradient

#: n, m, H and random systems of PR-1.
STATES, ACTIONS, HORIZON, SYSTEMS = 5, 3, 10, (1, 2, 3)
SIGMAS = tuple(10 ** np.arange(-2, 2.01, 0.25))
NOISES = (0.1, 1.0, 10.0)
SCALES = tuple(10 ** np.arange(-2, 2.01, 0.5))
RADII = (0.5, 0.7, 0.9, 0.95, 1.0, 1.05, 1.1, 1.3)
#: σ_a elsewhere; σ_a of training runs; α of the first of them, episodes of a batch and epochs.
SIGMA, TRAINED, STEP, EPISODES, EPOCHS = 0.3, (0.3, 2.0), 1e-4, 100, (5, 10, 20)
#: A smaller system for training and for paths: n, m, seed.
SMALL = (3, 2, 12)
PATH = (0, 1, 2, 5, 10, 20, 50, 100, 200, 400)
#: A K for the smaller system whose closed loop has spectral radius 1.29.
UNSTABLE = ((0.13, -0.13, 0.64), (0.10, -0.54, 0.36))
#: Steps of Adam and of plain ascent along the exact gradient.
RATES = {"Adam": 1e-2, "ascent": 1e-4}


def system(
    states: int, actions: int, seed: int, *, noise: float = 0.1, push: float = 1.0, radius: float = 0.9, horizon: int = HORIZON
) -> tuple[LQG, np.ndarray]:
    """Return a random linear system and the K of a = K s that is optimal at an infinite horizon, by Riccati's equation.

    Args:
        states: n.
        actions: m.
        seed: of A and B.
        noise: σ_s², variance of each entry of ω.
        push: factor on B.
        radius: spectral radius of A.
        horizon: H.

    Returns:
        The environment (Q = I, R = I/10) and K* [m, n].
    """
    made = random_system(
        horizon, seed=seed, state_dim=states, action_dim=actions, spectral_radius=radius, noise=noise
    ).system  # fmt: skip
    made = replace(made, b=push * made.b)
    a, b, q, r = (getattr(made, name).numpy() for name in ("a", "b", "state_cost", "action_cost"))
    p = scipy.linalg.solve_discrete_are(a, b, q, r)
    return environment(made, horizon, "random LQG"), -np.linalg.solve(r + b.T @ p @ b, b.T @ p @ a)


def gaussian(env: LQG, gain: np.ndarray, sigma: float, free: str = "weight") -> Linear:
    """Return a ~ N(K s, σ² I) with K or log σ as its only parameter."""
    policy = Linear(env, log_std=math.log(sigma)).double()
    with torch.no_grad():
        policy.net.weight.copy_(torch.from_numpy(gain))
        policy.net.bias.zero_()
    for name, p in policy.named_parameters():
        p.requires_grad_({"weight": "net.weight", "log_std": "log_std.value"}[free] == name)
    return policy


def moments(env: LQG, policy: Linear) -> ExactMoments:
    """Return the exact moments of Σ_t z_t R."""
    return exact(env, policy, ["total_return"])


def bottom(x: np.ndarray, y: np.ndarray) -> float:
    """Return where y is least, by a parabola through the least of log y over log x and its neighbours."""
    i = int(np.clip(np.argmin(y), 1, len(y) - 2))
    c = np.polyfit(np.log(x[i - 1 : i + 2]), np.log(y[i - 1 : i + 2]), 2)
    return float(np.exp(-c[1] / (2 * c[0])))


def rise(y: np.ndarray) -> float:
    """Return the smaller of the two ends over the least."""
    return float(min(y[0], y[-1]) / y.min())


def _sweeps(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    shown = rows[(rows["panel"] != "") & (rows["system"] == SYSTEMS[0])]
    return estimates.draw(shown, style, xlabel="", ylabel="tr Cov", log="xy", columns=3)


@study(
    "linear_variances",
    "Exact tr Cov of Σ z_t R in K at the optimal K of a random linear system (n = 5, m = 3, H = 10): over the standard deviation "
    "σ_a of actions for three σ_s of the system's noise, over a factor on B, and over the spectral radius of A, there also at "
    "K = 0.",
    draw=_sweeps,
)
def linear_variances(budget: Budget) -> pd.DataFrame:
    """Sweep σ_a, ‖B‖ and the spectral radius on several systems; nothing but the systems is drawn."""
    rows = []
    for seed in SYSTEMS:
        size = (STATES, ACTIONS, seed)

        def add(name: str, y: np.ndarray, panel: str, x: tuple[float, ...], seed: int = seed) -> None:
            rows.extend(row(name, v, panel=panel, x=at, system=seed) for v, at in zip(y, x, strict=True))

        lowest = []
        for noise in NOISES:
            env, gain = system(*size, noise=noise**2)
            y = np.array([moments(env, gaussian(env, gain, s)).variance[0] for s in SIGMAS])
            add(f"σ_s = {noise:g}", y, "over σ_a", SIGMAS)
            lowest.append(bottom(np.array(SIGMAS), y))
            rows.append(row(f"σ_s = {noise:g}", rise(y), panel="", what="rise over σ_a", system=seed))
        cheap = replace(env.system, state_cost=4 * env.system.state_cost, action_cost=4 * env.system.action_cost)
        rescaled = environment(cheap, HORIZON, "random LQG")
        y = np.array([moments(rescaled, gaussian(rescaled, gain, s)).variance[0] for s in SIGMAS])
        rows.append(row("σ_s", lowest[2] / lowest[0], panel="", what="rise of the best σ_a", system=seed))
        rows.append(row("costs", bottom(np.array(SIGMAS), y) / lowest[2], panel="", what="rise of the best σ_a", system=seed))
        env, gain = system(*size)
        y = np.array([moments(env, gaussian(env, gain, s, "log_std")).variance[0] for s in SIGMAS])
        rows.append(row("gradient in log σ_a", rise(y), panel="", what="rise over σ_a", system=seed))
        y = np.array([moments(*_at(*size, push=b)).variance[0] for b in SCALES])
        add("K*", y, "over a factor on B", SCALES)
        rows.append(row("K*", rise(y), panel="", what="rise over B", system=seed))
        rows.append(row("B", float((y[1:] / y[:-1]).min()), panel="", what="least growth", system=seed))
        for name, share in (("K*", 1.0), ("K = 0", 0.0)):
            y = np.array([moments(*_at(*size, radius=r, share=share)).variance[0] for r in RADII])
            add(name, y, "over the spectral radius of A", RADII)
            at = dict(zip(RADII, y, strict=True))
            rows.append(row(name, at[1.05] / at[0.95], panel="", what="from 0.95 to 1.05", system=seed))
            if share:
                rows.append(row("spectral radius", float((y[1:] / y[:-1]).min()), panel="", what="least growth", system=seed))
                rows.append(row("K*", rise(y), panel="", what="rise over the radius", system=seed))
    return pd.DataFrame(rows)


def _at(states: int, actions: int, seed: int, share: float = 1.0, **settings: float) -> tuple[LQG, Linear]:
    env, gain = system(states, actions, seed, **settings)
    return env, gaussian(env, share * gain, SIGMA)


def over_systems(rows: pd.DataFrame, what: str, label: str, choose: Callable[[pd.Series], float] = min) -> Effect:
    """Return the least, or another choice, of a number over systems."""
    here = rows[(rows["what"] == what) & (rows["label"] == label)]
    return Effect.exact(float(choose(here["value"])))


PREISS = "Preiss, Arnold, Wei, Kloft, 2019, Analyzing the Variance of Policy Gradient Estimators for the LQR"
LQR = "three random systems with n = 5, m = 3, H = 10, Q = I, R = I/10, K = K*"
claim(
    id="PR-1a", sentence="The variance has a minimum over σ_a between 0.01 and 100.", source=PREISS, tag="T",
    study="linear_variances", statistic="smaller end over minimum, least over systems and σ_s = 0.1, 1, 10", direction="above",
    bound=2.0, condition=LQR,
    effect=lambda rows: Effect.exact(
        min(over_systems(rows, "rise over σ_a", f"σ_s = {s:g}").value for s in NOISES)
    ),
    control=Control(
        "so has that of the gradient in log σ_a", lambda rows: over_systems(rows, "rise over σ_a", "gradient in log σ_a")
    ),
)  # fmt: skip
claim(
    id="PR-1b", sentence="The σ_a of least variance rises with σ_s.", source=PREISS, tag="T", study="linear_variances",
    statistic="best σ_a at σ_s = 10 over that at 0.1, least over systems", direction="above", bound=1.5, condition=LQR,
    effect=lambda rows: over_systems(rows, "rise of the best σ_a", "σ_s"),
    control=Control("with fourfold costs Q and R", lambda rows: over_systems(rows, "rise of the best σ_a", "costs")),
)  # fmt: skip
claim(
    id="PR-1c", sentence="The variance has a minimum over ‖B‖.", source=PREISS, tag="T", study="linear_variances",
    statistic="smaller end over minimum of B times 0.01 … 100, least over systems", direction="above", bound=1.1, condition=LQR,
    effect=lambda rows: over_systems(rows, "rise over B", "K*"),
    control=Control(
        "over the spectral radius of A", lambda rows: over_systems(rows, "rise over the radius", "K*", max)
    ),
)  # fmt: skip
claim(
    id="PR-1d", sentence="The variance grows with the spectral radius of A.", source=PREISS, tag="T", study="linear_variances",
    statistic="least ratio of variances of successive radii 0.5 … 1.3", direction="above", bound=1.0, condition=LQR,
    effect=lambda rows: over_systems(rows, "least growth", "spectral radius"),
    control=Control("with ‖B‖", lambda rows: over_systems(rows, "least growth", "B")),
)  # fmt: skip
claim(
    id="PR-1e", sentence="It does not explode where the spectral radius passes 1.", source=PREISS, tag="T",
    study="linear_variances", statistic="variance at 1.05 over that at 0.95, largest over systems", direction="below", bound=4.0,
    condition=LQR, effect=lambda rows: over_systems(rows, "from 0.95 to 1.05", "K*", max),
    control=Control("without control, K = 0", lambda rows: over_systems(rows, "from 0.95 to 1.05", "K = 0", max)),
)  # fmt: skip


@study(
    "linear_learning",
    "J without noise of actions along training from K = 0 on a random linear system (n = 3, m = 2, H = 10), for two σ_a, with "
    "the same step size and with steps of the same mean length.",
    draw=curves("updates", "J without noise"),
)
def linear_learning(budget: Budget) -> pd.DataFrame:
    """Train from shared seeds at each σ_a, and take the exact variance at the start."""
    rows, runs = [], budget.n(30, least=4, multiple=1)
    env, gain = system(*SMALL)
    start, ends = 0 * gain, {}
    policies = [gaussian(env, start, s) for s in TRAINED]
    exactly = [moments(env, p) for p in policies]
    length = [float(np.linalg.norm(m.gradient)) for m in exactly]
    for what in ("variance", "nsr"):
        value = [float(getattr(m, what)[0]) for m in exactly]
        rows.append(row("2 over 0.3", value[1] / value[0], panel="", what=what))
        rows.append(row("0.3 over 2", value[0] / value[1], panel="", what=what))
    for panel, rates in (("one step size α", [STEP] * 2), ("steps of one length", [STEP * length[0] / x for x in length])):
        for sigma, policy, rate in zip(TRAINED, policies, rates, strict=True):
            found = np.array([list(_learn(env, policy, rate, budget.seed * 1000 + i)) for i in range(runs)])
            ends[panel, sigma] = found[:, -1]
            rows.append(row(f"σ_a = {sigma:g}", _noiseless(env, start), panel=panel, x=0))
            rows += [row(f"σ_a = {sigma:g}", mean_of(y), panel=panel, x=x) for y, x in zip(found.T, EPOCHS, strict=True)]
        rows.append(row("2 less 0.3", mean_of(ends[panel, TRAINED[1]] - ends[panel, TRAINED[0]]), panel="", what=panel))
    again = np.array([list(_learn(env, policies[0], STEP, budget.seed * 1000 + 500 + i))[-1] for i in range(runs)])
    rows.append(row("0.3 less itself", mean_of(again - ends["one step size α", TRAINED[0]]), panel="", what="again"))
    return pd.DataFrame(rows)


def _noiseless(env: LQG, gain: np.ndarray) -> float:
    """Return J of a = K s."""
    with torch.no_grad():
        return float(expected_return(env, gaussian(env, gain, 1e-9), 1.0))


def _learn(env: LQG, policy: Linear, rate: float, seed: int) -> Iterator[float]:
    """Train, and give J without noise after each of :data:`EPOCHS`."""
    run = train(
        env, policy, "total_return", epochs=EPOCHS[-1], episodes=EPISODES, optimizer="ascent", lr=rate, checkpoints=EPOCHS,
        seed=seed, dtype="float64",
    )  # fmt: skip
    for epoch in EPOCHS:
        yield _noiseless(env, run.policy_at(str(epoch)).net.weight.detach().numpy())


LEARNT = "J without noise after 20 updates with σ_a = 2 less that with 0.3"
SMALLER = "a random system with n = 3, m = 2, H = 10, from K = 0"
claim(
    id="PR-2a", sentence="The larger σ_a has the larger variance.", source=PREISS, tag="T", study="linear_learning",
    statistic="exact tr Cov at the start with σ_a = 2 over that with 0.3", direction="above", bound=2.0, condition=SMALLER,
    effect=lambda rows: cell(rows, what="variance", label="2 over 0.3"),
    control=Control("the larger noise-to-signal ratio", lambda rows: cell(rows, what="nsr", label="2 over 0.3")),
)  # fmt: skip
for _id, _panel, _words in (
    ("b", "one step size α", "the same α, so that steps grow with ‖∇J‖"),
    ("c", "steps of one length", "in general: α set so that steps have the same mean length at the start"),
):
    claim(
        id=f"PR-2{_id}", sentence="Yet with the larger σ_a learning is faster.", source=PREISS, tag="T", study="linear_learning",
        statistic=LEARNT, direction="above", bound=0.3, effect=lambda rows, panel=_panel: cell(rows, what=panel),
        condition=f"{SMALLER}; {_words}",
        control=Control("so it is with σ_a = 0.3 from other random numbers", lambda rows: cell(rows, what="again")),
    )  # fmt: skip


@study(
    "noise_along_ascent",
    "Exact noise-to-signal ratio tr Cov/‖∇J‖² of Σ z_t R in K along exact gradient ascent on a random linear system (n = 3, "
    "m = 2, H = 10), from K = 0, and from a K that makes the closed loop unstable (spectral radius 1.29).",
    draw=lambda rows, style=None: estimates.draw(
        rows[rows["panel"] != ""].assign(x=rows["x"] + 1), style, xlabel="1 + updates", ylabel="", log="xy"
    ),
)
def noise_along_ascent(budget: Budget) -> pd.DataFrame:
    """Follow exact gradients; nothing but the system is drawn."""
    rows = []
    env, gain = system(*SMALL)
    for start, first in (("from K = 0", 0 * gain), ("from an unstable K", np.array(UNSTABLE))):
        for rule in RATES:
            label = f"{rule}, {start}"
            found = list(ascend(env, gaussian(env, first, SIGMA), rule))
            for x, m in zip(PATH, found, strict=True):
                rows.append(row(label, float(m.nsr[0]), panel="tr Cov/‖∇J‖²", x=x))
                rows.append(row(label, float(m.variance[0]), panel="tr Cov", x=x))
            nsr = np.array([m.nsr[0] for m in found])
            rows.append(row(label, float((nsr[1:] / nsr[:-1]).min()), panel="", what="least growth", x=0))
    return pd.DataFrame(rows)


def ascend(env: LQG, policy: Linear, rule: str) -> Iterator[ExactMoments]:
    """Follow ∇J, and give the exact moments after each of :data:`PATH`."""
    theta = list(parameters(policy).values())
    optimizer = {"Adam": torch.optim.Adam, "ascent": torch.optim.SGD}[rule](theta, lr=RATES[rule], maximize=True)
    for k in range(PATH[-1] + 1):
        if k in PATH:
            yield moments(env, policy)
        (p,) = theta
        p.grad = gradient(env, policy, 1.0)[0].view_as(p)
        optimizer.step()


def _grown(rows: pd.DataFrame, panel: str, label: str, last: int = PATH[-1]) -> Effect:
    return ratio(*(cell(rows, panel=panel, label=label, x=x) for x in (last, 0)))


HAN = "Han, Yang, 2026, Non-Uniform Noise-to-Signal Ratio in the REINFORCE Policy-Gradient Estimator"
NSR, COV = "tr Cov/‖∇J‖²", "tr Cov"
for _id, _rule in (("a", "Adam"), ("b", "ascent")):
    claim(
        id=f"NS-1{_id}", sentence="The noise-to-signal ratio rises towards the optimum.", source=HAN, tag="A",
        study="noise_along_ascent", statistic="ratio after 400 updates over that at the start", direction="above", bound=2.0,
        effect=lambda rows, rule=_rule: _grown(rows, NSR, f"{rule}, from K = 0"),
        condition=f"{SMALLER}, {'Adam' if _rule == 'Adam' else 'plain ascent'} along exact gradients",
        control=Control("so does tr Cov", lambda rows, rule=_rule: _grown(rows, COV, f"{rule}, from K = 0")),
    )  # fmt: skip
for _id, _start, _words in (
    ("c", "from K = 0", SMALLER), ("d", "from an unstable K", "in general: from a K whose closed loop is unstable"),
):  # fmt: skip
    claim(
        id=f"NS-1{_id}", sentence="It rises all along the path.", source=HAN, tag="A", study="noise_along_ascent",
        statistic="least ratio between successive points of the path, Adam", direction="above", bound=1.0, condition=_words,
        effect=lambda rows, start=_start: cell(rows, what="least growth", label=f"Adam, {start}"),
        control=Control(
            "so does tr Cov",
            lambda rows, start=_start: ratio(*(cell(rows, panel=COV, label=f"Adam, {start}", x=x) for x in PATH[1::-1])),
        ),
    )  # fmt: skip
claim(
    id="NS-1e", sentence="It can blow up.", source=HAN, tag="A", study="noise_along_ascent",
    statistic="ratio after 400 updates over that at the start", direction="above", bound=1e4, condition=f"{SMALLER}, Adam",
    effect=lambda rows: _grown(rows, NSR, "Adam, from K = 0"),
    control=Control("within 10 updates", lambda rows: _grown(rows, NSR, "Adam, from K = 0", 10)),
)  # fmt: skip
