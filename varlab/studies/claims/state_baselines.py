"""Claims about baselines of the state: OB-4 … OB-6, exactly on random MDPs and on bandits whose policy is sure of one arm."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.base import Environment
from varlab.envs.closed_form import two_arms_variance
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.estimators.optimal import OptimalBaseline
from varlab.oracles.exact import exact, world_of
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.baselines import CELLS, named, share
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, row
from varlab.studies.textbook_order import Draw
from varlab.values.dynamic_programming import ExactValues

#: A larger world: states, actions, steps.
LARGER = (5, 4, 10)
LARGE = "5 states, 4 actions, 10 steps, logits ×1"
#: Distances 1 − p of a sure arm.
SURE = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
PHI = ("value_baseline", "optimal_baseline(of=state)", "reward_to_go", "total_return")
EDGES = np.linspace(0.0, 1.0, 26)

@study(
    "score_norms",
    "Squared norm of the score of a softmax table by automatic differentiation against 1 − 2π_a + Σ π² (dotted), for random "
    "logits of 2, 4 and 10 actions.",
    draw=curves("1 − 2π_a + Σ π²", "‖z_a‖²"),
)
def score_norms(budget: Budget) -> pd.DataFrame:
    """Compare norms and baselines with their closed forms; nothing but worlds is drawn."""
    rows, rng = [], numpy_generator(Streams(budget.seed).sequence("theta"))
    gaps = {"1 − 2π_a + Σ π²": 0.0, "1 − π_a + Σ π²": 0.0}
    for actions, i in itertools.product((2, 4, 10), range(12)):
        logits = torch.from_numpy(2 * rng.standard_normal(actions)).requires_grad_()
        a = int(rng.integers(actions))
        (z,) = torch.autograd.grad(logits.log_softmax(0)[a], logits)
        pi = logits.detach().softmax(0)
        closed = {name: float(1 - k * pi[a] + (pi**2).sum()) for k, name in zip((2, 1), gaps, strict=True)}
        norm, right = float(z.square().sum()), closed["1 − 2π_a + Σ π²"]
        gaps = {k: max(v, abs(closed[k] - norm)) for k, v in gaps.items()}
        rows.append(row(f"{actions} actions", norm, panel="softmax table", x=right, exact=right, number=i))
    rows += [row(k, v, panel="", what="norm") for k, v in gaps.items()]
    apart, ratios = {"closed form": 0.0, "V": 0.0}, {"of each step": 0.0, "V": 0.0}
    for _ in range(budget.n(100, least=20, multiple=1)):
        mdp = random_mdp(rng, states=4, actions=3)
        logits = torch.from_numpy(rng.standard_normal((4, 3)))
        env = environment(mdp, 1, "one step")
        world = world_of(env, SoftmaxTable(env, logits), None, 1.0, None, "terminal")
        best = OptimalBaseline(of="state").recursion(world).subtract(0)
        q, size = (world.probability * mdp.reward.numpy()).sum(-1), 1 - 2 * world.pi + (world.pi**2).sum(1, keepdims=True)
        weight = world.pi * size
        apart["closed form"] = max(apart["closed form"], float(np.abs(best - (weight * q).sum(1) / weight.sum(1)).max()))
        apart["V"] = max(apart["V"], float(np.abs(best - (world.pi * q).sum(1)).max()))
        env = environment(mdp, 3, "three steps")
        found = exact(
            env, SoftmaxTable(env, logits), ["score_weighted_baseline(of=state)", "value_baseline", "optimal_baseline(of=state)"]
        ).variance
        ratios = {k: max(r, float(v / found[2])) for (k, r), v in zip(ratios.items(), found, strict=False)}
    rows += [row(k, v, panel="", what="one step") for k, v in apart.items()]
    rows += [row(k, v, panel="", what="three steps") for k, v in ratios.items()]
    return pd.DataFrame(rows)


CHUNG = "Chung, Thomas, Machado, Le Roux, 2021, Beyond Variance Reduction"
claim(
    id="OB-4a", sentence="In a softmax table the squared norm of the score is 1 − 2π_a + Σ π².", source=CHUNG, tag="C",
    study="score_norms", statistic="largest difference from automatic differentiation, within 10⁻¹²", direction="within",
    bound=0.0, margin=1e-12, effect=lambda rows: cell(rows, what="norm", label="1 − 2π_a + Σ π²"),
    control=Control("it is 1 − π_a + Σ π²", lambda rows: cell(rows, what="norm", label="1 − π_a + Σ π²")),
)  # fmt: skip
claim(
    id="OB-4b", sentence="So the best state baseline is Σ π ‖z_a‖² Q / Σ π ‖z_a‖² in closed form.", source=CHUNG, tag="C",
    study="score_norms", statistic="largest difference from the baseline of least variance, within 10⁻¹⁰", direction="within",
    bound=0.0, margin=1e-10, effect=lambda rows: cell(rows, what="one step", label="closed form"),
    condition="worlds of one step", needs=("optimal_baseline(of=state)",),
    control=Control("so is V", lambda rows: cell(rows, what="one step", label="V")),
)  # fmt: skip
claim(
    id="OB-4c", sentence="So the best state baseline is Σ π ‖z_a‖² Q / Σ π ‖z_a‖² in closed form.", source=CHUNG, tag="X",
    study="score_norms", statistic="largest ratio of its variance to that of the best state baseline", direction="below",
    bound=1.0, effect=lambda rows: cell(rows, what="three steps", label="of each step"), needs=("score_weighted_baseline",),
    condition="in general: over three steps the terms of one episode are correlated",
    control=Control("so it is V", lambda rows: cell(rows, what="three steps", label="V")),
)  # fmt: skip


@dataclass(frozen=True)
class Doubled:
    """2 V: a baseline that is no more biased than V, and a wrong one."""

    of: ExactValues

    def table(self, mdp: FiniteMDP, horizon: int) -> tuple[Tensor, None]:
        """Return 2 V_t(s) [H + 1, S], and no Q."""
        return 2 * self.of.table(mdp, horizon)[0], None


def _world(seed: int, number: int, kind: tuple[str, float] | None) -> tuple[Environment, SoftmaxTable]:
    """Draw a world of a cell, or one of the larger ones with rewards N(0, 1)."""
    if kind is not None:
        return Draw.of(seed, number).make(kind[0], "table", kind[1])
    world, theta = (numpy_generator(Streams(seed).sequence(name, number)) for name in ("rollout", "theta"))
    states, actions, steps = LARGER
    env = environment(random_mdp(world, states=states, actions=actions, ending=0.0), steps, "random MDP")
    return env, SoftmaxTable(env, torch.from_numpy(theta.standard_normal((states, actions))))


def _histograms(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the share of worlds by ratio of variances, one panel for each kind of world."""
    here = rows[rows["panel"] != ""]
    panels = list(dict.fromkeys(here["panel"]))
    with styles.context(style) as s:
        width, beside = s.width(wide=True), s.across(len(panels), panel=14) == len(panels)
        across, down = (len(panels), 1) if beside else (1, len(panels))
        figure = styles.Figure(figsize=(width, down * (0.99 if beside else 0.6) * width / across), layout="constrained")
        axs = figure.subplots(down, across, sharey=True, squeeze=False)
        for ax, panel in zip(axs.flat, panels, strict=True):
            of = here[here["panel"] == panel]
            color = estimates.SERIES[0][0]
            ax.hist(of["value"], EDGES, weights=np.full(len(of), 1 / len(of)), color=color, alpha=0.75, linewidth=0)
            ax.axvline(0.9, color="black", linestyle=":", linewidth=0.8)
            ax.set_title("\n".join(panel.rsplit(", ", 1)))
            ax.set_xlim(0, 1)
            ax.grid(axis="both")
        for ax in axs[:, 0]:
            ax.set_ylabel("share of worlds")
        axs[-1, across // 2].set_xlabel("tr Cov with the best state baseline over tr Cov with V")
    return figure


@study(
    "state_baselines",
    "Exact ratio of the variance with the best state baseline to that with V over random MDPs of three kinds (the first two with "
    "3 states, 2 actions, 3 steps); dotted: 10 % apart.",
    draw=_histograms,
)
def state_baselines(budget: Budget) -> pd.DataFrame:
    """Take exact variances on random MDPs."""
    rows, mdps = [], budget.n(400, least=20, multiple=1)
    for kind in (*CELLS, None):
        name = LARGE if kind is None else named(*kind)
        counts = {"best within 10 %": 0, "R within 10 %": 0, "V": 0, "2 V": 0}
        for number in range(mdps):
            env, policy = _world(budget.seed, number, kind)
            v, best, none, whole = exact(env, policy, PHI).variance
            twice = Doubled(ExactValues.of(env.finite, policy, 1.0, env.horizon))
            doubled = exact(env, policy, "value_baseline", values=twice).variance[0]
            rows.append(row("best/V", best / v, panel=name, number=number))
            for label, hit in zip(counts, (best >= 0.9 * v, best >= 0.9 * whole, v > none, doubled > none), strict=True):
                counts[label] += bool(hit)
        rows += [row(k, share(count, mdps), panel="", what=name) for k, count in counts.items()]
    return pd.DataFrame(rows)


@study(
    "sure_arms",
    "Bandits whose policy chooses the better arm with p. Left: two arms that pay 0 and 1, tr Cov with V over that without "
    "baseline; V is the worse for p > 2/3. Right: three arms that pay 1, 0, 0, tr Cov with the best baseline over that with V.",
    draw=curves("1 − p", "variance ratio", "xy", line=1.0),
)
def sure_arms(budget: Budget) -> pd.DataFrame:
    """Take closed forms and exact variances; nothing is drawn."""
    rows = []
    for q in SURE:
        p = 1 - q
        rows.append(row("V/none", two_arms_variance(p, p) / two_arms_variance(p), panel="two arms", x=q))
        best, v = three_arms(p)
        rows.append(row("best/V", best / v, panel="three arms", x=q))
    best, v = three_arms(0.5)
    rows.append(row("best/V", best / v, panel="", x=0.5))
    for end in (2 / 3, 0.75):
        grid = np.linspace(0.01, end, 200)
        worst = max(two_arms_variance(p, p) / two_arms_variance(p) for p in grid)
        rows.append(row("V/none", worst, panel="", what=f"p up to {end:.2f}"))
    rows.append(row("b*/none", two_arms_variance(0.9, 0.1) / two_arms_variance(0.9), panel="", what="p = 0.9"))
    for label, b in (("V", 0.9), ("2 V", 1.8)):
        rows.append(row(label, two_arms_variance(0.9, b) / two_arms_variance(0.9), panel="", what="p = 0.9"))
    return pd.DataFrame(rows)


def three_arms(p: float) -> tuple[float, float]:
    """Return tr Cov with the best baseline and with V on three arms that pay 1, 0 and 0, the first chosen with p."""
    mdp = FiniteMDP.from_lists([[[(1.0, 0, float(a == 0), True)] for a in range(3)]], initial=[1.0])
    env = environment(mdp, 1, "three arms")
    pi = torch.tensor([[p, (1 - p) / 2, (1 - p) / 2]], dtype=torch.float64)
    best, v = exact(env, SoftmaxTable(env, pi.log()), ["optimal_baseline(of=state)", "value_baseline"]).variance
    return float(best), float(v)


KEANE = "Keane, Gao, 2022, Variance Reduction for Score Functions Using Optimal Baselines (arXiv 2212.13587)"
ACHIAM = "Achiam, 2018, Spinning Up in Deep RL, Part 3"
claim(
    id="OB-5a", sentence="The best state baseline can be arbitrarily better than V.", source=KEANE, tag="A", study="sure_arms",
    statistic="ratio of variances with three arms at p = 0.999; it falls as (1 − p)²", direction="below", bound=1e-5,
    effect=lambda rows: cell(rows, panel="three arms", x=SURE[-1]), condition="three arms that pay 1, 0 and 0",
    needs=("optimal_baseline(of=state)",),
    control=Control("at p = 1/2 too", lambda rows: cell(rows, panel="", label="best/V", x=0.5)),
)  # fmt: skip
for _id, _kind, _words in (
    ("b", named(*CELLS[1]), "3 states, 2 actions, 3 steps, rewards N(0, 1), logits N(0, 9)"),
    ("c", LARGE, "5 states, 4 actions, 10 steps, rewards N(0, 1), logits N(0, 1)"),
):
    claim(
        id=f"OB-5{_id}", sentence="Usually V is about as good as the best state baseline.", source=KEANE, tag="A",
        study="state_baselines", statistic="share of MDPs where the variances are within 10 %", direction="above", bound=0.5,
        condition=f"random MDPs with {_words}", effect=lambda rows, kind=_kind: cell(rows, what=kind, label="best within 10 %"),
        control=Control("so is the whole return R", lambda rows, kind=_kind: cell(rows, what=kind, label="R within 10 %")),
    )  # fmt: skip
claim(
    id="OB-6a", sentence="V as a baseline lowers the variance.", source=ACHIAM, tag="T", study="sure_arms",
    statistic="variance with V over that without baseline", direction="below", bound=1.0,
    effect=lambda rows: cell(rows, what="p = 0.9", label="V"), condition="in general: two arms that pay 0 and 1, p = 0.9",
    control=Control("2 V does", lambda rows: cell(rows, what="p = 0.9", label="2 V")),
)  # fmt: skip
claim(
    id="OB-6b", sentence="V as a baseline lowers the variance.", source=ACHIAM, tag="X", study="sure_arms",
    statistic="largest variance with V over that without baseline, p up to 2/3", direction="below", bound=1.0,
    effect=lambda rows: cell(rows, what="p up to 0.67", label="V/none"), condition="two arms that pay 0 and 1, p ≤ 2/3",
    control=Control("for p up to 3/4", lambda rows: cell(rows, what="p up to 0.75", label="V/none")),
)  # fmt: skip
for _id, _kind, _words, _bound in (
    ("c", named(*CELLS[0]), "random MDPs, rewards U(0, 1), logits N(0, 1)", 0.05),
    ("d", named(*CELLS[1]), "random MDPs, rewards N(0, 1), logits N(0, 9)", 0.1),
):
    claim(
        id=f"OB-6{_id}", sentence="It is rare that V as a baseline is worse than none.", source=ACHIAM, tag="X",
        study="state_baselines", statistic="share of MDPs where V has the larger variance", direction="below", bound=_bound,
        condition=_words, effect=lambda rows, kind=_kind: cell(rows, what=kind, label="V"),
        control=Control("that 2 V is", lambda rows, kind=_kind: cell(rows, what=kind, label="2 V")),
    )  # fmt: skip
