"""GAE's λ on finite MDPs, exactly: bias, variance and mean squared error against λ, critic error, batch size and discount."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from torch import nn

from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.base import Environment
from varlab.estimators.baselines import ValueBaseline
from varlab.estimators.bootstrapped import GAE
from varlab.estimators.recursion import Recursion
from varlab.oracles.exact import exact, world_of
from varlab.oracles.world import World
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.verdicts import Effect
from varlab.studies.lambda_errors import exact_errors
from varlab.values import ExactValues, FunctionValues

SCHULMAN = "Schulman, Moritz, Levine, Jordan, Abbeel 2016 (GAE)"
GAMMA = 0.95
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
ERRORS = (0.0, 0.1, 0.3, 1.0)
SIZES = tuple(10.0**k for k in np.arange(1.0, 6.1, 0.5))
#: Grids of the study of discount and λ together; their ends count as boundary.
DISCOUNTS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
GRID = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
GRID_ERROR, GRID_SIZES = 0.5, (10.0, 100.0, 1000.0, 10_000.0)
ValueTable = FunctionValues | ExactValues
#: Squared biases below this share of ‖∇J‖² are rounding.
NOTHING = 1e-12


class LateValues(ValueBaseline):
    """Φ_t = G_t − E[V_{t+1}(s_{t+1}) | s_t, a_t]: the mean of GAE(1) whose values are read one step late.

    The value of the state that the action led to is correlated with the action, so that it is no baseline.
    """

    name = "late_values"

    def recursion(self, world: World) -> Recursion:
        """Return the form that the exact oracle evaluates."""
        return Recursion(world.reward, world.gamma, subtract=lambda t: world.ahead_by_action(world.going_on, world.v[t + 1]))


def relative(env: Environment, policy: nn.Module, phi: list, gamma: float, values: ValueTable) -> Iterator[tuple]:
    """Yield (‖bias‖², tr Cov g), both over ‖∇J_γ‖², of each Φ."""
    found = exact(env, policy, phi, gamma=gamma, values=values)
    yield from zip(found.bias_sq / (found.gradient**2).sum(), found.nsr, strict=True)


@study(
    "gae_bias_variance",
    "Squared bias, variance and the sum of the variances of the single terms of GAE(λ), over ‖∇J_γ‖², exactly on random MDPs (5 "
    "states, 3 actions, 20 steps, γ = 0.95, softmax table). V is exact or exact + ε e, e a table of unit norm on the policy's "
    "visits; the first MDP is drawn. A bias of 0 has no place on the logarithmic axis.",
    draw=lambda rows, style=None: draw_first(rows, style),
)
def bias_variance(budget: Budget) -> pd.DataFrame:
    """Return exact moments of GAE by MDP, kind of values and λ.

    Args:
        budget: number of MDPs (50) and seed.

    Returns:
        One row per mdp, label, error and lam with bias, variance and terms; labels are ``V + ε e``, ``V + 1``, ``V of γ = 1``
        and ``V one step late``, and ``two steps`` for the counter-example.
    """
    rows, phi = [], [GAE(lam) for lam in LAMBDAS]
    for number in range(budget.n(50, least=2, multiple=2)):
        env, policy = cases.random_case(budget.seed, number)
        e = cases.unit_error(env, policy, budget.seed, number)
        sources = {(f"V + {eps:g} e" if eps else "V", eps): cases.wrong_values(env, policy, GAMMA, eps * e) for eps in ERRORS}
        sources["V + 1", 1.0] = cases.wrong_values(env, policy, GAMMA, 1.0)
        sources["V of γ = 1", 0.0] = cases.as_function(ExactValues.of(env.finite, policy, 1.0, env.horizon).v)
        for (label, eps), source in sources.items():
            world = world_of(env, policy, source, GAMMA, None, "bootstrap")
            square = float((exact(env, policy, "reward_to_go", gamma=GAMMA).gradient ** 2).sum())
            for lam, (bias, variance) in zip(LAMBDAS, relative(env, policy, phi, GAMMA, source), strict=True):
                terms = cases.term_variance(world, GAMMA * lam, GAMMA) / square
                rows.append((number, label, eps, lam, bias, variance, terms))
        ((bias, _),) = relative(env, policy, [LateValues()], GAMMA, sources["V + 1 e", 1.0])
        rows.append((number, "V one step late", 1.0, 1.0, bias, np.nan, np.nan))
    env, policy = cases.advantage_above_returns()
    source = ExactValues.of(env.finite, policy, 1.0, env.horizon)
    for lam, (bias, variance) in zip(LAMBDAS, relative(env, policy, phi, 1.0, source), strict=True):
        rows.append((-1, "two steps", 0.0, lam, bias, variance, np.nan))
    return pd.DataFrame(rows, columns=["mdp", "label", "error", "lam", "bias", "variance", "terms"])


def draw_first(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw bias and variance of the first MDP over λ, one curve for each size of the critic's error."""
    first = rows[(rows["mdp"] == 0) & rows["label"].str.match(r"V( \+ [0-9.]+ e)?$")]
    parts = [
        first.assign(panel=title, x=first["lam"], value=first[what].where(first[what] > NOTHING))
        for what, title in (("bias", r"bias$^2$ / $\Vert\nabla J\Vert^2$"), ("variance", r"variance / $\Vert\nabla J\Vert^2$"))
    ]
    table = pd.concat(parts)
    table["label"] = table["label"].map(lambda x: f"${x.replace(' e', 'e')}$")
    table = table.assign(value_low=table["value"], value_high=table["value"])
    return estimates.draw(table, style, xlabel=r"$\lambda$", ylabel="exact value", log="y")


def _extreme(what: str, label: str, how: str, lam: float | None = None):  # noqa: ANN202
    """Return rows → the largest or smallest of a column where the label matches a pattern."""

    def effect(rows: pd.DataFrame) -> Effect:
        part = rows[rows["label"].str.fullmatch(label)]
        part = part if lam is None else part[part["lam"] == lam]
        return Effect.exact(getattr(part[what], how)())

    return effect


def _rise(what: str, label: str):  # noqa: ANN202
    """Return rows → the largest ratio of neighbours along λ, over all MDPs: above 1 where the column falls anywhere."""

    def effect(rows: pd.DataFrame) -> Effect:
        parts = rows[rows["label"] == label].sort_values("lam").groupby("mdp")[what]
        return Effect.exact(max(cases.adjacent_ratio(part.to_numpy()) for _, part in parts))

    return effect


ANY, RANDOM_ERROR = r"V \+ [0-9.]+( e)?", r"V \+ 1 e"
claim(
    id="GA-1a",
    sentence="With λ = 1 GAE is unbiased for ∇J_γ whatever V is.",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=1.0)",),
    statistic="largest ‖bias‖²/‖∇J_γ‖² over random MDPs and wrong V (exact)",
    effect=_extreme("bias", ANY, "max", 1.0), direction="below", bound=NOTHING,
    control=Control("the same with V read one step late, at s_{t+1}", _extreme("bias", "V one step late", "max")),
)  # fmt: skip
claim(
    id="GA-1b",
    sentence="With V = V^{π,γ} GAE is unbiased for every λ, λ = 0 too.",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=0.0)",),
    statistic="largest ‖bias‖²/‖∇J_γ‖² over random MDPs and λ (exact)",
    effect=_extreme("bias", "V", "max"), direction="below", bound=NOTHING,
    control=Control("the same with V of γ = 1 in the place of V^{π,γ}", _extreme("bias", "V of γ = 1", "max")),
)  # fmt: skip
claim(
    id="GA-1c",
    sentence="With λ = 0 any other V than V^{π,γ} makes GAE biased.",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=0.0)",),
    statistic="smallest ‖bias‖²/‖∇J_γ‖² at λ = 0 over random MDPs and wrong V, V + 1 among them (exact)",
    effect=_extreme("bias", ANY, "min", 0.0), direction="above", bound=1e-7,
    control=Control("the same at λ = 1", _extreme("bias", ANY, "min", 1.0)),
)  # fmt: skip
claim(
    id="GA-1d",
    sentence="With λ = 0 any other V than V^{π,γ} makes GAE biased.",
    condition="errors that differ between states, ε = 1; an error that depends on time alone, such as V + 1, cancels",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=0.0)",),
    statistic="smallest ‖bias‖²/‖∇J_γ‖² at λ = 0 over random MDPs (exact)",
    effect=_extreme("bias", RANDOM_ERROR, "min", 0.0), direction="above", bound=1e-7,
    control=Control("the same of V + 1", _extreme("bias", r"V \+ 1", "min", 0.0)),
)  # fmt: skip
claim(
    id="GA-1e",
    sentence="The variance of the gradient falls as λ falls.",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=0.9)", "td_residual"),
    statistic="largest ratio of variances, λ over the next larger λ, with exact V in a world of two steps (exact)",
    effect=_rise("variance", "two steps"), direction="below", bound=1.0,
    control=Control("the same on random MDPs with V in error by ε = 1", _rise("variance", "V + 1 e")),
)  # fmt: skip
claim(
    id="GA-1f",
    sentence="The variance of the gradient falls as λ falls.",
    condition="exact V, and every step's term z_t Φ_t by itself: the sum leaves the covariances between steps out",
    source=f"{SCHULMAN}, sec. 3", tag="T", study="gae_bias_variance", needs=("gae(lam=0.9)",),
    statistic="largest ratio of Σ_t tr Cov(γ^t z_t Φ_t), λ over the next larger λ, on random MDPs (exact)",
    effect=_rise("terms", "V"), direction="below", bound=1.0,
    control=Control("the same with V in error by ε = 1", _rise("terms", "V + 1 e")),
)  # fmt: skip


@study(
    "gae_best_lambda",
    "The λ with the smallest mean squared error bias² + variance/N against the batch size N, exactly on one random MDP (5 "
    "states, 3 actions, 20 steps, γ = 0.95), for critics V + ε e with e a table of unit norm on the policy's visits.",
    draw=functools.partial(estimates.draw, xlabel="batch size $N$", ylabel=r"best $\lambda$", log="x"),
)
def best_lambda(budget: Budget) -> pd.DataFrame:
    """Return the best λ of the first random MDP by size of the critic's error and batch size.

    Args:
        budget: the seed.

    Returns:
        One row per error and N (x) with the best λ (value).
    """
    env, policy = cases.random_case(budget.seed, 0)
    same = {"errors": ERRORS, "sizes": SIZES, "gamma": GAMMA, "error_seed": cases.error_seed(budget.seed, 0)}
    found = exact_errors(env, policy, np.linspace(0.0, 1.0, 51), **same)
    best = found.loc[found.groupby(["error", "batch_size"], sort=False)["mse"].idxmin()]
    value = {c: best["lam"] for c in ("value", "value_low", "value_high")}
    rows = pd.DataFrame({"error": best["error"], "x": best["batch_size"], **value})
    rows.insert(0, "label", [rf"$\varepsilon = {eps:g}$" for eps in rows["error"]])
    return rows.reset_index(drop=True)


def _moved(error: float):  # noqa: ANN202
    """Return rows → the best λ at the largest batch less that at the smallest."""

    def effect(rows: pd.DataFrame) -> Effect:
        part = rows[rows["error"] == error].sort_values("x")["value"]
        return Effect.exact(part.iloc[-1] - part.iloc[0])

    return effect


claim(
    id="GA-2a",
    sentence="The best λ is a matter of the batch size: with a critic in error it rises with N.",
    source="derived here; the trade-off is of Schulman et al. 2016, sec. 3", tag="X", study="gae_best_lambda",
    statistic="best λ at N = 10⁶ less best λ at N = 10, in mean squared error to ∇J_γ, ε = 1 (exact)", needs=("gae(lam=0.95)",),
    effect=_moved(1.0), direction="above", bound=0.2,
    control=Control("the same with exact V, where bias is 0 at every λ", _moved(0.0)),
)  # fmt: skip


def _smallest(positive: bool):  # noqa: ANN202
    """Return rows → the smallest best λ over batch sizes, for critics in error or for exact V."""

    def effect(rows: pd.DataFrame) -> Effect:
        return Effect.exact(rows[(rows["error"] > 0) == positive]["value"].min())

    return effect


claim(
    id="GA-2e",
    sentence="The best λ lies between 0.92 and 0.98.",
    condition="one random MDP, ε = 0.1, 0.3 and 1, N from 10 to 10⁶: the range was found on cart-pole, at one N",
    source=f"{SCHULMAN}, Fig. 2", tag="T", published="0.92 to 0.98 [T]", study="gae_best_lambda", needs=("gae(lam=0.95)",),
    statistic="smallest best λ over ε and N, in mean squared error to ∇J_γ (exact)",
    effect=_smallest(True), direction="above", bound=0.92,
    control=Control("the same with exact V", _smallest(False)),
)  # fmt: skip


@study(
    "discount_and_lambda",
    "Share of random MDPs (5 states, 3 actions, 20 steps, rewards U(0, 1)) in which the smallest mean squared error over a grid "
    "of discounts 0 ≤ γ ≤ 1 and 0 ≤ λ ≤ 1 lies in its interior, from exact moments of GAE with V^{π,γ} + 0.5 e. To ∇J_1: "
    "steps without the weight γ^t; to ∇J_γ: steps weighted by γ^t, error over ‖∇J_γ‖².",
    draw=lambda rows, style=None: draw_shares(rows, style),
)
def discount_and_lambda(budget: Budget) -> pd.DataFrame:
    """Return in how many random MDPs the best γ and the best λ are both in the interior of the grid.

    Args:
        budget: number of MDPs (200) and seed.

    Returns:
        One row per objective (label) and batch size (x) with the share and its Clopper–Pearson interval.
    """
    phi, n, inside, rows = [GAE(lam) for lam in GRID], budget.n(200, least=2, multiple=2), {}, []
    for number in range(n):
        env, policy = cases.random_case(budget.seed, number, "uniform")
        e = GRID_ERROR * cases.unit_error(env, policy, budget.seed, number)
        sources = [cases.wrong_values(env, policy, gamma, e) for gamma in DISCOUNTS]
        truth = exact(env, policy, "reward_to_go").gradient
        for label, weighted in ((r"to $\nabla J_1$", False), (r"to $\nabla J_\gamma$", True)):
            found = [
                exact(env, policy, phi, gamma=gamma, values=source, discount_weighting=weighted)
                for gamma, source in zip(DISCOUNTS, sources, strict=True)
            ]
            bias, variance = np.array([_against(f, f.gradient if weighted else truth) for f in found]).swapaxes(0, 1)
            for size in (*GRID_SIZES, 1e12):
                i, j = np.unravel_index(np.argmin(bias + variance / size), bias.shape)
                both = 0 < i < len(DISCOUNTS) - 1 and 0 < j < len(GRID) - 1
                inside.setdefault((label, size), []).append(both)
    for (label, size), found in inside.items():
        rows.append((label, size, *cases.share(sum(found), n), n))
    return pd.DataFrame(rows, columns=["label", "x", "value", "value_low", "value_high", "n"])


def _against(found: object, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square = (truth**2).sum()
    return ((found.mean - truth) ** 2).sum(1) / square, found.variance / square


def draw_shares(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the share against batch size, without the batches so large that variance does not count."""
    labels = {"xlabel": "batch size $N$", "ylabel": "share with both best values interior"}
    return estimates.draw(rows[rows["x"].isin(GRID_SIZES)], style, log="x", line=0.5, **labels)


def _share(label: str, size: float):  # noqa: ANN202
    """Return rows → the share with its interval."""

    def effect(rows: pd.DataFrame) -> Effect:
        (row,) = rows[(rows["label"] == label) & (rows["x"] == size)].to_dict("records")
        return Effect(row["value"], row["value_low"], row["value_high"], int(row["n"]))

    return effect


for letter, label, objective in (("b", r"to $\nabla J_1$", "∇J_1"), ("c", r"to $\nabla J_\gamma$", "∇J_γ of each γ")):
    claim(
        id=f"GA-2{letter}",
        sentence="The best discount and the best λ both lie strictly between 0 and 1.",
        condition=f"random MDPs, N = 100, mean squared error to {objective}",
        source=f"{SCHULMAN}, sec. 6", tag="T", study="discount_and_lambda", needs=("gae(lam=0.95)",),
        statistic="share of random MDPs where both are in the interior of the grid",
        effect=_share(label, 100.0), direction="above", bound=0.5,
        control=Control("the same at N = 10¹², where variance does not count", _share(label, 1e12)),
    )  # fmt: skip
