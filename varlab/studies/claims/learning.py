"""Claims that variance is not the whole story: CH-1, ME-1 and SC-1, on bandits by many runs that share their random numbers."""

from __future__ import annotations

import functools
import math

import numpy as np
import pandas as pd
import scipy.stats

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.closed_form import two_arms_natural_variance
from varlab.rng import Streams, numpy_generator
from varlab.studies import bandit_paths as bandits
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, mean_of, ratio, row
from varlab.studies.claims.verdicts import Effect

#: Three arms; ε; updates at which policies are kept; η of the natural and of the plain gradient.
ARMS, SHIFT = (1.0, 0.7, 0.0), 0.5
NATURAL, PLAIN = (0, 10, 25, 50, 125, 250, 500), (0, 10, 25, 50, 100, 250)
STEP = {"natural": 0.1, "plain": 0.5}
BASELINES = {"b* − 1/2": -SHIFT, "b*": 0.0, "b* + 1/2": SHIFT}
#: Runs that are drawn on the simplex.
DRAWN = 12
#: Two environments with three arms each, η and updates of the shared critic.
PAIR, ETA, UPDATES = ((1.0, 0.9, 0.8), (0.4, 0.2, 0.0)), 2.0, (0, 3, 10, 30, 100)
CRITICS = {"no baseline": bandits.none, "shared V": bandits.shared_value, "V of each": bandits.value}
#: Two arms with a worse arm that pays, and one that does not.
PAYS, PAYS_NOTHING = (0.6, 1.0), (0.0, 1.0)
LOGS = (25, 50, 100, 200, 400, 800)


def _policies(budget: Budget, count: int = 2000) -> np.ndarray:
    """Return log π [1, R, 3] of policies drawn uniformly from the simplex."""
    return np.log(numpy_generator(Streams(budget.seed).sequence("theta")).dirichlet(np.ones(3), size=count))[None]


def _unequal(log_pi: np.ndarray, rule: str, centre: bandits.Baseline) -> float:
    """Return the largest |log Var(centre + ε)/Var(centre − ε)| over policies."""
    r = np.array([ARMS])
    up, down = (bandits.variance(log_pi, r, centre(log_pi, r) + e, rule) for e in (SHIFT, -SHIFT))
    return float(np.abs(np.log(up / down)).max())


def _simplex(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the gap of each baseline along the updates, and a few runs of the natural gradient on the simplex."""
    with styles.context(style) as s:
        figure = styles.Figure(figsize=(s.text, 0.62 * s.text), layout="constrained")
        axs = figure.subplots(2, 3, gridspec_kw={"height_ratios": [1.25, 1]})
        for j, name in enumerate(BASELINES):
            ax, look = axs[0, j], estimates.named(name, j)
            corners = np.array([[0.5, math.sqrt(3) / 2], [1.0, 0.0], [0.0, 0.0]])
            ax.fill(*corners.T, facecolor="none", edgecolor="black", linewidth=0.6)
            for _, run in rows[(rows["what"] == "path") & (rows["label"] == name)].groupby("run"):
                path = run.sort_values("x")[["pi_0", "pi_1", "pi_2"]].to_numpy() @ corners
                ax.plot(*path.T, color=look.color, linewidth=0.7, alpha=0.8)
                ax.plot(*path[-1], look.marker, color=look.color, markersize=3, zorder=3)
            for text, (x, y), va in zip(("r = 1", "0.7", "0"), corners, ("bottom", "top", "top"), strict=True):
                ax.text(x, y + (0.03 if va == "bottom" else -0.04), text, ha="center", va=va)
            ax.set_title(name)
            ax.set_xlim(-0.12, 1.12)
            ax.set_ylim(-0.16, 1.02)
            ax.set_aspect("equal")
            ax.set_axis_off()
        for ax, panel in zip(axs[1, :2], ("natural gradient", "plain gradient"), strict=True):
            for j, name in enumerate(BASELINES):
                look = estimates.named(name, j)
                here = rows[(rows["panel"] == panel) & (rows["label"] == name)].sort_values("x")
                ax.fill_between(here["x"], here["value_low"], here["value_high"], color=look.color, alpha=0.25, linewidth=0)
                ax.plot(here["x"], here["value"], color=look.color, marker=look.marker, markerfacecolor=look.face, label=name)
            ax.set_title(panel)
            ax.set_xlabel("updates")
            ax.set_ylim(bottom=0)
            ax.grid(axis="both")
        axs[1, 0].set_ylabel("max r − J")
        axs[1, 2].set_axis_off()
        axs[1, 2].legend(*axs[1, 0].get_legend_handles_labels(), loc="center left", frameon=False)
    return figure


@study(
    "equal_variance",
    "Three arms that pay 1, 0.7 and 0, learnt with b* and b* ± 1/2, which have equal variance at every policy. Above: runs of "
    "the natural gradient (η = 0.1) on the simplex, all from its middle; below: mean distance of J from its maximum.",
    draw=_simplex,
)
def equal_variance(budget: Budget) -> pd.DataFrame:
    """Learn with each baseline from the same random numbers."""
    rows, log_pi = [], _policies(budget)
    for name, centre in (("b*", bandits.best("natural")), ("V", bandits.value)):
        rows.append(row(name, _unequal(log_pi, "natural", centre), panel="", what="unequal"))
    lead = bandits.variance(log_pi, np.array([ARMS]), bandits.best("natural", SHIFT)(log_pi, np.array([ARMS])), "natural")
    least = bandits.variance(log_pi, np.array([ARMS]), bandits.best("natural")(log_pi, np.array([ARMS])), "natural")
    rows.append(row("b* + 1/2", float((lead - least).min()), panel="", what="excess"))
    runs = budget.n(4000)
    same = {"seed": budget.seed, "runs": runs}
    for rule, keep in (("natural", NATURAL), ("plain", PLAIN)):
        gaps = {}
        for name, shift in BASELINES.items():
            found = bandits.learn([ARMS], bandits.best(rule, shift), step=STEP[rule], rule=rule, keep=keep, **same)
            gaps[name] = found.gap[:, 0]
            rows += [
                row(name, mean_of(g), panel=f"{rule} gradient", x=x) for g, x in zip(gaps[name], found.updates, strict=True)
            ]
            if rule == "natural":
                rows += [
                    {"label": name, "panel": "", "what": "path", "run": i, "x": x, **_corners(p[0, i])}
                    for p, x in zip(found.policy, found.updates, strict=True)
                    for i in range(DRAWN)
                ]
        again = bandits.learn(
            [ARMS], bandits.best(rule, SHIFT), step=STEP[rule], rule=rule, keep=keep, **{**same, "part": 1}
        ).gap[:, 0]
        pairs = {
            "b* − 1/2 less b* + 1/2": gaps["b* − 1/2"] - gaps["b* + 1/2"], "b* less b* + 1/2": gaps["b*"] - gaps["b* + 1/2"],
            "b* less b* − 1/2": gaps["b*"] - gaps["b* − 1/2"], "b* + 1/2 less itself": gaps["b* + 1/2"] - again,
        }  # fmt: skip
        rows += [row(name, mean_of(d[-1]), panel="", what=rule, x=keep[-1]) for name, d in pairs.items()]
    return pd.DataFrame(rows)


def _corners(pi: np.ndarray) -> dict[str, float]:
    return {f"pi_{a}": float(p) for a, p in enumerate(pi)}


CHUNG = "Chung, Thomas, Machado, Le Roux, 2021, Beyond Variance Reduction"
AGAIN = Control("so do two sets of runs with b* + ε", lambda rows: cell(rows, what="natural", label="b* + 1/2 less itself"))
claim(
    id="CH-1a", sentence="Baselines b* + ε and b* − ε have the same variance.", source=CHUNG, tag="A", study="equal_variance",
    statistic="largest |log of the ratio of variances| over 2,000 policies, within 10⁻⁶", direction="within", bound=0.0,
    margin=1e-6, effect=lambda rows: cell(rows, what="unequal", label="b*"), condition="three arms, natural gradient, ε = 1/2",
    control=Control("V + ε and V − ε do", lambda rows: cell(rows, what="unequal", label="V")),
)  # fmt: skip
claim(
    id="CH-1b", sentence="Yet with the lower baseline learning ends worse: it commits to what it tries first.", source=CHUNG,
    tag="A", study="equal_variance", statistic="J with b* + ε less J with b* − ε after 500 updates, paired", direction="above",
    bound=0.02, effect=lambda rows: cell(rows, what="natural", label="b* − 1/2 less b* + 1/2"), control=AGAIN,
    condition="three arms, natural gradient, η = 0.1, ε = 1/2",
)  # fmt: skip
claim(
    id="CH-1c", sentence="A baseline with less variance can learn worse than one with more.", source=CHUNG, tag="A",
    study="equal_variance", statistic="J with b* + ε less J with b*, of least variance, after 500 updates, paired",
    direction="above", bound=0.005, effect=lambda rows: cell(rows, what="natural", label="b* less b* + 1/2"),
    condition="three arms, natural gradient, η = 0.1, ε = 1/2",
    control=Control("worse also than b* − ε", lambda rows: cell(rows, what="natural", label="b* less b* − 1/2")),
)  # fmt: skip
claim(
    id="CH-1d", sentence="With the plain gradient too the lower of two baselines with equal variance ends worse.", source=CHUNG,
    tag="A", study="equal_variance", statistic="J with b* + ε less J with b* − ε after 250 updates, paired", direction="above",
    bound=0.002, effect=lambda rows: cell(rows, what="plain", label="b* − 1/2 less b* + 1/2"),
    condition="three arms, η = 1/2, ε = 1/2",
    control=Control("so do two sets of runs with b* + ε", lambda rows: cell(rows, what="plain", label="b* + 1/2 less itself")),
)  # fmt: skip


@study(
    "natural_on_two_arms",
    "Natural gradient on two arms, the better pays 1. Mean distance of J from 1 along the updates (η = 1/2), with and without V, "
    "where the other arm pays 0.6 and where it pays nothing; what fell below 10⁻¹² is not shown.",
    draw=lambda rows, style=None: estimates.draw(
        rows[(rows["panel"] != "") & (rows["value_low"] > 1e-12)], style, xlabel="updates", ylabel="1 − J", log="xy"
    ),
)
def natural_on_two_arms(budget: Budget) -> pd.DataFrame:
    """Take the variance in closed form, and learn with and without V."""
    rows = []
    for r in (PAYS, PAYS_NOTHING):
        for name in ("V", "no baseline", "b*"):
            for far in (3, 6):
                p = 1 - 10.0**-far
                b = {"V": r[0] + p * (r[1] - r[0]), "no baseline": 0.0, "b*": (1 - p) * r[1] + p * r[0]}[name]
                rows.append(row(name, two_arms_natural_variance(p, b, r), panel="", what=f"variance {r[0]:g}", x=far))
    for r in (PAYS, PAYS_NOTHING):
        for name, baseline in (("V", bandits.value), ("no baseline", bandits.none)):
            found = bandits.learn([r], baseline, seed=budget.seed, runs=budget.n(4000), keep=LOGS, step=0.5, rule="natural")
            gap = found.gap[:, 0]
            title = f"other arm pays {r[0]:g}"
            rows += [row(name, mean_of(g), panel=title, x=x) for g, x in zip(gap, found.updates, strict=True)]
            if r == PAYS:
                rows.append(row(name, slope(gap, LOGS), panel="", what="slope"))
    return pd.DataFrame(rows)


def slope(gap: np.ndarray, updates: tuple[int, ...], blocks: int = 50) -> Effect:
    """Return the slope of log mean gap over log updates, with its jackknife interval over blocks of runs.

    Args:
        gap: [C, R] of each run.
        updates: [C].
        blocks: B; R is a multiple of it.

    Returns:
        The slope.
    """
    x = np.log(updates)
    weight = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    mean = gap.reshape(len(gap), blocks, -1).mean(2)
    left = weight @ np.log((mean.sum(1, keepdims=True) - mean) / (blocks - 1))
    value = float(weight @ np.log(mean.mean(1)))
    spread = math.sqrt((blocks - 1) / blocks * float(((left - left.mean()) ** 2).sum()))
    half = float(scipy.stats.t.ppf(0.975, blocks - 1)) * spread
    return Effect(value, value - half, value + half, gap.shape[1])


def _growth(rows: pd.DataFrame, name: str, other_arm: float) -> Effect:
    return ratio(*(cell(rows, what=f"variance {other_arm:g}", label=name, x=x) for x in (6, 3)))


MEI = "Mei, Chung, Thomas, Dai, Szepesvari, Schuurmans, 2022, The Role of Baselines in Policy Gradient Optimization"
GROWTH = "tr Cov at 1 − π(a*) = 10⁻⁶ over that at 10⁻³"
for _id, _name, _arm, _words in (
    ("a", "V", 0.6, "With V"), ("b", "no baseline", 0.6, "Without a baseline"), ("c", "no baseline", 0.0, "Without a baseline"),
):  # fmt: skip
    claim(
        id=f"ME-1{_id}", sentence=f"{_words} the variance of the natural gradient grows without bound as π(a*) → 1.", source=MEI,
        tag="A", study="natural_on_two_arms", statistic=GROWTH, direction="above", bound=100.0,
        effect=lambda rows, name=_name, arm=_arm: _growth(rows, name, arm), needs=("natural_gradient",),
        condition=f"two arms, the worse pays {_arm:g}",
        control=Control(
            "with b* it does" if _arm else "with b* on an arm that pays it does", lambda rows: _bounded(rows)
        ),
    )  # fmt: skip


def _bounded(rows: pd.DataFrame) -> Effect:
    """Return how much of the variance is left with b* at the far policy, relative to the near one with V."""
    return ratio(cell(rows, what="variance 0.6", label="b*", x=6), cell(rows, what="variance 0.6", label="V", x=3))


claim(
    id="ME-1d", sentence="Yet with V learning converges at least as fast as 1/t.", source=MEI, tag="A",
    study="natural_on_two_arms", statistic="slope of log(1 − J) over log t, 25 to 800 updates", direction="below", bound=-0.9,
    effect=lambda rows: cell(rows, what="slope", label="V"), condition="two arms that pay 1 and 0.6, η = 1/2",
    control=Control("without a baseline too", lambda rows: cell(rows, what="slope", label="no baseline")),
)  # fmt: skip
claim(
    id="ME-1e", sentence="Without a baseline it can end on a worse arm.", source=MEI, tag="A", study="natural_on_two_arms",
    statistic="1 − J after 800 updates", direction="above", bound=0.05, condition="two arms that pay 1 and 0.6, η = 1/2",
    effect=lambda rows: cell(rows, panel="other arm pays 0.6", label="no baseline", x=LOGS[-1]),
    control=Control("with V too", lambda rows: cell(rows, panel="other arm pays 0.6", label="V", x=LOGS[-1])),
)  # fmt: skip


@study(
    "shared_critics",
    "Two bandits with three arms, rewards (1, 0.9, 0.8) and (0.4, 0.2, 0), learnt side by side (η = 2) without baseline, with "
    "one V for both, and with the V of each: mean distance of J from its maximum.",
    draw=curves("updates", "max r − J"),
)
def shared_critics(budget: Budget) -> pd.DataFrame:
    """Learn with each critic from the same random numbers."""
    rows, r = [], np.array(PAIR)
    log_pi = np.concatenate([_policies(budget), np.flip(_policies(budget), 1)])
    plain = bandits.mean_update(log_pi, r, bandits.none(log_pi, r), "plain")
    for name in ("shared V", "V of each"):
        other = bandits.mean_update(log_pi, r, CRITICS[name](log_pi, r), "plain")
        rows.append(row(name, float(np.abs(other - plain).max()), panel="", what="mean update"))
    # A baseline that sees the arm: half of what it paid.
    leak = bandits.mean_update(log_pi, r / 2, bandits.none(log_pi, r), "plain")
    rows.append(row("half the reward", float(np.abs(leak - plain).max()), panel="", what="mean update"))
    run = functools.partial(bandits.learn, PAIR, seed=budget.seed, runs=budget.n(4000), keep=UPDATES, step=ETA)
    gap = {name: run(baseline).gap for name, baseline in CRITICS.items()}
    gap["V of each, again"] = run(bandits.value, part=1).gap
    for e, rewards in enumerate(PAIR):
        title = "rewards " + ", ".join(f"{x:g}" for x in rewards)
        for name in CRITICS:
            rows += [row(name, mean_of(g), panel=title, x=x) for g, x in zip(gap[name][:, e], UPDATES, strict=True)]
        for name in ("no baseline", "shared V", "V of each, again"):
            for i, x in enumerate(UPDATES):
                if x in (10, 100):
                    rows.append(row(name, mean_of(gap[name][i, e] - gap["V of each"][i, e]), panel="", what=f"behind {e}", x=x))
    return pd.DataFrame(rows)


SHARED = "a 2026 paper on critics shared by environments, its example of two bandits"
SETTING = "rewards (1, 0.9, 0.8) and (0.4, 0.2, 0), η = 2"
claim(
    id="SC-1a", sentence="No baseline, a shared V and a V of each environment give the same mean update.", source=SHARED, tag="T",
    study="shared_critics", statistic="largest difference of mean updates over 2,000 policies, within 10⁻¹⁰", direction="within",
    bound=0.0, margin=1e-10, condition=SETTING,
    effect=lambda rows: Effect.exact(
        rows[(rows["what"] == "mean update") & (rows["label"] != "half the reward")]["value"].max()
    ),
    control=Control("so does half the reward drawn", lambda rows: cell(rows, what="mean update", label="half the reward")),
)  # fmt: skip
for _id, _label, _env, _after, _bound, _words in (
    ("b", "no baseline", 0, 100, 0.02, "Without a baseline an environment whose arms all pay ends worse than with its own V."),
    ("c", "shared V", 0, 100, 0.005, "With a shared V, too low for it, that environment ends worse than with its own V."),
    ("d", "shared V", 1, 10, 0.01, "An environment for which the shared V is too high learns more slowly at first."),
):
    claim(
        id=f"SC-1{_id}", sentence=_words, source=SHARED, tag="T", study="shared_critics", direction="above", bound=_bound,
        statistic=f"J with its own V less J with {_label} after {_after} updates, paired", condition=SETTING,
        effect=lambda rows, label=_label, env=_env, after=_after: cell(rows, what=f"behind {env}", label=label, x=after),
        control=Control(
            "so does another set of runs with its own V",
            lambda rows, env=_env, after=_after: cell(rows, what=f"behind {env}", label="V of each, again", x=after),
        ),
    )  # fmt: skip
