"""Claims about constant baselines and those of one number per parameter: OB-1 … OB-3, on worlds whose episodes are enumerated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import nn

from varlab import estimators
from varlab.analysis.slopes import fitted_slope
from varlab.envs.base import Environment
from varlab.envs.closed_form import two_arms_variance
from varlab.estimators.base import Estimator
from varlab.estimators.optimal import OptimalBaseline
from varlab.estimators.step_baselines import StepBaseline
from varlab.oracles.exact import exact_row, world_of
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, mean_of, row
from varlab.studies.claims.verdicts import Effect
from varlab.studies.episodes import Episodes
from varlab.studies.textbook_order import HORIZON, Draw
from varlab.values.dynamic_programming import gradient

#: Rewards and logit scales of random MDPs with S = 3, A = 2, H = 3.
CELLS = (("U(0, 1)", 1.0), ("N(0, 1)", 3.0))
BEST = "optimal_baseline(base=total_return)"
FINER = ("optimal_baseline(of=parameter, base=total_return)", "optimal_baseline(of=time, base=total_return)")
#: Distances from b* at which a variance is computed, and MDPs where that is done.
SHIFTS, SCANNED = tuple(np.linspace(-2.0, 2.0, 17)), 40
#: p = π(a = 1) of the two-armed counter-example.
SURE = 0.9
#: The MDP of the fits is the one of so many in which one baseline for each parameter gains most; numbers of episodes.
AMONG = 20
FITTED = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
CONTEXTS, DIMENSIONS, EACH = (2, 4, 8, 16), (4, 8, 16, 32), 400
WITHIN = "share of MDPs where tr Cov is at most 10 % above that with b*"


def named(rewards: str, scale: float) -> str:
    """Return the name of a cell of random MDPs."""
    return f"rewards {rewards}, logits ×{scale:g}"


def total(**fitted: object) -> OptimalBaseline:
    """Return Σ_t z_t (R − b) with a given b, or one for each parameter."""
    if "constant" in fitted:
        b = torch.tensor(fitted["constant"], dtype=torch.float64)
        return OptimalBaseline(base="total_return", fitted=StepBaseline("constant", b, HORIZON))
    return OptimalBaseline(of="parameter", base="total_return", by_parameter=torch.as_tensor(fitted["by_parameter"]))


def variances(env: Environment, policy: nn.Module, phi: Sequence[str | Estimator]) -> np.ndarray:
    """Return the exact tr Cov of each Φ [K], which may differ in what they were fitted to alone; γ = 1, no values."""
    world = world_of(env, policy, None, 1.0, None, "terminal")
    made = [estimators.parse(e) if isinstance(e, str) else e for e in phi]
    return np.array([exact_row(world, e, True).variance_per_parameter.sum() for e in made])


def _squared_scores(env: Environment, policy: SoftmaxTable) -> float:
    """Return E‖S‖² = Σ_t Σ_s d_t(s) (1 − Σ_a π(a | s)²), H steps of a softmax table."""
    world = world_of(env, policy, None, 1.0, None, "terminal")
    return float((world.visits * (1 - (world.pi**2).sum(1))).sum())


@study(
    "constant_baselines",
    "tr Cov of Σ z_t (R − b) over that with b*, along b (exact; dotted: the parabola 1 + (b − b*)² E‖S‖²/tr Cov*), on the first "
    "of the random MDPs of each kind (3 states, 2 actions, 3 steps).",
    draw=curves("b − b*", "variance ratio"),
)
def constant_baselines(budget: Budget) -> pd.DataFrame:
    """Scan b on some random MDPs, and compare the mean return with b* on many."""
    rows = []
    for rewards, scale in CELLS:
        name, mdps = named(rewards, scale), budget.n(400, least=20, multiple=1)
        worst, apart, near = {"b*": 0.0, "mean return": 0.0}, {"b*": 0.0, "without ‖S‖²": 0.0}, {1.0: 0, 2.0: 0}
        for number in range(mdps):
            env, policy = Draw.of(budget.seed, number).make(rewards, "table", scale)
            size, j = _squared_scores(env, policy), gradient(env.finite, policy, 1.0, env.horizon)[1]
            if number < min(SCANNED, mdps):
                episodes, least = Episodes.of(env, policy), variances(env, policy, [BEST])[0]
                found = variances(env, policy, [total(constant=episodes.best + x) for x in SHIFTS])
                vertex = np.polyfit(episodes.best + np.array(SHIFTS), found, 2)
                apart["b*"] = max(apart["b*"], abs(-vertex[1] / (2 * vertex[0]) - episodes.best))
                apart["without ‖S‖²"] = max(apart["without ‖S‖²"], abs(-vertex[1] / (2 * vertex[0]) - j))
                for centre, b in (("b*", episodes.best), ("mean return", j)):
                    told = least + (episodes.best + np.array(SHIFTS) - b) ** 2 * size
                    worst[centre] = max(worst[centre], float(np.abs(found / told - 1).max()))
                if number == 0:
                    rows += [
                        row("tr Cov", v / least, panel=name, x=x, exact=1 + x**2 * size / least)
                        for x, v in zip(SHIFTS, found, strict=True)
                    ]
            least, *others = variances(env, policy, [BEST, *(total(constant=k * j) for k in near)])
            for k, v in zip(near, others, strict=True):
                near[k] += v <= 1.1 * least
        rows += [row(k, v, panel="", what=f"parabola, {name}") for k, v in worst.items()]
        rows += [row(k, v, panel="", what=f"vertex, {name}") for k, v in apart.items()]
        rows += [row(f"{k:g} J", share(count, mdps), panel="", what=f"near, {name}") for k, count in near.items()]
    for label, b in (("J", SURE), ("b*", 1 - SURE), ("2 J", 2 * SURE)):
        ratio = two_arms_variance(SURE, b) / two_arms_variance(SURE)
        rows.append(row(label, ratio, panel="", what="two arms"))
    return pd.DataFrame(rows)


def share(count: int, n: int) -> Effect:
    """Return a share of n independent draws with its Clopper–Pearson interval."""
    interval = scipy.stats.binomtest(int(count), n).proportion_ci(0.95, method="exact")
    return Effect(count / n, interval.low, interval.high, n)


def _worst(rows: pd.DataFrame, what: str, label: str) -> Effect:
    return Effect.exact(max(cell(rows, what=f"{what}, {named(*c)}", label=label).value for c in CELLS))


GREENSMITH = "Greensmith, Bartlett, Baxter, 2004, Variance Reduction Techniques for Gradient Estimates in Reinforcement Learning"
WEAVER = "Weaver, Tao, 2001, The Optimal Reward Baseline for Gradient-Based Reinforcement Learning"
claim(
    id="OB-1a", sentence="Any constant baseline b exceeds the least variance by (b − b*)² E‖S‖².", source=GREENSMITH, tag="X",
    study="constant_baselines", statistic="largest relative difference of tr Cov from the parabola, within 10⁻⁹",
    direction="within", bound=0.0, margin=1e-9, effect=lambda rows: _worst(rows, "parabola", "b*"),
    condition="80 random MDPs, 17 b each, b* by enumeration of all episodes", needs=("optimal_baseline",),
    control=Control("with the mean return in the place of b*", lambda rows: _worst(rows, "parabola", "mean return")),
)  # fmt: skip
claim(
    id="OB-1b", sentence="The constant of least variance is b* = E[‖S‖² R]/E‖S‖².", source=GREENSMITH, tag="X",
    study="constant_baselines", statistic="largest distance of the foot of the parabola from b*, within 10⁻⁹",
    direction="within", bound=0.0, margin=1e-9, effect=lambda rows: _worst(rows, "vertex", "b*"), condition="as OB-1a",
    control=Control("it is E R, without ‖S‖²", lambda rows: _worst(rows, "vertex", "without ‖S‖²")),
)  # fmt: skip
claim(
    id="OB-2a", sentence="The mean reward is the constant baseline of least variance.", source=WEAVER, tag="A",
    study="constant_baselines", statistic="tr Cov with the mean return, over that without baseline; b* makes it 0",
    direction="within", bound=0.0, margin=1e-9, effect=lambda rows: cell(rows, what="two arms", label="J"),
    condition="in general: two arms that pay 0 and 1, the better chosen with p = 0.9",
    control=Control("twice the mean return is", lambda rows: cell(rows, what="two arms", label="2 J")),
)  # fmt: skip
claim(
    id="OB-2b", sentence="The mean reward can be far from the best constant baseline.", source=GREENSMITH, tag="A",
    study="constant_baselines", statistic="tr Cov with the mean return, over that without baseline; b* makes it 0",
    direction="above", bound=1.0, effect=lambda rows: cell(rows, what="two arms", label="J"), condition="as OB-2a",
    control=Control("E[‖S‖² R]/E‖S‖² can be", lambda rows: cell(rows, what="two arms", label="b*")),
)  # fmt: skip
for _id, _name, _words in (
    ("c", named(*CELLS[0]), "rewards U(0, 1), logits N(0, 1)"), ("d", named(*CELLS[1]), "rewards N(0, 1), logits N(0, 9)"),
):  # fmt: skip
    claim(
        id=f"OB-2{_id}", sentence="In three of four worlds the mean return is within 10 % of the best constant.", source=WEAVER,
        tag="X", study="constant_baselines", statistic=WITHIN, direction="above", bound=0.75,
        effect=lambda rows, name=_name: cell(rows, what=f"near, {name}", label="1 J"),
        condition=f"random MDPs, {_words}",
        control=Control(
            "twice the mean return is",
            lambda rows, name=_name: cell(rows, what=f"near, {name}", label="2 J"),
        ),
    )  # fmt: skip


@study(
    "parameter_baselines",
    "Left: tr Cov with baselines that were fitted on n other episodes, over that with the best constant, on the one of 20 random "
    "MDPs where those of each parameter gain most (dotted: population values). Right: n times the relative excess of such a fit "
    "against the number P of parameters, in a table whose contexts each move two of them, and in a dense Gaussian policy.",
    draw=curves("episodes fitted on, or P", "", "xy"),
)
def parameter_baselines(budget: Budget) -> pd.DataFrame:
    """Compare baselines in the population, then by fits on small data."""
    rows = []
    for c in CELLS:
        over: dict[str, float] = {}
        for number in range(budget.n(200, least=20, multiple=1)):
            env, policy = Draw.of(budget.seed, number).make(c[0], "table", c[1])
            b, j = Episodes.of(env, policy).best_by_parameter, gradient(env.finite, policy, 1.0, env.horizon)[1]
            v = variances(env, policy, [*FINER, total(by_parameter=np.roll(b, 2)), BEST, total(constant=j)])
            for label, ratio in zip(
                ("per parameter", "per time", "of another state", "constant"), (*v[:3] / v[3], v[3] / v[4]), strict=True
            ):
                over[label] = max(over.get(label, 0.0), float(ratio))
        rows += [row(k, v, panel="", what=f"largest, {named(*c)}") for k, v in over.items()]
    rng = numpy_generator(Streams(budget.seed).sequence("fit"))
    drawn = (Draw.of(budget.seed, number).make(CELLS[1][0], "table", CELLS[1][1]) for number in range(AMONG))
    episodes = min((Episodes.of(*world) for world in drawn), key=finer_gain)
    population = {"constant": 1.0, "per parameter": finer_gain(episodes)}
    for n in FITTED:
        found = episodes.fits(n, budget.n(2000), rng)
        rows += [
            row(k, mean_of(found[k]), panel="variance ratio", x=n, exact=exactly) for k, exactly in population.items()
        ]
        for k in ("per parameter", "of another state"):
            rows.append(row(k, mean_of(found[k] - found["constant"]), panel="", what="less constant", x=n))
    for kind, sizes, excess in (("table", CONTEXTS, table_excess), ("dense", DIMENSIONS, dense_excess)):
        points: dict[str, list[Effect]] = {}
        for size in sizes:
            found = excess(size, EACH, budget.n(1000), rng)
            p = 2 * size if kind == "table" else size
            for k, x in found.items():
                points.setdefault(k, []).append(e := mean_of(x))
                rows.append(row(f"{k}, {kind}", e, panel="n × relative excess", x=p))
        rows += [row(k, log_slope(sizes, es), panel="", what=f"slope, {kind}") for k, es in points.items()]
    return pd.DataFrame(rows)


def finer_gain(episodes: Episodes) -> float:
    """Return the variance with the best baseline of each parameter over that with the best constant."""
    return episodes.variance(episodes.best_by_parameter) / episodes.variance(episodes.best)


def table_excess(contexts: int, n: int, datasets: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return n times the relative excess of fitted baselines, [D], in a table of contexts with two arms each.

    A context is drawn, one of two like arms is chosen with p = 1/2, and the reward is ±1, whatever they are: b* = 0 everywhere,
    and a parameter sees only the episodes of its context, one in C.

    Args:
        contexts: C; P = 2 C.
        n: episodes that a baseline is fitted on.
        datasets: D.
        rng: source of randomness.

    Returns:
        By name, n (tr Cov / tr Cov* − 1).
    """
    seen = rng.multinomial(n, np.full(contexts, 1 / contexts), size=datasets)
    paid = 2 * rng.binomial(seen, 0.5) - seen
    # All S_p² are 1/4 in the context of p, so that b̂_p is the mean reward there; shares of E‖S‖² are equal.
    own = np.divide(paid, seen, out=np.zeros(seen.shape), where=seen > 0)
    return {"per parameter": n * (own**2).mean(1), "constant": n * (paid.sum(1) / n) ** 2}


def dense_excess(dim: int, n: int, datasets: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return n times the relative excess of fitted baselines, [D], on r = −‖a‖² with a ~ N(0, I_P).

    S = a and b*_p = −(P + 2) for all p: one number each gains nothing here. tr Cov* = 2 P (P + 2).

    Args:
        dim: P.
        n: episodes that a baseline is fitted on.
        datasets: D.
        rng: source of randomness.

    Returns:
        By name, n (tr Cov / tr Cov* − 1).
    """
    out: dict[str, list[float]] = {"per parameter": [], "constant": []}
    for _ in range(datasets):
        square = rng.standard_normal((n, dim)) ** 2
        reward = -square.sum(1)
        own, one = (square.T @ reward) / square.sum(0), (square.sum(1) @ reward) / square.sum()
        for k, gap in (("per parameter", ((own + dim + 2) ** 2).sum()), ("constant", dim * (one + dim + 2) ** 2)):
            out[k].append(n * gap / (2 * dim * (dim + 2)))
    return {k: np.array(v) for k, v in out.items()}


def log_slope(x: tuple[float, ...], estimates: list[Effect]) -> Effect:
    """Return the least-squares slope of log value over log x of independent estimates, with its 95 % interval."""
    found = fitted_slope(x, *([getattr(e, k) for e in estimates] for k in ("value", "low", "high")))
    return Effect(found.value, found.low, found.high, min(e.n for e in estimates))


PETERS = "Peters, Schaal, 2008, Reinforcement Learning of Motor Skills with Policy Gradients"
claim(
    id="OB-3a", sentence="One best baseline for each parameter varies no more than the best constant.", source=PETERS, tag="X",
    study="parameter_baselines", statistic="largest ratio of variances over random MDPs, population values", direction="below",
    bound=1.0, effect=lambda rows: _worst(rows, "largest", "per parameter"), needs=("optimal_baseline(of=parameter)",),
    control=Control("neither with those of another state", lambda rows: _worst(rows, "largest", "of another state")),
)  # fmt: skip
claim(
    id="OB-3b", sentence="One best baseline for each time varies no more than the best constant.", source=PETERS, tag="X",
    study="parameter_baselines", statistic="largest ratio of variances over random MDPs, population values", direction="below",
    bound=1.0, effect=lambda rows: _worst(rows, "largest", "per time"), needs=("optimal_baseline(of=time)",),
    control=Control("neither with those of another state", lambda rows: _worst(rows, "largest", "of another state")),
)  # fmt: skip
claim(
    id="OB-3c", sentence="The best constant varies no more than the mean return.", source=PETERS, tag="X",
    study="parameter_baselines", statistic="largest ratio of variances over random MDPs, population values", direction="below",
    bound=1.0, effect=lambda rows: _worst(rows, "largest", "constant"), needs=("optimal_baseline",),
    control=Control(
        "neither than one of another state for each parameter", lambda rows: _worst(rows, "largest", "of another state")
    ),
)  # fmt: skip
for _id, _n, _direction, _words in (
    ("d", 5, "below", "in general: fitted on 5 other episodes"), ("e", 2000, "below", "fitted on 2,000 other episodes"),
):  # fmt: skip
    claim(
        id=f"OB-3{_id}", sentence="A baseline for each parameter varies less than a constant.", source=PETERS, tag="X",
        study="parameter_baselines", statistic="difference of variances on new data, over that with the best constant",
        direction=_direction, bound=0.0, condition=_words,
        effect=lambda rows, n=_n: cell(rows, what="less constant", label="per parameter", x=n),
        control=Control(
            "so does one of another state",
            lambda rows, n=_n: cell(rows, what="less constant", label="of another state", x=n),
        ),
    )  # fmt: skip
for _id, _kind, _words in (
    ("f", "table", "in a table: a context moves two parameters"),
    ("g", "dense", "in general: a Gaussian policy all of whose parameters move in every episode"),
):
    claim(
        id=f"OB-3{_id}", sentence="What fitting a baseline for each parameter on n episodes costs is of order P/n.",
        source="derived here", tag="X", study="parameter_baselines", direction="within", bound=1.0, margin=0.25, condition=_words,
        statistic="slope of log(n × relative excess) over log P, within 0.25 of 1",
        effect=lambda rows, kind=_kind: cell(rows, what=f"slope, {kind}", label="per parameter"),
        control=Control(
            "what fitting one constant costs", lambda rows, kind=_kind: cell(rows, what=f"slope, {kind}", label="constant")
        ),
    )  # fmt: skip
