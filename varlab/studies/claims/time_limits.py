"""What follows a time limit, exactly: nothing, the value after the reset, that of the wrong state, or V(s_L)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.base import Environment
from varlab.envs.finite import environment
from varlab.estimators.bootstrapped import GAE
from varlab.estimators.recursion import Recursion
from varlab.oracles.exact import exact
from varlab.oracles.world import World
from varlab.policies.networks import SoftmaxTable
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.verdicts import Effect
from varlab.studies.textbook_order import median
from varlab.values.dynamic_programming import evaluate, gradient, occupancy, policy_table

PARDO = "Pardo, Tavakoli, Levdik, Kormushev 2018 (Time limits in RL)"
HORIZON, LIMIT, GAMMA = 50, 10, 0.95
#: Share of the outcomes that end an episode.
ENDING = 0.1
NOTHING = 1e-12


class LeakedGAE(GAE):
    """GAE at a cut that takes the value of the state after the reset for that of the last state: γ V_0(s_0) follows the cut.

    The world begins in one state, so that this value is a number.
    """

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        leaked = np.full_like(world.v[world.cut], float(world.mdp.initial.numpy() @ world.v[0]))
        v = np.concatenate([world.v[: world.cut], leaked[None], world.v[world.cut + 1 :]])
        return super().recursion(replace(world, v=v, at_cut="bootstrap"))


def sampled_part(env: Environment, policy: SoftmaxTable, gamma: float, cut: int) -> np.ndarray:
    """Return Σ_{t<L} γ^t Σ_s d_t(s) Σ_a ∇π(a | s) Q_t(s, a): the terms of ∇J_γ whose steps are sampled."""
    pi = policy_table(policy, env.finite)
    _, q = evaluate(env.finite, pi.detach(), gamma, env.horizon)
    w, d = gamma ** torch.arange(cut, dtype=torch.float64), occupancy(env.finite, pi.detach(), env.horizon)
    total = torch.einsum("t,ts,tsa->sa", w, d[:cut], q[:cut])
    return torch.autograd.grad((total * pi).sum(), policy.logits.weight)[0].flatten().numpy()


MODES = {
    "terminal": ("terminal", GAE), "leak": ("bootstrap", LeakedGAE), "wrong state": ("wrong_state", GAE),
    "bootstrap": ("bootstrap", GAE),
}  # fmt: skip


@study(
    "time_limits",
    "GAE(0.95) with exact V on random MDPs of 50 steps cut at 10 (γ = 0.95): ‖bias‖²/‖∇J‖² of four values after the cut, against "
    "the sampled part of the policy gradient (steps before the cut) and against all of it. Each "
    "MDP's is exact; drawn are medians over MDPs.",
    draw=lambda rows, style=None: draw_limits(rows, style),
)
def time_limits(budget: Budget) -> pd.DataFrame:
    """Return the bias of what may follow a cut, by mode, MDP and what it is compared with.

    Args:
        budget: number of MDPs (20) and seed.

    Returns:
        One row per label (mode), panel (the gradient compared with), case and mdp with the value.
    """
    rows = []
    for number in range(budget.n(20, least=2, multiple=2)):
        drawn, policy = cases.random_case(budget.seed, number, "uniform", HORIZON, ENDING)
        first = torch.eye(cases.STATES, dtype=torch.float64)[0]
        endless = replace(drawn.finite, terminated=torch.zeros_like(drawn.finite.terminated))
        flat = replace(endless, reward=torch.ones_like(endless.reward))
        for case, mdp in (("random", drawn.finite), ("endless", endless), ("rewards all 1", flat)):
            env = environment(replace(mdp, initial=first), HORIZON, case)
            whole = gradient(env.finite, policy, GAMMA, HORIZON)[0].numpy()
            for cut in (LIMIT, HORIZON):
                part, end = sampled_part(env, policy, GAMMA, cut), "" if cut == LIMIT else ", no cut"
                for mode, (rule, cls) in MODES.items():
                    mean = exact(env, policy, cls(0.95), gamma=GAMMA, cut=cut, at_cut=rule).mean[0]
                    for panel, truth in (("the sampled part", part), ("the whole gradient", whole)):
                        scale = float((whole**2).sum()) if case != "rewards all 1" else 1.0
                        rows.append((mode + end, panel, case, number, float(((mean - truth) ** 2).sum()) / scale))
    return pd.DataFrame(rows, columns=["label", "panel", "case", "mdp", "value"])


def draw_limits(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw medians over MDPs with the intervals that order statistics give them."""
    part = rows[(rows["case"] == "random") & rows["label"].isin(MODES)]
    medians = [(*key, *median(x["value"])) for key, x in part.groupby(["panel", "label"], sort=False)]
    table = pd.DataFrame(medians, columns=["panel", "label", "value", "value_low", "value_high"])
    table["panel"] = "against " + table["panel"]
    xlabel = r"$\Vert$bias$\Vert^2$ / $\Vert\nabla J\Vert^2$"
    return estimates.draw(table[table["value"] > NOTHING], style, xlabel=xlabel, log="x")


PART, WHOLE = {"panel": "the sampled part", "case": "random"}, {"panel": "the whole gradient", "case": "random"}
LIMITED = "random MDPs with terminations, 50 steps cut at 10, rewards U(0, 1), exact V"
claim(
    id="TL-1a",
    sentence="To treat a time limit as termination biases the gradient.",
    source=PARDO, tag="A", study="time_limits", needs=("gae(lam=0.95)",),
    statistic="smallest ‖bias‖² against the sampled part where every reward is 1, so that V is the same in all states (exact)",
    effect=cases.extreme("min", panel="the sampled part", case="rewards all 1", label="terminal"), direction="above", bound=1e-6,
    control=Control("the same where V(s_L) of random rewards follows the cut", cases.extreme("max", label="bootstrap", **PART)),
)  # fmt: skip
claim(
    id="TL-1b",
    sentence="To treat a time limit as termination biases the gradient.",
    condition=LIMITED, source=PARDO, tag="A", study="time_limits", needs=("gae(lam=0.95)",),
    statistic="smallest ‖bias‖²/‖∇J‖² against the sampled part (exact)",
    effect=cases.extreme("min", label="terminal", **PART), direction="above", bound=1e-6,
    control=Control("the same without a cut, L = H", cases.extreme("max", label="terminal, no cut", **PART)),
)  # fmt: skip
claim(
    id="TL-1c",
    sentence="To bootstrap from V(s_L) at a time limit removes that bias.",
    condition=LIMITED, source=PARDO, tag="A", study="time_limits", needs=("gae(lam=0.95)",),
    statistic="largest ‖bias‖²/‖∇J‖² against the sampled part (exact)",
    effect=cases.extreme("max", label="bootstrap", **PART), direction="below", bound=NOTHING,
    control=Control("the same with V(s_{L−1}), the state before", cases.extreme("max", label="wrong state", **PART)),
)  # fmt: skip
claim(
    id="TL-1d",
    sentence="The value of the state after the reset in the place of V(s_L) biases the gradient.",
    condition=LIMITED, source="reported of several libraries in their issue lists", tag="T", study="time_limits",
    statistic="smallest ‖bias‖²/‖∇J‖² against the sampled part (exact)", needs=("gae(lam=0.95)",),
    effect=cases.extreme("min", label="leak", **PART), direction="above", bound=1e-6,
    control=Control("the same with V(s_L)", cases.extreme("max", label="bootstrap", **PART)),
)  # fmt: skip
claim(
    id="TL-1e",
    sentence="To bootstrap at a time limit makes the gradient that of the longer objective.",
    condition=LIMITED, source="derived here: steps after the cut are not sampled", tag="X", study="time_limits",
    needs=("gae(lam=0.95)",),
    statistic="largest ‖bias‖²/‖∇J‖² against the whole gradient of 50 steps, below 0.01 (exact)",
    effect=cases.extreme("max", label="bootstrap", **WHOLE), direction="below", bound=0.01,
    control=Control("the same with the cut as termination", cases.extreme("max", label="terminal", **WHOLE)),
)  # fmt: skip


def _apart(case: str):  # noqa: ANN202
    """Return rows → the largest relative distance of the bias of ``leak`` from that of ``terminal`` over MDPs."""

    def effect(rows: pd.DataFrame) -> Effect:
        part = rows[(rows["case"] == case) & (rows["panel"] == "the sampled part")]
        wide = part.pivot(index="mdp", columns="label", values="value")
        return Effect.exact((wide["leak"] / wide["terminal"] - 1).abs().max())

    return effect


claim(
    id="TL-1f",
    sentence="Where episodes end by the time limit alone, the leaked value has just the bias of termination: it is a constant.",
    condition="random MDPs without terminations that begin in one state", source="derived here", tag="X", study="time_limits",
    statistic="largest relative distance of the two ‖bias‖², within 10⁻⁶ of 0 (exact)", needs=("gae(lam=0.95)",),
    effect=_apart("endless"), direction="within", bound=0.0, margin=1e-6,
    control=Control("the same with terminations", _apart("random")),
)  # fmt: skip
