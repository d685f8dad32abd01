"""Claims about averages over actions in place of the action taken: AA-1 and AA-2, exact but for one measurement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn

from varlab import policies
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs import lqg
from varlab.experiment import measure
from varlab.oracles.components import components
from varlab.oracles.quadrature import listed
from varlab.rng import Streams, numpy_generator
from varlab.studies.biased_critic import BiasedCritic
from varlab.studies.claims import control_variates as orders
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, geometric_mean_of, ratio, row
from varlab.studies.claims.control_variates import PATH, ROUNDING, STEP
from varlab.studies.claims.random_worlds import drawn
from varlab.studies.claims.verdicts import Effect
from varlab.values.linear_quadratic import QuadraticValues, gradient

AVERAGE, TAKEN, ADVANTAGE = "all_action", "q_value", "advantage"
#: Three nodes a dimension are enough for the quadratic Q of linear systems.
NODES = "all_action(nodes=3)"
SYSTEMS = 20
#: Steps, state and action dimensions of the system that is measured.
MEASURED = (20, 4, 2)
TRAJECTORIES = (10, 100, 1_000, 10_000)
EPSILON = np.geomspace(0.01, 2.0, 24)
SAMPLED = "value_baseline"


def system(seed: int, number: int, horizon: int, state_dim: int, action_dim: int) -> tuple[lqg.LQG, nn.Module]:
    """Return random linear system ``number`` of a root seed and a random linear policy on it, in float64."""
    own = int(numpy_generator(Streams(seed).sequence("theta", number)).integers(2**31))
    env = lqg.random_system(horizon, seed=own, state_dim=state_dim, action_dim=action_dim)
    return env, policies.prepare(policies.make("linear", env, theta_seed=own), torch.float64, torch.device("cpu"))


def draw_averages(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw points, one panel for each kind of world."""
    return estimates.draw(rows[rows["panel"] != ""], style, xlabel="ratio to the advantage", log="x", columns=3)


@study(
    "all_actions",
    "Variance with the sum over actions, and with Q of the action taken, as a ratio to that with its advantage, values exact: "
    "sums of the steps' own variances on random MDPs, whole trajectories on small random linear systems by quadrature (geometric "
    "means over worlds), and measured on a linear system of 20 steps.",
    draw=draw_averages,
)
def all_actions(budget: Budget) -> pd.DataFrame:
    """Take exact components on random MDPs, quadrature on small linear systems, and measure on a longer one."""
    rows = []
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(budget.n(300, least=50)):
        world = drawn(budget.seed, number)
        made = {phi: components(*world, phi) for phi in (AVERAGE, TAKEN, ADVANTAGE)}
        for phi, c in made.items():
            found.setdefault(("action part", phi), []).append(float(c.action.sum() / made[TAKEN].step.sum()))
            found.setdefault(("steps", phi), []).append(float(c.step.sum() / made[TAKEN].step.sum()))
            found.setdefault(("mean", phi), []).append(float(c.step.sum() / made[ADVANTAGE].step.sum()))
    for (what, phi), x in found.items():
        if what == "mean":
            rows.append(row(phi, geometric_mean_of(np.array(x)), panel="steps of MDPs", what=what))
        else:
            rows.append(row(phi, max(x), panel="", what=what))
    return pd.DataFrame([*rows, *_small_systems(budget), *_long_system(budget)])


def _small_systems(budget: Budget) -> list[dict[str, object]]:
    """Return rows of systems of two steps: ratios of variances, and how far means are from ∇J."""
    ratios: dict[str, list[float]] = {}
    off: dict[str, list[float]] = {}
    for number in range(SYSTEMS):
        env, policy = system(budget.seed, number, 2, 1, 1)
        paths, values = listed(env, policy), QuadraticValues.of(env, policy, 1.0)
        g = paths.gradients((NODES, TAKEN, ADVANTAGE), values)
        flat = paths.gradients(NODES, replace(values, q_hessian=_straight(values.q_hessian)))
        variance = paths.covariance(g).diagonal()
        grad = gradient(env, policy, 1.0)[0]
        for phi, v, mean in zip((AVERAGE, TAKEN, ADVANTAGE), variance, paths.mean(g), strict=True):
            ratios.setdefault(phi, []).append(float(v / variance[2]))
            off.setdefault(phi, []).append(float((mean - grad).norm() / grad.norm()))
        off.setdefault("without curvature", []).append(float((paths.mean(flat)[0] - grad).norm() / grad.norm()))
    rows = [row(phi, geometric_mean_of(np.array(x)), panel="linear systems", what="mean") for phi, x in ratios.items()]
    rows += [row(phi, max(x), panel="", what="systems") for phi, x in ratios.items()]
    return [*rows, *(row(phi, max(x), panel="", what="off ∇J") for phi, x in off.items())]


def _straight(hessian: torch.Tensor) -> torch.Tensor:
    """Return [H, S + 1, S + 1] without what is quadratic in the action."""
    out = hessian.clone()
    out[:, -1, -1] = 0.0
    return out


def _long_system(budget: Budget) -> list[dict[str, object]]:
    """Measure on a system of 20 steps, 4 state and 2 action dimensions."""
    env, policy = system(budget.seed, SYSTEMS, *MEASURED)
    n = budget.n(2000)
    found = measure(env, policy, (ADVANTAGE, NODES, TAKEN), n=n, seed=budget.seed, dtype="float64", pilot=200).summary
    names = ["variance_ratio", "variance_ratio_low", "variance_ratio_high"]
    effects = [1.0, *(Effect(*(float(x) for x in r), n, log=True) for r in found[names].to_numpy()[1:])]
    return [
        row(phi, e, panel="20 steps, measured", what="measured")
        for phi, e in zip((ADVANTAGE, AVERAGE, TAKEN), effects, strict=True)
    ]


PETIT = "Petit, Amdahl-Culleton, Liu, Smith, Bacon, 2019, All-Action Policy Gradient Methods"
claim(
    id="AA-1a", sentence="A sum over all actions leaves nothing of the variance that the choice of a_t brings into its own step.",
    source=PETIT, tag="A", study="all_actions", direction="within", bound=0.0, margin=ROUNDING, condition="exact Q",
    statistic="action parts of all steps over the steps' variances with Q, largest over random MDPs, within 10⁻⁹",
    effect=lambda rows: cell(rows, what="action part", label=AVERAGE), needs=(AVERAGE,),
    control=Control("nor does the advantage", lambda rows: cell(rows, what="action part", label=ADVANTAGE)),
)  # fmt: skip
claim(
    id="AA-1b", sentence="The terms of its steps have less variance than those of the actions taken.", source=PETIT, tag="A",
    study="all_actions", statistic="sum of the steps' variances over that with Q, largest over random MDPs", direction="below",
    bound=1.0, effect=lambda rows: cell(rows, what="steps", label=AVERAGE), needs=(AVERAGE, TAKEN), condition="exact Q",
    control=Control("so have those of the advantage", lambda rows: cell(rows, what="steps", label=ADVANTAGE)),
)  # fmt: skip


def _built_gap(rows: pd.DataFrame, phi: str) -> Effect:
    """Return the variance less that of Q in the world of crossed gaps."""
    own, taken = (cell(rows, what="crossed gaps", label=x).value for x in (phi, TAKEN))
    return Effect.exact(own - taken)


claim(
    id="AA-1c", sentence="The whole gradient has less variance than with the actions taken.", source=PETIT, tag="A",
    study="control_variate_order", statistic="variance less that with Q in a world of two steps that share a logit",
    direction="below", bound=0.0, effect=lambda rows: _built_gap(rows, AVERAGE), condition="in general, exact Q",
    needs=(AVERAGE, TAKEN),
    control=Control("so has it with the advantage", lambda rows: _built_gap(rows, ADVANTAGE)),
)  # fmt: skip
claim(
    id="AA-1d", sentence="The whole gradient has less variance than with the actions taken.", source=PETIT, tag="A",
    study="control_variate_order", statistic="share of random MDPs in which it has less than with Q, at least 0.95",
    direction="above", bound=0.95, effect=lambda rows: orders.below(rows, AVERAGE, TAKEN), needs=(AVERAGE, TAKEN),
    condition="random MDPs of three steps, exact Q",
    control=Control("share in which A has less than the sum over actions", lambda rows: orders.below(rows, ADVANTAGE, AVERAGE)),
)  # fmt: skip
claim(
    id="AA-1e", sentence="Over continuous actions the sum becomes an integral that three Gauss-Hermite nodes make exact.",
    source="Ciosek, Whiteson, 2018, Expected Policy Gradients", tag="A", study="all_actions", direction="within", bound=0.0,
    margin=ROUNDING, statistic="‖E ĝ − ∇J‖/‖∇J‖, largest over 20 random linear systems, within 10⁻⁹", needs=(AVERAGE,),
    effect=lambda rows: cell(rows, what="off ∇J", label=AVERAGE), condition="Q quadratic in the action",
    control=Control("without Q's curvature too", lambda rows: cell(rows, what="off ∇J", label="without curvature")),
)  # fmt: skip
claim(
    id="AA-1f", sentence="Over continuous actions the integral has less variance than the action taken.", source=PETIT, tag="A",
    study="all_actions", statistic="variance over that with the advantage, largest over 20 random linear systems",
    direction="below", bound=1.0, effect=lambda rows: cell(rows, what="systems", label=AVERAGE), needs=(AVERAGE, ADVANTAGE),
    condition="two steps, exact values",
    control=Control("so has Q of the action taken", lambda rows: cell(rows, what="systems", label=TAKEN)),
)  # fmt: skip
claim(
    id="AA-1g", sentence="Over continuous actions the integral has less variance than the action taken.", source=PETIT, tag="A",
    study="all_actions", statistic="variance over that with the advantage, measured", direction="below", bound=0.5,
    effect=lambda rows: cell(rows, what="measured", label=AVERAGE), needs=(AVERAGE, ADVANTAGE),
    condition="a linear system of 20 steps, exact values; by half at least",
    control=Control("so has Q of the action taken", lambda rows: cell(rows, what="measured", label=TAKEN)),
)  # fmt: skip


@study(
    "biased_critic",
    "Mean square error of the mean of N trajectories over ‖∇J‖², exact, where Q + ε e takes the place of Q; ε = 1 is an error as "
    "large as the advantage. The sum over actions takes on the bias of the critic, G − V and the control variate do not.",
    draw=curves(r"error of the critic $\varepsilon$", r"MSE / $\|\nabla J\|^2$", "xy"),
)
def biased_critic(budget: Budget) -> pd.DataFrame:
    """Take exact bias and variance on one random MDP; nothing is sampled but the world."""
    case = BiasedCritic.drawn(budget.seed)
    rows = []
    for n in TRAJECTORIES:
        for phi in (AVERAGE, SAMPLED, PATH):
            for epsilon, x in zip(EPSILON, case.mse(phi, EPSILON, n), strict=True):
                rows.append(row(phi, float(x), panel=f"N = {n:,}", x=float(epsilon)))
        for phi in (AVERAGE, PATH):
            rows.append(row(phi, case.crossover(phi, SAMPLED, n), panel="", x=float(n), what="crossover"))
    for phi in (AVERAGE, SAMPLED, STEP, PATH):
        bias, variance = case.moments(phi, 1.0)
        rows.append(row(phi, bias, panel="", x=1.0, what="bias"))
        rows.append(row(phi, variance, panel="", x=1.0, what="variance"))
    return pd.DataFrame(rows)


def _crossed(rows: pd.DataFrame, phi: str) -> Effect:
    return ratio(*(cell(rows, what="crossover", label=phi, x=float(n)) for n in (10_000, 100)))


def _variance(rows: pd.DataFrame, phi: str) -> Effect:
    return ratio(*(cell(rows, what="variance", label=x) for x in (phi, SAMPLED)))


CRITIC = "a random MDP of ten steps; the critic's error as large as the advantage"
claim(
    id="AA-2a", sentence="With a critic that errs the sum over actions is biased.", source=PETIT, tag="A", study="biased_critic",
    statistic="‖E ĝ − ∇J‖/‖∇J‖", direction="above", bound=0.1, effect=lambda rows: cell(rows, what="bias", label=AVERAGE),
    condition=CRITIC, needs=(AVERAGE,),
    control=Control("so is Q as a control variate", lambda rows: cell(rows, what="bias", label=STEP)),
)  # fmt: skip
claim(
    id="AA-2b", sentence="In exchange it has less variance than the sampled return.", source=PETIT, tag="A",
    study="biased_critic", statistic="variance over that of G − V with the same critic", direction="below", bound=0.5,
    effect=lambda rows: _variance(rows, AVERAGE), condition=f"{CRITIC}; by half at least", needs=(AVERAGE, SAMPLED),
    control=Control("so has Q as a control variate", lambda rows: _variance(rows, STEP)),
)  # fmt: skip
claim(
    id="AA-2c", sentence="The more trajectories there are, the better the critic has to be for the exchange to pay.",
    source=PETIT, tag="X", study="biased_critic", direction="below", bound=0.5, needs=(AVERAGE, SAMPLED),
    statistic="critic error at which both have the same MSE, with 10,000 trajectories over that with 100",
    condition="a random MDP of ten steps",
    effect=lambda rows: _crossed(rows, AVERAGE),
    control=Control("for Q as a control variate along the trajectory to pay", lambda rows: _crossed(rows, PATH)),
)  # fmt: skip
