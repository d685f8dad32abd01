"""How close gradient estimates of a usual batch are to each other and to the gradient, along training: IL-1 to IL-3."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from varlab.analysis import agreement, estimates
from varlab.analysis import style as styles
from varlab.analysis.agreement import closed_form, pooled
from varlab.analysis.intervals import LOG, jackknife_interval
from varlab.analysis.mse import Estimate
from varlab.analysis.replicates import Replicated, combine
from varlab.estimators.baselines import Baseline
from varlab.studies.agents import Agent, Course, agents
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect
from varlab.studies.repeats import Estimates
from varlab.studies.repeats import estimates as sampled
from varlab.types import Reference
from varlab.values import CriticSettings

ILYAS = "Ilyas, Engstrom, Santurkar, Tsipras, Janoos, Rudolph, Madry 2020 (A Closer Look at Deep Policy Gradients)"
COURSES = {
    "CartPole": Course("CartPole-v1", 200, 0.97, {"init": 0, "mid": 8, "late": 16}, episodes=20, lr=3e-3),
    "Pendulum": Course("Pendulum-v1", 200, 0.9, {"init": 0, "late": 40}, episodes=10, lr=1e-2),
}
#: Estimates of half the usual batch, and trajectories behind V*, at the default budget; by world, for they differ in cost.
COUNT, FITTED = {"CartPole": 1000, "Pendulum": 500}, {"CartPole": 3000, "Pendulum": 1000}
#: State-action pairs of the usual batch.
USUAL = 2000
#: How many halves are pooled, from 1,000 to 100,000 pairs.
POOLED = (1, 2, 4, 10, 20, 40, 100)
USUALLY = 2
#: ρ²/(1 − ρ²) at the cosine ρ = 0.9 to the gradient: NSR times this is the N that reaches it.
NINE_TENTHS = 0.81 / 0.19
PRACTICE, ZERO, LEARNED, TRUE = "gae(lam=0.95)", "reward_to_go", "value_baseline", "V*"
BASELINES = {ZERO: "no baseline", LEARNED: "learned V", TRUE: "V*"}
BETWEEN, TO_GRADIENT, BY_BASELINE = "between two estimates", "to the gradient", "to the gradient, late, by baseline"
#: V*: it sees the time, and learns from many episodes.
FIT = CriticSettings(epochs=10, minibatch=2048, time_aware=True)


def batch_of(agent: Agent) -> int:
    """Return the trajectories whose steps are half the usual batch on average."""
    return max(1, round(USUAL / USUALLY / float(agent.rollout(500, "pilot").length.double().mean())))


def choices(agent: Agent, budget: Budget, fitted: int) -> list[object]:
    """Return the Φ measured at an agent: that of practice; late also G_t − V for three V."""
    if agent.label != "late":
        return [PRACTICE]
    net = agent.fitted(budget.n(fitted, least=100), FIT).network
    return [PRACTICE, ZERO, LEARNED, Baseline(lambda obs, t: net.value(obs, t).double(), TRUE)]


def reference_of(made: Estimates, phi: str) -> Reference:
    """Return E g as 50 blocks of further estimates hold it."""
    blocks = pooled(made.of(phi), len(made.mean) // agreement.BLOCKS)
    count = np.full(len(blocks), made.size * (len(made.mean) // len(blocks)))
    return Reference(blocks.mean(0), blocks, count, float("nan"), phi, int(count.sum()), "E g")


def effect(found: Replicated | Estimate, n: int, log: bool = False) -> Effect:
    """Return an estimate as an effect: cosines by their own interval, ratios (``log``) on the logarithm."""
    if log:
        sources = [found.without] if isinstance(found, Replicated) else found.sources
        if not (found.value > 0 and all((x > 0).all() for x in sources)):
            return Effect(float("nan"), float("nan"), float("nan"), n)
        return Effect(found.value, *jackknife_interval(found.value, sources, scale=LOG), n, log=True)
    return Effect(found.value, *agreement.interval(found), n)


def function(f: Callable[..., np.ndarray], *of: Estimate) -> Estimate:
    """Return a function of estimates that share their blocks and those of their references."""
    return Estimate(float(f(*(e.value for e in of))), f(*(e.own for e in of)), f(*(e.other for e in of)))


def apart(above: Replicated, below: Replicated) -> Estimate:
    """Return the ratio of independent estimates: blocks are left out of one at a time."""
    return Estimate(above.value / below.value, above.without / below.value, above.value / below.without)


def at_agent(agent: Agent, world: str, budget: Budget) -> tuple[list[dict], dict[str, Replicated]]:
    """Measure one agent.

    Args:
        agent: with its critic.
        world: its name in the rows.
        budget: number of estimates and seed.

    Returns:
        Rows: curves with a panel, numbers that claims read without one; and the numbers that stages are compared by.
    """
    job = agent.job(choices(agent, budget, FITTED[world]))
    size, count = batch_of(agent), budget.n(COUNT[world], least=100, multiple=100)
    made, other = (sampled(job, size, count, stream) for stream in ("rollout", "reference"))
    x, n, pairs = made.of(PRACTICE), size * count, size * made.mean_length
    rows, key = [], {"world": world, "stage": agent.label}

    def number(what: str, e: Effect, label: str = "") -> None:
        rows.append(row(label or agent.label, e, panel="", what=what, **key))

    def curve(panel: str, label: str, phi: str, reference: Reference | None) -> None:
        for k in POOLED:
            y = pooled(made.of(phi), k)
            if len(y) < agreement.LEAST:
                continue
            form = closed_form(made.of(phi), size, k * size).value
            found = agreement.between(y) if reference is None else agreement.to_gradient(y, reference)
            exact = form if reference is None else np.sqrt(max(form, 0.0))
            rows.append(row(label, effect(found, n), panel=panel, x=k * pairs, exact=exact, what="curve", **key))

    usual, reference = pooled(x, USUALLY), reference_of(other, PRACTICE)
    curve(BETWEEN, agent.label, PRACTICE, None)
    curve(TO_GRADIENT, agent.label, PRACTICE, reference)
    between, form = agreement.between(usual), closed_form(usual, USUALLY * size, USUALLY * size)
    nsr = agreement.noise_to_signal(x, pairs)
    number("between", effect(between, n))
    number("between, many", effect(agreement.between(pooled(x, POOLED[-1])), n))
    number("closed form", effect(between / form, n, log=True))
    number("root of closed form", effect(combine(lambda a, b: a / np.sqrt(b), between, form), n, log=True))
    number("to gradient", effect(agreement.to_gradient(usual, reference), n))
    number("to gradient, many", effect(agreement.to_gradient(pooled(x, POOLED[-1]), reference), n))
    number("usual batches", effect(nsr.scaled(NINE_TENTHS / USUAL), n, log=True))
    number("reference error", Effect.exact(agreement.reference_error(reference)))
    number("pairs", Effect.exact(USUALLY * pairs))
    number("return", Effect.exact(agent.mean_return))
    if agent.label == "late":
        # All three have the mean of the one with the least variance.
        truth = reference_of(other, TRUE)
        for phi, label in BASELINES.items():
            curve(BY_BASELINE, label, phi, truth)
        zero, learned, true = (agreement.to_gradient(pooled(made.of(phi), USUALLY), truth) for phi in BASELINES)
        pairs_of = {"V* over learned": (true, learned), "learned over zero": (learned, zero), "zero over learned": (zero, learned)}
        for what, two in {**pairs_of, "learned over V*": (learned, true)}.items():
            number(what, effect(function(np.divide, *two), n, log=True))
        number("gain of learned", effect(function(np.subtract, learned, zero), n))
        number("gain of V*", effect(function(np.subtract, true, zero), n))
        number("share of learned", effect(function(lambda a, b, c: (a - c) / (b - c), learned, true, zero), n))
    return rows, {"between": between, "nsr": nsr}


def at_world(course: Course, world: str, budget: Budget) -> list[dict]:
    """Train an agent and measure it at every stage; compare the last with the first."""
    rows, found = [], {}
    for label, agent in agents(course, budget.seed).items():
        more, found[label] = at_agent(agent, world, budget)
        rows += more
    n = next(r["n"] for r in rows if r["what"] == "between")
    key = {"panel": "", "world": world, "stage": "late"}
    for what in ("between", "nsr"):
        for above, below in (("late", "init"), ("init", "late")):
            rows.append(row(f"{above} over {below}", effect(apart(found[above][what], found[below][what]), n, log=True), what=what, **key))
    return rows


@study(
    "gradient_quality",
    "Mean cosine of independent gradient estimates against their number of state-action pairs, agents with 64-64 networks frozen "
    "along training (CartPole-v1 with γ = 0.97, Pendulum-v1 with γ = 0.9, horizon 200, steps without the weight γ^t). Left and "
    "middle: GAE(0.95) with the agent's own V, between two estimates and to E g of an independent sample. Right: G_t − V with no V, "
    "the agent's, and one fitted on many pairs. Dotted: 1/(1 + NSR/N) and its root.",
    draw=lambda rows, style=None: draw(rows, style),
)
def gradient_quality(budget: Budget) -> pd.DataFrame:
    """Return cosines by world, stage and batch size, and the numbers that the claims are about."""
    return pd.DataFrame([r for world, course in COURSES.items() for r in at_world(course, world, budget)])


def draw(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the curves, a row of panels for each world."""
    shown = rows[rows["panel"] != ""]
    return estimates.draw(
        shown.assign(panel=shown["world"] + ": " + shown["panel"]).sort_values("world", kind="stable"), style,
        xlabel="state-action pairs", ylabel="cosine", log="x", columns=3,
    )  # fmt: skip
