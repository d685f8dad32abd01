"""Discounts, exactly: γ^t dropped, and γ < 1 as variance reduction."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.closed_form import PRICE, PRIZE, constant_return, sign_flip, sign_flip_derivatives
from varlab.envs.finite import FiniteMDP
from varlab.oracles.exact import exact
from varlab.policies.networks import Linear, SoftmaxTable
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.verdicts import Effect
from varlab.values.dynamic_programming import evaluate, occupancy

NOTA = "Nota, Thomas 2020 (Is the policy gradient a gradient?)"
SCHULMAN = "Schulman, Moritz, Levine, Jordan, Abbeel 2016 (GAE)"
GAMMA = 0.5
#: The update field of a softmax table is asymmetric where γ^t is dropped.
FIELD_GAMMA = 0.9
DISCOUNTS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
NOTHING = 1e-12


# NT-1: γ^t dropped.


def update_field(mdp: FiniteMDP, logits: Tensor, gamma: float, horizon: int, weighted: bool) -> Tensor:
    """Return Σ_t w_t Σ_s d_t(s) Σ_a ∇π(a | s) Q_t(s, a) [S A] of a softmax table, differentiable in its logits.

    Args:
        mdp: the process.
        logits: [S A] θ.
        gamma: γ of Q.
        horizon: H.
        weighted: w_t = γ^t, which makes it ∇J_γ; else 1.

    Returns:
        The mean update of reward-to-go.
    """
    pi = logits.reshape(mdp.num_states, mdp.num_actions).softmax(-1)
    v, q = evaluate(mdp, pi, gamma, horizon)
    w = (gamma if weighted else 1.0) ** torch.arange(horizon, dtype=torch.float64)
    return torch.einsum("t,ts,sa,tsa->sa", w, occupancy(mdp, pi, horizon), pi, q - v[:-1, :, None]).flatten()


def asymmetry(field: Tensor) -> float:
    """Return ‖A − Aᵀ‖/‖A + Aᵀ‖ of a Jacobian A: 0 for gradients, and for them alone on all of θ's space."""
    return float((field - field.T).norm() / (field + field.T).norm())


@study(
    "dropped_discount",
    "Mean update of reward-to-go with and without the weight γ^t on the sign-flip world over π(a = 1), divided by p (1 − p), γ = "
    "1/2; exact.",
    draw=lambda rows, style=None: draw_dropped(rows, style),
)
def dropped_discount(budget: Budget) -> pd.DataFrame:
    """Return updates on the sign-flip world, what they should be, and the asymmetry of Jacobians on random MDPs.

    Args:
        budget: number of random MDPs (50) and seed.

    Returns:
        One row per kind and p (or MDP) with the value.
    """
    env, rows = sign_flip(), []
    policy = Linear(env).double()
    for p in np.linspace(0.05, 0.95, 19):
        with torch.no_grad():
            policy.net.weight.copy_(torch.tensor([[0.0], [np.log(p / (1 - p))]]))
            policy.net.bias.zero_()
        kinds = {"J_gamma": (GAMMA, True), "J_1": (1.0, True), "dropped": (GAMMA, False)}
        # The parameters are two weights and two biases; the weight of action 1 is the logit of p where decisions are made.
        found = {
            kind: float(exact(env, policy, "reward_to_go", gamma=g, discount_weighting=w).mean[0, 1])
            for kind, (g, w) in kinds.items()
        }
        closed = sign_flip_derivatives(float(p), GAMMA)
        late = {"J_gamma": PRIZE * GAMMA**2 - PRICE * GAMMA, "J_1": PRIZE - PRICE, "dropped": PRIZE * GAMMA**2 - PRICE}
        spread = p * (1 - p)
        rows += [(kind, float(p), x / spread) for kind, x in found.items()]
        rows.append(("off by", float(p), max(abs(found[k] - closed[k]) / spread for k in found)))
        rows.append(("off by, prize one step early", float(p), max(abs(found[k] / spread - late[k]) for k in found)))
        for kind in ("dropped", "J_gamma"):
            rows.append((f"{kind} along ∇J", float(p), max(found[kind] * found[k] for k in ("J_gamma", "J_1")) / spread**2))
    for number in range(budget.n(50, least=2, multiple=2)):
        env, policy = cases.random_case(budget.seed, number)
        theta = policy.logits.weight.detach().flatten()
        for kind, weighted in (("asymmetry, dropped", False), ("asymmetry, kept", True)):
            field = functools.partial(update_field, env.finite, gamma=FIELD_GAMMA, horizon=env.horizon, weighted=weighted)
            rows.append((kind, float(number), asymmetry(torch.autograd.functional.jacobian(field, theta))))
    return pd.DataFrame(rows, columns=["label", "x", "value"])


def draw_dropped(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the three derivatives over p."""
    names = {"J_1": r"$\nabla J_1$", "J_gamma": r"$\nabla J_\gamma$", "dropped": r"without $\gamma^t$"}
    table = rows[rows["label"].isin(names)]
    table = table.assign(label=table["label"].map(names), value_low=table["value"], value_high=table["value"])
    return estimates.draw(table, style, xlabel=r"$p = \pi(a = 1)$", ylabel=r"derivative / $p(1-p)$", line=0.0)


claim(
    id="NT-1a",
    sentence="Leaving out γ^t can point to the worst policy: against ∇J_γ and against ∇J_1 at once.",
    source=f"{NOTA}; the world is derived here", tag="A", study="dropped_discount", needs=("reward_to_go",),
    statistic="largest product of the update with ∇J_γ or ∇J_1 over p, over (p (1 − p))² (exact)",
    effect=cases.extreme("max", label="dropped along ∇J"), direction="below", bound=-0.1,
    control=Control("the same with γ^t kept", cases.extreme("max", label="J_gamma along ∇J")),
)  # fmt: skip
claim(
    id="NT-1b",
    sentence="On the sign-flip world ∇J_γ, ∇J_1 and the update without γ^t are 0.25, 6.5 and −0.5 times p (1 − p).",
    source=NOTA + "; worked out in a public course", tag="T", published="0.25, 6.5, −0.5 [T]", study="dropped_discount",
    statistic="largest distance of the exact updates from these, within 10⁻¹² of 0",
    effect=cases.extreme("max", label="off by"), direction="within", bound=0.0, margin=1e-12,
    control=Control("the prize discounted once too little", cases.extreme("max", label="off by, prize one step early")),
)  # fmt: skip
claim(
    id="NT-1c",
    sentence="The update without γ^t is the gradient of no objective.",
    source=NOTA, tag="A", study="dropped_discount", needs=("reward_to_go",),
    statistic="smallest asymmetry ‖A − Aᵀ‖/‖A + Aᵀ‖ of its Jacobian over θ, random MDPs, γ = 0.9 (exact)",
    effect=cases.extreme("min", label="asymmetry, dropped"), direction="above", bound=1e-6,
    control=Control("the same of ∇J_γ, with γ^t kept", cases.extreme("max", label="asymmetry, kept")),
)  # fmt: skip


# NT-2: γ < 1 as variance reduction.


@study(
    "discount_variance",
    "Reward-to-go without the weight γ^t against ∇J_1, exactly: squared bias and variance over ‖∇J_1‖², and mean squared error "
    "at N = 10⁴, over γ on the first of the random MDPs (5 states, 3 actions, 20 steps, rewards U(0, 1)).",
    draw=lambda rows, style=None: draw_discounts(rows, style),
)
def discount_variance(budget: Budget) -> pd.DataFrame:
    """Return bias and variance of reward-to-go with discount γ as an estimator of ∇J_1.

    Args:
        budget: number of MDPs (50) and seed.

    Returns:
        One row per case, mdp and gamma with ``bias`` and ``variance``, over ‖∇J_1‖² in random MDPs.
    """
    worlds = [("random", *cases.random_case(budget.seed, i, "uniform")) for i in range(budget.n(50, least=2, multiple=2))]
    constant = constant_return()
    worlds.append(("constant return", constant, SoftmaxTable(constant).double()))
    rows = []
    for number, (name, env, policy) in enumerate(worlds):
        truth = exact(env, policy, "reward_to_go").gradient
        square = float((truth**2).sum()) or 1.0
        for gamma in DISCOUNTS:
            found = exact(env, policy, "reward_to_go", gamma=gamma, discount_weighting=False)
            bias = float(((found.mean[0] - truth) ** 2).sum())
            rows.append((name, number, gamma, bias / square, float(found.variance[0]) / square))
    return pd.DataFrame(rows, columns=["case", "mdp", "gamma", "bias", "variance"])


def draw_discounts(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw bias, variance over 10⁴ and their sum over γ for the first MDP."""
    first = rows[rows["mdp"] == 0]
    columns = {r"bias$^2$": first["bias"], "variance / $10^4$": first["variance"] / 1e4}
    columns["MSE at $N = 10^4$"] = first["bias"] + first["variance"] / 1e4
    table = pd.concat([first.assign(label=name, x=first["gamma"], value=x.where(x > NOTHING)) for name, x in columns.items()])
    table = table.dropna(subset="value").assign(value_low=lambda t: t["value"], value_high=lambda t: t["value"])
    return estimates.draw(table, style, xlabel=r"$\gamma$", ylabel=r"over $\Vert\nabla J_1\Vert^2$", log="y")


def _rise_with_discount(what: str, case: str, falling: bool = False):  # noqa: ANN202
    """Return rows → the largest ratio of neighbours along γ: below 1 where the column rises (or falls) all the way."""

    def effect(rows: pd.DataFrame) -> Effect:
        worst = 0.0
        for _, part in rows[rows["case"] == case].sort_values("gamma").groupby("mdp"):
            x = part[what].to_numpy()
            worst = max(worst, cases.adjacent_ratio(x[::-1] if falling else x))
        return Effect.exact(worst)

    return effect


def _gain(size: float):  # noqa: ANN202
    """Return rows → the largest ratio, over MDPs, of the smallest MSE_N of a γ < 1 to that of γ = 1."""

    def effect(rows: pd.DataFrame) -> Effect:
        random = rows[rows["case"] == "random"]
        mse = random.assign(mse=random["bias"] + random["variance"] / size).pivot(index="mdp", columns="gamma", values="mse")
        return Effect.exact((mse.drop(columns=1.0).min(axis=1) / mse[1.0]).max())

    return effect


claim(
    id="NT-2a",
    sentence="A smaller discount lowers the variance of the gradient.",
    source=f"{SCHULMAN}, sec. 2", tag="A", study="discount_variance", needs=("reward_to_go",),
    statistic="largest ratio of variances, γ over the next larger γ, on the world r = +1, −1 (exact)",
    effect=_rise_with_discount("variance", "constant return"), direction="below", bound=1.0,
    control=Control("a smaller discount raises the variance, on random MDPs", _rise_with_discount("variance", "random", True)),
)  # fmt: skip
claim(
    id="NT-2b",
    sentence="A smaller discount lowers the variance of the gradient and raises its bias.",
    condition="random MDPs with rewards U(0, 1)", source=f"{SCHULMAN}, sec. 2", tag="A", study="discount_variance",
    statistic="largest of all ratios of neighbours along γ, variance and inverse squared bias (exact)",
    effect=lambda rows: Effect.exact(max(_rise_with_discount("variance", "random")(rows).value,
                                         _rise_with_discount("bias", "random", True)(rows).value)),
    direction="below", bound=1.0, needs=("reward_to_go",),
    control=Control("the variance, on the world r = +1, −1", _rise_with_discount("variance", "constant return")),
)  # fmt: skip
claim(
    id="NT-2c",
    sentence="As an estimate of ∇J_1 from few trajectories, γ < 1 beats γ = 1.",
    condition="random MDPs with rewards U(0, 1), N = 100", source=f"{SCHULMAN}, sec. 2", tag="A", study="discount_variance",
    statistic="largest ratio over MDPs, MSE of the best γ < 1 over that of γ = 1 (exact)", needs=("reward_to_go",),
    effect=_gain(100.0), direction="below", bound=1.0,
    control=Control("the same at N = 10⁹, where variance does not count", _gain(1e9)),
)  # fmt: skip
