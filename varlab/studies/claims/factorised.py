"""Claims about baselines that see the other dimensions of the action: WU-1 by quadrature, WU-2 by closed form and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from varlab import estimators, policies
from varlab.analysis import estimates, marks
from varlab.analysis import style as styles
from varlab.envs import lqg
from varlab.envs.closed_form import gaussian_bandit, gaussian_bandit_variance
from varlab.estimators.base import Batch
from varlab.estimators.factorised import FactorisedBaseline
from varlab.estimators.nodes import with_nodes
from varlab.experiment import measure
from varlab.oracles.quadrature import listed
from varlab.oracles.units import Listed
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, mean_of, row
from varlab.studies.claims.control_variates import ROUNDING
from varlab.studies.claims.verdicts import Effect
from varlab.values.functions import FunctionValues
from varlab.values.linear_quadratic import QuadraticValues, gradient

BANDITS, DIMS = 20, 3
SMALL, WIDE = 10, 1000
#: The four baselines of the closed form.
BASELINES = ("none", "value", "optimal", "factorised")
OPTIMAL, MEAN = FactorisedBaseline(3, "optimal"), FactorisedBaseline(3, "mean")
STATE, NONE = "value_baseline", "reward_to_go"


@dataclass(frozen=True)
class LeakingBaseline(FactorisedBaseline):
    """A factorised baseline that sees half of its own dimension's noise: biased."""

    name = "leaking_baseline"

    def baselines(self, batch: Batch) -> Tensor:
        """Return b_d + (a_td − μ_td)/2, [M, D]."""
        return super().baselines(batch) + 0.5 * (batch.traj.action - batch.traj.nodes.mean)


class SharedMean(nn.Module):
    """a_d ~ N(θ, 1) in every dimension d, with one θ = 0 for all."""

    def __init__(self, dims: int) -> None:
        """Make θ."""
        super().__init__()
        self.dims, self.theta = dims, nn.Parameter(torch.zeros(1))

    def forward(self, obs: Tensor) -> Independent:
        """Return the distribution at observations [n, 1]."""
        mean = self.theta.expand(len(obs), self.dims)
        return Independent(Normal(mean, torch.ones_like(mean)), 1)


def quadratic_bandit(cost: Tensor) -> lqg.LQG:
    """Return the bandit r = −aᵀ R a, a linear system of one step whose only state stays 0."""
    zero, m = torch.zeros(1, 1), len(cost)
    system = lqg.LinearQuadratic(zero, torch.zeros(1, m), zero, cost, zero, torch.zeros(1), zero)
    return lqg.environment(system, 1, "quadratic bandit")


def only_means(env: lqg.LQG, mean: Tensor, log_std: Tensor) -> policies.Linear:
    """Return N(mean, diag σ²) in float64 with the mean as only parameter."""
    policy = policies.prepare(policies.make("linear", env), torch.float64, torch.device("cpu"))
    for name, p in policy.named_parameters():
        p.requires_grad_(name == "net.bias")
    with torch.no_grad():
        policy.net.weight.zero_()
        policy.net.bias.copy_(mean)
        policy.log_std.value.copy_(log_std)
    return policy


def loss(paths: Listed, baseline: Tensor | float, best: Tensor, weighted: bool = True) -> float:
    """Return Σ_d E[Z_d (b_d − b*_d)²] on a list of one-step paths.

    Args:
        paths: of a policy whose only parameters are its means.
        baseline: b, [M, D] or what spreads to it.
        best: b* [M, D].
        weighted: with Z_d = E[z_d² | s] = 1/σ_d²; else with 1.

    Returns:
        The sum.
    """
    scale = paths.policy.log_std.value.detach().exp() if weighted else 1.0
    return float(paths.probability @ ((baseline - best).square() / scale**2).sum(1))


def seen(paths: Listed, values: QuadraticValues, estimator: FactorisedBaseline) -> Tensor:
    """Return the b_d(a without a_d) of an estimator on listed paths, [M, D]."""
    traj = with_nodes(paths.policy, paths.traj, estimator.nodes, estimator.rule)
    return estimator.baselines(Batch(traj, values(traj, estimator.asks), 1.0)).detach()


def draw_gain(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the ratios, one panel for each kind of policy."""
    return estimates.draw(rows[rows["panel"] != ""], style, xlabel="variance over that with V", line=1.0)


@study(
    "factorised_bandit",
    "Variance over that with V on random bandits r = −aᵀ R a with three action dimensions and independent means (mean over "
    "bandits with its interval), and on one with a mean that two dimensions share: exact, by quadrature.",
    draw=draw_gain,
)
def factorised_bandit(budget: Budget) -> pd.DataFrame:
    """Take means, variances and the sum of squares by quadrature; nothing is sampled but the bandits."""
    off: dict[str, list[float]] = {}
    miss: dict[str, list[float]] = {"weighted": [], "unweighted": []}
    over: dict[str, list[float]] = {"optimal": [], "mean": []}
    for number in range(BANDITS):
        draw = numpy_generator(Streams(budget.seed).sequence("theta", number))
        root, mean, log_std = (torch.from_numpy(draw.standard_normal(x)) for x in ((DIMS, DIMS), DIMS, DIMS))
        env = quadratic_bandit(root @ root.T)
        policy = only_means(env, mean, log_std / 3)
        paths, values, grad = listed(env, policy), QuadraticValues.of(env, policy, 1.0), gradient(env, policy, 1.0)[0]
        wrong = FunctionValues(v=values.v, q=lambda s, a, t: (a[:, 0] * a[:, 1]).cos() - a[:, 2] ** 3)
        for source in (values, wrong):
            chosen = (OPTIMAL, MEAN, LeakingBaseline(3))
            for e, g in zip(chosen, paths.mean(paths.gradients(chosen, source)), strict=True):
                off.setdefault(e.name, []).append(float((g - grad).norm() / grad.norm()))
        best, other, state, none = paths.covariance(paths.gradients((OPTIMAL, MEAN, STATE, NONE), values)).diagonal().tolist()
        least = seen(paths, values, OPTIMAL)
        v = values(paths.traj, frozenset("v")).v.unsqueeze(1)
        for b, variance in ((seen(paths, values, MEAN), other), (v, state), (0.0, none)):
            for name, weighted in (("weighted", True), ("unweighted", False)):
                miss[name].append(abs(loss(paths, b, least, weighted) / (variance - best) - 1))
        over["optimal"].append(best / state)
        over["mean"].append(other / state)
    rows = [row(name, max(x), panel="", what="off ∇J") for name, x in off.items()]
    rows += [row(name, max(x), panel="", what="gain") for name, x in miss.items()]
    for name, x in over.items():
        rows.append(row(name, mean_of(np.array(x)), panel="independent means", what="over"))
        rows.append(row(name, max(x), panel="", what="largest"))
    return pd.DataFrame([*rows, *_shared()])


def _shared() -> list[dict[str, object]]:
    """Return rows of r = −(a_1 − a_2)² with one mean for both dimensions: V is −2, and z = a_1 + a_2 is independent of r."""
    env = quadratic_bandit(torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64))
    paths = listed(env, SharedMean(2))
    values = FunctionValues(v=lambda s, t: -2.0 + 0.0 * t, q=lambda s, a, t: -((a[:, 0] - a[:, 1]) ** 2))
    found = paths.covariance(paths.gradients((OPTIMAL, MEAN, STATE), values)).diagonal().tolist()
    return [
        row(name, v / found[2], panel="a shared mean", what="shared") for name, v in zip(("optimal", "mean"), found, strict=False)
    ]


#: Whose colour and marker each baseline of the closed form takes.
LOOKS = {"none": NONE, "value": STATE, "optimal": "constant_baseline", "factorised": "factorised_baseline"}
NAMES = {"none": "b = 0", "value": "V", "optimal": "best constant", "factorised": "factorised"}


def draw_dimension(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the four closed forms as lines over m, and what was measured as points with intervals."""
    shown = rows[rows["panel"] != ""]
    m = np.unique(np.geomspace(1, 2 * WIDE, 60).round().astype(int))
    with styles.context(style) as s:
        width = s.width(wide=False)
        figure = styles.Figure(figsize=(width, (0.85 if width < s.text else 0.5) * width), layout="constrained")
        ax = figure.subplots()
        keys, values = [], set()
        for name in BASELINES:
            look = styles.look(LOOKS[name])
            line = [gaussian_bandit_variance(int(x), name) for x in m]
            values |= {float(min(line)), float(max(line))}
            ax.plot(m, line, color=look.color, linewidth=0.8)
            here = shown[shown["label"] == name]
            ax.vlines(here["x"], here["value_low"], here["value_high"], color=look.color, linewidth=2.5)
            ax.plot(here["x"], here["value"], look.marker, color=look.color, markerfacecolor=look.face)
            same = {"color": look.color, "linewidth": 0.8, "marker": look.marker, "markerfacecolor": look.face}
            keys += ax.plot([], [], label=NAMES[name], **same)
        marks.log(ax, "x", {1.0, 2.0 * WIDE}, margin=1.1)
        marks.log(ax, "y", values)
        ax.grid(axis="both")
        ax.set_xlabel("action dimension $m$")
        ax.set_ylabel("variance of a coordinate")
        marks.below(figure, keys, 2 if width < s.text else 4)
    return figure


@study(
    "factorised_dimension",
    "Variance of one coordinate of g on the bandit r = −‖a‖², a ~ N(0, I), against the action dimension m: (m + 2)(m + 4), "
    "2(m + 4), 2(m + 2) and 6 in closed form (lines), measured at m = 10 and 1,000 (points with intervals).",
    draw=draw_dimension,
)
def factorised_dimension(budget: Budget) -> pd.DataFrame:
    """Measure at two dimensions, and compare the closed form with quadrature at small ones."""
    rows = []
    for m, n in ((SMALL, budget.n(40_000)), (WIDE, budget.n(200, least=50))):
        env, policy, values, phi = bandit(m)
        found = measure(
            env, policy, list(phi.values()), n=n, seed=budget.seed, values=values, pilot=50, dtype="float64", per_parameter=False
        ).summary  # the first Φ is the one that ratios are to
        for name, r in zip(phi, found.itertuples(), strict=True):
            v = Effect(r.variance / m, r.variance_low / m, r.variance_high / m, n, log=True)
            rows.append(row(name, v, panel="measured", x=m, exact=float(gaussian_bandit_variance(m, name)), what="variance"))
            ratio = Effect(r.variance_ratio, r.variance_ratio_low, r.variance_ratio_high, n, log=True)
            rows.append(row(name, ratio if name != "factorised" else 1.0, panel="", x=m, what="over factorised"))
    miss: dict[str, list[float]] = {"closed form": [], "one dimension less": []}
    for m in (1, 2, 3):
        env, policy, values, phi = bandit(m)
        paths = listed(env, policy)
        variance = paths.covariance(paths.gradients(list(phi.values()), values)).diagonal() / m
        for name, v in zip(phi, variance, strict=True):
            for label, dims in (("closed form", m), ("one dimension less", m - 1 or 4)):
                miss[label].append(abs(float(v) / gaussian_bandit_variance(dims, name) - 1))
    return pd.DataFrame([*rows, *(row(k, max(x), panel="", x=3, what="quadrature") for k, x in miss.items())])


def bandit(m: int) -> tuple[lqg.LQG, nn.Module, FunctionValues, dict[str, object]]:
    """Return the bandit r = −‖a‖², N(0, I) with its mean as only parameter, exact values, and a Φ for each baseline."""
    env = gaussian_bandit(m)
    policy = only_means(env, torch.zeros(m), torch.zeros(m))
    values = FunctionValues(
        v=lambda s, t: -float(m) + 0.0 * t, q=lambda s, a, t: -a.double().square().sum(-1), source="closed form"
    )
    best = estimators.Baseline(b=lambda s, t: torch.full(t.shape, -(m + 2.0)), called="best_constant")
    phi = {"factorised": OPTIMAL, "none": NONE, "value": STATE, "optimal": best}
    return env, policy, values, phi


WU = "Wu, Rajeswaran, Duan, Kumar, Bayen, Kakade, Mordatch, Abbeel, 2018, Action-Dependent Factorized Baselines"
INDEPENDENT = "random bandits with three action dimensions, each with a mean of its own"
claim(
    id="WU-1a", sentence="A baseline of each dimension that sees the other dimensions leaves the gradient unbiased.", source=WU,
    tag="T", study="factorised_bandit", statistic="‖E ĝ − ∇J‖/‖∇J‖ with right and with wrong Q, largest over 20 bandits, within "
    "10⁻⁹", direction="within", bound=0.0, margin=ROUNDING, effect=lambda rows: cell(rows, what="off ∇J", label=OPTIMAL.name),
    condition="the dimensions are independent given the state", needs=(OPTIMAL.name,),
    control=Control("so does one that sees its own", lambda rows: cell(rows, what="off ∇J", label=LeakingBaseline.name)),
)  # fmt: skip
claim(
    id="WU-1b", sentence="Against the optimal factorised baseline any other loses Σ_d E[Z_d (b_d − b*_d)²], Z_d = E[z_d² | s].",
    source=WU, tag="T", study="factorised_bandit", direction="within", bound=0.0, margin=ROUNDING, needs=(OPTIMAL.name,),
    statistic="relative difference to what the mean of Q, V and nothing lose, largest over 20 bandits, within 10⁻⁹",
    effect=lambda rows: cell(rows, what="gain", label="weighted"),
    condition=f"scores of the dimensions are orthogonal: {INDEPENDENT}",
    control=Control("the same without Z_d", lambda rows: cell(rows, what="gain", label="unweighted")),
)  # fmt: skip
claim(
    id="WU-1c", sentence="The optimal factorised baseline has no more variance than V.", source=WU, tag="T",
    study="factorised_bandit", statistic="ratio of variances, largest over 20 bandits", direction="below", bound=1.0,
    effect=lambda rows: cell(rows, what="largest", label="optimal"), condition=INDEPENDENT, needs=(OPTIMAL.name, STATE),
    control=Control(
        "nor has it with a mean that two dimensions share", lambda rows: cell(rows, what="shared", label="optimal")
    ),
)  # fmt: skip
claim(
    id="WU-1d", sentence="The optimal factorised baseline has no more variance than V.", source=WU, tag="T",
    study="factorised_bandit", statistic="ratio of variances where r = −(a₁ − a₂)², which is 36 over 16", direction="below",
    bound=1.0, effect=lambda rows: cell(rows, what="shared", label="optimal"), needs=(OPTIMAL.name, STATE),
    condition="in general: here two dimensions share their mean, and scores are not orthogonal",
    control=Control("nor has the mean of Q over a dimension", lambda rows: cell(rows, what="shared", label="mean")),
)  # fmt: skip


def _closed(rows: pd.DataFrame, name: str, m: int) -> float:
    here = rows[(rows["what"] == "variance") & (rows["label"] == name) & (rows["x"] == m)]
    return float(here["exact"].iloc[0])


def _gain(rows: pd.DataFrame) -> Effect:
    """Return the measured gain over V at the large dimension, over that in closed form at the small one."""
    e = cell(rows, what="over factorised", label="value", x=WIDE)
    small = _closed(rows, "value", SMALL) / _closed(rows, "factorised", SMALL)
    return Effect(e.value / small, e.low / small, e.high / small, e.n, log=True)


def _constant_gain(rows: pd.DataFrame) -> Effect:
    wide, small = (_closed(rows, "value", m) / _closed(rows, "optimal", m) for m in (WIDE, SMALL))
    return Effect.exact(wide / small)


BANDIT = "the bandit r = −‖a‖², a ~ N(0, s² I)"
claim(
    id="WU-2a", sentence="One coordinate has variance (m + 2)(m + 4), 2(m + 4), 2(m + 2) and 6 in units of s² with no baseline, "
    "V, the best constant and the factorised one.", source=WU, tag="X", study="factorised_dimension", direction="within",
    bound=0.0, margin=ROUNDING, condition=BANDIT,
    statistic="largest relative difference to quadrature, m = 1, 2, 3, within 10⁻⁹",
    effect=lambda rows: cell(rows, what="quadrature", label="closed form"), needs=(OPTIMAL.name,),
    control=Control("the same with m − 1 for m", lambda rows: cell(rows, what="quadrature", label="one dimension less")),
)  # fmt: skip
claim(
    id="WU-2b", sentence="So V costs (m + 4)/3 times the variance of the factorised baseline.", source=WU, tag="X",
    study="factorised_dimension", statistic="paired ratio at m = 10, within 10 % of 14/3", direction="within", bound=14 / 3,
    margin=1.4 / 3, effect=lambda rows: cell(rows, what="over factorised", label="value", x=SMALL), condition=BANDIT,
    needs=(OPTIMAL.name, STATE),
    control=Control("so does the best constant", lambda rows: cell(rows, what="over factorised", label="optimal", x=SMALL)),
)  # fmt: skip
claim(
    id="WU-2c", sentence="The gain of the factorised baseline grows with the dimension of the action.", source=WU, tag="T",
    study="factorised_dimension", statistic="gain over V measured at m = 1,000 over that at m = 10, at least 10",
    direction="above", bound=10.0, effect=_gain, condition=BANDIT, needs=(OPTIMAL.name, STATE),
    control=Control("so does that of the best constant", _constant_gain),
)  # fmt: skip
