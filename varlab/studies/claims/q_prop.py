"""Claims about a critic's first-order expansion as control variate: QP-1, exact on linear systems and measured on Pendulum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd
from torch import Tensor

from varlab import envs, policies
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.estimators.base import Batch
from varlab.estimators.taylor import QProp
from varlab.experiment import measure
from varlab.oracles.quadrature import listed
from varlab.studies.claims.action_averages import system
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.control_variates import ROUNDING
from varlab.studies.claims.verdicts import Effect
from varlab.values.critic import CriticSettings
from varlab.values.linear_quadratic import QuadraticValues, gradient

SYSTEMS = 20
STEPS = 3
#: Factors on the exact Q.
FACTORS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)
PAIRED, OPPOSITE = "Pendulum-v1, paired", "with −Q"
#: A ratio of variances that counts as cut.
ENOUGH = 0.95
PENDULUM, CRITIC = 100, CriticSettings(n=1000, hidden=(32, 32), epochs=10)


@dataclass(frozen=True)
class TurnedQProp(QProp):
    """Q-Prop with the sign of the term that is put back turned round: biased."""

    name = "turned_q_prop"

    def node_phi(self, batch: Batch) -> Tensor:
        """Return the negative of what belongs there, [M, J]."""
        return -super().node_phi(batch)


@dataclass(frozen=True)
class OppositeQProp(QProp):
    """Q-Prop with −Q in the place of Q in both terms: unbiased, as for any Q."""

    name = "opposite_q_prop"

    def phi(self, batch: Batch) -> Tensor:
        """Return Φ_t with −Q."""
        return super().phi(_opposite(batch))

    def node_phi(self, batch: Batch) -> Tensor:
        """Return ψ_tj with −Q."""
        return super().node_phi(_opposite(batch))


def _opposite(batch: Batch) -> Batch:
    return replace(batch, values=replace(batch.values, q_slope=-batch.values.q_slope))


def scaled(values: QuadraticValues, factor: float) -> QuadraticValues:
    """Return the same V with Q times a factor."""
    q = {name: factor * getattr(values, name) for name in ("q_hessian", "q_slope", "q_constant")}
    return replace(values, **q)


def draw_factors(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the ratio in every linear system against the factor on Q."""
    return estimates.draw(
        rows[rows["panel"] != ""], style, xlabel="factor on the exact Q", ylabel="variance over that of $G_t-V_t$", line=1.0
    )


@study(
    "q_prop_linear",
    "Variance of Q-Prop over that of G − V on random linear systems of three steps by quadrature, with exact V and the exact Q "
    "times a factor: least, middle and largest of the systems.",
    draw=draw_factors,
    version=2,
)
def q_prop_linear(budget: Budget) -> pd.DataFrame:
    """Take mean and variance by quadrature; nothing is sampled but the systems."""
    ratios: dict[float, list[float]] = {x: [] for x in FACTORS}
    off: dict[str, list[float]] = {"q_prop": [], "turned_q_prop": []}
    for number in range(SYSTEMS):
        env, policy = system(budget.seed, number, STEPS, 1, 1)
        paths, values, grad = listed(env, policy), QuadraticValues.of(env, policy, 1.0), gradient(env, policy, 1.0)[0]
        for factor in FACTORS:
            chosen = ["value_baseline", QProp(), *([TurnedQProp()] if factor == 0.5 else [])]
            g = paths.gradients(chosen, scaled(values, factor))
            variance, mean = paths.covariance(g).diagonal(), paths.mean(g)
            ratios[factor].append(float(variance[1] / variance[0]))
            for e, m in zip(chosen[1:], mean[1:], strict=True):
                off[e.name].append(float((m - grad).norm() / grad.norm()))
    rows = [row(name, max(x), panel="", what="off ∇J") for name, x in off.items()]
    for factor, x in ratios.items():
        ordered = sorted(x)
        for name, value in zip(("least", "middle", "largest"), (ordered[0], ordered[len(x) // 2], ordered[-1]), strict=True):
            rows.append(row(name, value, panel=f"{SYSTEMS} linear systems", x=factor, what="ratio"))
    return pd.DataFrame(rows)


def draw_pendulum(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw both ratios and the bound of the claim."""
    return estimates.draw(rows[rows["panel"] != ""], style, xlabel="variance over that of $G_t-V_t$", line=ENOUGH)


@study(
    "q_prop_pendulum",
    "Variance of Q-Prop, and of Q-Prop with −Q, over that of G − V with the same learned critic, paired; dashed, what counts as "
    f"a cut. Pendulum-v1, {PENDULUM} steps, γ = 0.97, a small network as policy, critics fitted to {CRITIC.n:,} other "
    "trajectories.",
    draw=draw_pendulum,
    version=2,
)
def q_prop_pendulum(budget: Budget) -> pd.DataFrame:
    """Measure with learned critics."""
    env = envs.make("Pendulum-v1", horizon=PENDULUM)
    policy = policies.make("mlp", env, hidden=(16, 16))
    phi = ["value_baseline", QProp(), OppositeQProp(), "reward_to_go"]
    n = budget.n(1500)
    found = measure(
        env, policy, phi, n=n, gamma=0.97, seed=budget.seed, pilot=200, n_reference=200, critic=CRITIC, per_parameter=False
    ).summary
    shown = {"q_prop": ("q_prop", PAIRED), "opposite_q_prop": (OPPOSITE, PAIRED), "reward_to_go": ("reward_to_go", "")}
    rows = {r.phi.partition("(")[0]: r for r in found.itertuples()}
    ratios = {k: Effect(r.variance_ratio, r.variance_ratio_low, r.variance_ratio_high, n, log=True) for k, r in rows.items()}
    return pd.DataFrame([row(label, ratios[name], panel=panel) for name, (label, panel) in shown.items()])


GU = "Gu, Lillicrap, Ghahramani, Turner, Levine, 2017, Q-Prop; Liu, Feng, Mao, Zhou, Peng, Liu, 2018, Stein control variates"


def _extreme(rows: pd.DataFrame, which: str, *factors: float) -> Effect:
    return Effect.exact(max(cell(rows, what="ratio", label=which, x=x).value for x in factors))


claim(
    id="QP-1a", sentence="Q-Prop leaves the gradient unbiased whatever the critic says.", source=GU, tag="M",
    study="q_prop_linear", direction="within", bound=0.0,
    statistic="‖E ĝ − ∇J‖/‖∇J‖, largest over 20 linear systems and Q times −1 … 3, within 10⁻⁹",
    margin=ROUNDING, effect=lambda rows: cell(rows, what="off ∇J", label="q_prop"), needs=("q_prop",),
    control=Control(
        "so it does with the sign of what is put back turned", lambda rows: cell(rows, what="off ∇J", label="turned_q_prop")
    ),
)  # fmt: skip
claim(
    id="QP-1b", sentence="Q-Prop cuts the variance at a fixed policy.", source=GU, tag="M", study="q_prop_linear",
    statistic="variance over that of G − V, largest over 20 random linear systems", direction="below", bound=1.0,
    effect=lambda rows: _extreme(rows, "largest", 1.0), condition="linear systems of three steps, exact V and Q",
    needs=("q_prop", "value_baseline"),
    control=Control("so it does with −Q", lambda rows: _extreme(rows, "largest", -1.0)),
)  # fmt: skip
claim(
    id="QP-1c", sentence="Q-Prop cuts the variance at a fixed policy.", source=GU, tag="M", study="q_prop_linear",
    statistic="variance over that of G − V, largest over 20 random linear systems with Q times 3", direction="below", bound=1.0,
    effect=lambda rows: _extreme(rows, "largest", 3.0), condition="in general, whatever the critic",
    needs=("q_prop", "value_baseline"),
    control=Control("in any one of them, with −Q", lambda rows: _extreme(rows, "least", -1.0)),
)  # fmt: skip
claim(
    id="QP-1d", sentence="Q-Prop cuts the variance at a fixed policy.", source=GU, tag="M", study="q_prop_pendulum",
    statistic="paired ratio of variances to G − V with the same critic, at most 0.95", direction="below", bound=ENOUGH,
    effect=lambda rows: cell(rows, label="q_prop"), needs=("q_prop", "value_baseline"),
    condition="Pendulum-v1, 100 steps, learned critic; by 5 % at least",
    control=Control("so it does with −Q", lambda rows: cell(rows, label=OPPOSITE)),
)  # fmt: skip
