"""Claims about baselines of groups, RL-1 … RL-5, most of them decided by enumeration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from varlab import estimators
from varlab.envs.base import Environment
from varlab.envs.prompts import group_normalised_factor, prompts
from varlab.experiment import measure
from varlab.policies.networks import SoftmaxTable
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, ratio, row
from varlab.studies.claims.verdicts import Effect
from varlab.studies.group_terms import GroupTerms
from varlab.studies.unit_moments import Units, enumerate_units

GROUPS = (2, 3, 4, 8, 16, 32)
#: Prompts from hard to easy.
SPREAD = (0.05, 0.25, 0.5, 0.9)
UNLIKE = "p = 0.05, 0.25, 0.5, 0.9"
ALIKE = (0.3, 0.4, 0.5, 0.6)
ENDS = (0.05, 0.95)
#: Eight prompts with one right answer of eight each.
MANY = tuple(np.linspace(0.1, 0.8, 8).tolist())
BUDGETS = (2**8, 2**14)
MEASURED = (2, 4, 8, 16, 32)
SIZE = r"group size $G$"


def solved(p: Sequence[float], answers: int = 2) -> tuple[Environment, SoftmaxTable]:
    """Return prompts that are solved with probabilities p by the first of A answers, the others being equally likely."""
    env = prompts(success=[[1.0] + [0.0] * (answers - 1)] * len(p))
    logits = torch.zeros(len(p), answers, dtype=torch.float64)
    chance = torch.tensor(p, dtype=torch.float64)
    logits[:, 0] = (chance * (answers - 1) / (1 - chance)).log()
    return env, SoftmaxTable(env, logits)


def _advantage_variance(units: Units, phi: np.ndarray) -> float:
    """Return the variance of Φ of one trajectory; multisets are sorted, so that all of a group's trajectories are pooled."""
    mean = float(units.weight @ phi.mean(1))
    return float(units.weight @ ((phi - mean) ** 2).mean(1))


@study(
    "group_baselines",
    "Mean of the gradient as a multiple of ∇J, and variance of the advantage at one prompt that is solved with p = 1/4, under "
    "leave-one-out and own-mean baselines: all groups on four prompts, enumerated.",
    draw=curves(SIZE, "", "x"),
)
def group_baselines(budget: Budget) -> pd.DataFrame:
    """Enumerate groups; nothing is drawn, so that the budget changes nothing."""
    env, policy = solved(SPREAD, 3)
    single = solved([0.25])
    rows = []
    for g in GROUPS:
        units, one = enumerate_units(env, policy, g), enumerate_units(*single, g)
        own, other = (units.phi(estimators.parse(n)) for n in ("group_mean", "leave_one_out"))
        for name, phi in (("leave_one_out", other), ("group_mean", own)):
            found = units.moments(phi)
            rows.append(row(name, found.scale, panel="multiple of ∇J", x=g))
            rows.append(row(name, found.bias, panel="", x=g, what="bias"))
            spread = _advantage_variance(one, one.phi(estimators.parse(name)))
            rows.append(row(name, spread, panel="variance of the advantage", x=g))
        mean = units.reward.mean(1, keepdims=True)
        for name, factor in (("G/(G − 1)", g / (g - 1)), ("(G + 1)/G", (g + 1) / g)):
            gap = np.abs(other - factor * (units.reward - mean)).max()
            rows.append(row(name, float(gap), panel="", x=g, what="identity"))
    return pd.DataFrame(rows)


def _largest(rows: pd.DataFrame, what: str, label: str, shift: float = 0.0) -> Effect:
    here = rows[(rows["what"] == what) & (rows["label"] == label)]
    return Effect.exact(float((here["value"] - shift).abs().max()))


KOOL = "Kool, van Hoof, Welling, 2019, Buy 4 REINFORCE Samples; Ahmadian et al., 2024, Back to Basics"
claim(
    id="RL-1a", sentence="A leave-one-out baseline leaves the gradient unbiased.", source=KOOL, tag="A", study="group_baselines",
    statistic="largest ‖E ĝ − ∇J‖/‖∇J‖ over G = 2 … 32, within 10⁻¹⁰", direction="within", bound=0.0, margin=1e-10,
    effect=lambda rows: _largest(rows, "bias", "leave_one_out"), needs=("leave_one_out",),
    control=Control("a mean that contains the answer itself does too", lambda rows: _largest(rows, "bias", "group_mean")),
)  # fmt: skip
claim(
    id="RL-1b", sentence="The leave-one-out advantage is G/(G − 1) times the return less the mean of the group.", source=KOOL,
    tag="A", study="group_baselines", statistic="largest difference over all groups, G = 2 … 32, within 10⁻¹⁰",
    effect=lambda rows: _largest(rows, "identity", "G/(G − 1)"), direction="within", bound=0.0, margin=1e-10,
    control=Control("(G + 1)/G times", lambda rows: _largest(rows, "identity", "(G + 1)/G")),
)  # fmt: skip


def _shrinkage(rows: pd.DataFrame, label: str) -> Effect:
    here = rows[(rows["panel"] == "multiple of ∇J") & (rows["label"] == label)]
    return Effect.exact(float((here["value"] - (here["x"] - 1) / here["x"]).abs().max()))


def _spread(rows: pd.DataFrame, label: str) -> Effect:
    return cell(rows, panel="variance of the advantage", label=label, x=8)


NOTE = "derived here; the same numbers in an open-problem note on group baselines"
claim(
    id="RL-2a", sentence="A mean that contains the answer itself shrinks the gradient by (G − 1)/G.", source=NOTE, tag="X",
    study="group_baselines", statistic="largest |c − (G − 1)/G| with E ĝ = c ∇J, G = 2 … 32, within 10⁻¹⁰",
    effect=lambda rows: _shrinkage(rows, "group_mean"), direction="within", bound=0.0, margin=1e-10, needs=("group_mean",),
    control=Control("leaving it out shrinks as well", lambda rows: _shrinkage(rows, "leave_one_out")),
)  # fmt: skip
for _id, _label, _other, _number in (("b", "group_mean", "leave_one_out", 0.164), ("c", "leave_one_out", "group_mean", 0.214)):
    claim(
        id=f"RL-2{_id}", source=NOTE, tag="X", study="group_baselines", direction="within", bound=_number, margin=5e-4,
        sentence=f"With G = 8 and p = 1/4 the advantage under {estimators.parse(_label).formula} has variance {_number}.",
        statistic="variance of the advantage, within the rounding of the number", published=f"{_number} [T]",
        effect=lambda rows, label=_label: _spread(rows, label),
        control=Control(
            f"so it has under {estimators.parse(_other).formula}", lambda rows, other=_other: _spread(rows, other)
        ),
    )  # fmt: skip


@study(
    "group_normalised",
    "Sine of the angle between E ĝ and ∇J where advantages are divided by the standard deviation of their group, for prompts of "
    "unlike and of like difficulty; dotted: the limit of large groups. All groups enumerated.",
    draw=curves(SIZE, "sin(angle to ∇J)", "x"),
)
def group_normalised(budget: Budget) -> pd.DataFrame:
    """Enumerate groups; the limit of G is 1/√(p (1 − p)) for each prompt."""
    rows = []
    for title, p in ((UNLIKE, SPREAD), ("p = 0.3, 0.4, 0.5, 0.6", ALIKE)):
        env, policy = solved(p)
        chance = np.array(p)
        length = chance * (1 - chance)  # ‖∇p‖ but for a factor, in directions that are orthogonal
        for g in (*GROUPS, 64, 128):
            units = enumerate_units(env, policy, g)
            for name in ("group_normalised", "group_mean"):
                found = units.moments(units.phi(estimators.parse(name)))
                limit = _sine(length, length**-0.5) if name == "group_normalised" else 0.0
                rows.append(row(name, found.direction_bias, panel=title, x=g, exact=limit, closed=_closed(p, length, g, name)))
                rows.append(row(name, found.bias, panel="", x=g, what=f"bias, {title}"))
    returns = np.array([1.0] * 3 + [0.0] * 5)
    said = np.array([1.21, -0.72, 0.71, -0.43])
    centred = returns - returns.mean()
    loo = (8 / 7 * centred)[[0, -1]]
    for label, ddof in (("std with n − 1", 1), ("std with n", 0)):
        found = np.concatenate([(centred / returns.std(ddof=ddof))[[0, -1]], loo])
        rows.append(row(label, float(np.abs(found - said).max()), panel="", x=8))
    return pd.DataFrame(rows)


def _sine(gradient: np.ndarray, factor: np.ndarray) -> float:
    """Return the sine of the angle between Σ_s f_s ∇p_s and Σ_s ∇p_s for orthogonal ∇p_s of these lengths."""
    turned = factor * gradient
    cosine = turned @ gradient / (np.linalg.norm(turned) * np.linalg.norm(gradient))
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


def _closed(p: Sequence[float], length: np.ndarray, group: int, name: str) -> float:
    if name == "group_mean":
        return 0.0
    return _sine(length, np.array([group_normalised_factor(q, group) for q in p]))


def _turn(rows: pd.DataFrame, group: int, label: str = "group_normalised") -> Effect:
    return cell(rows, panel=UNLIKE, label=label, x=group)


LIU = "Liu, Chen, Li, Qi, Pang, Du, Lee, Lin, 2025, Understanding R1-Zero-Like Training"
claim(
    id="RL-3a", sentence="Dividing by the standard deviation of the group turns the gradient away from ∇J.", source=LIU, tag="A",
    study="group_normalised", statistic="sine of the angle between E ĝ and ∇J at G = 8", direction="above", bound=0.05,
    effect=lambda rows: _turn(rows, 8), needs=("group_normalised",), condition="prompts solved with p = 0.05, 0.25, 0.5, 0.9",
    control=Control("subtracting the mean of the group does", lambda rows: _turn(rows, 8, "group_mean")),
)  # fmt: skip
claim(
    id="RL-3b", sentence="The bias of the division stays as groups grow.", source=LIU, tag="A", study="group_normalised",
    statistic="sine of the angle at G = 128 over that at G = 8", direction="above", bound=0.9, needs=("group_normalised",),
    effect=lambda rows: ratio(_turn(rows, 128), _turn(rows, 8)), condition="as RL-3a",
    control=Control(
        "so does the bias ‖E ĝ − ∇J‖ of a mean that contains the answer",
        lambda rows: ratio(*(cell(rows, what=f"bias, {UNLIKE}", label="group_mean", x=g) for g in (128, 8))),
    ),
)  # fmt: skip
claim(
    id="RL-3c", sentence="The division turns the gradient at every group size.", source=LIU, tag="A", study="group_normalised",
    statistic="least sine of the angle over G = 2 … 128; it is 0 at G = 2 and 3 for returns 0 and 1", direction="above",
    bound=0.001, condition="in general", needs=("group_normalised",),
    effect=lambda rows: Effect.exact(min(_turn(rows, g).value for g in (*GROUPS, 64, 128))),
    control=Control("a mean does", lambda rows: Effect.exact(min(_turn(rows, g, "group_mean").value for g in GROUPS))),
)  # fmt: skip
claim(
    id="RL-3d", sentence="Of 8 answers with 3 right, GRPO gives 1.21 and −0.72, leave-one-out 0.71 and −0.43.", source=LIU,
    tag="T", study="group_normalised", statistic="largest difference of the four numbers, within their rounding",
    direction="within", bound=0.0, margin=0.005, effect=lambda rows: cell(rows, label="std with n − 1"),
    published="1.21/−0.72, 0.71/−0.43 [T]",
    control=Control("with a standard deviation that divides by n", lambda rows: cell(rows, label="std with n")),
)  # fmt: skip


@study(
    "group_budget",
    "Variance per answer against the group size, measured and (dotted) in closed form, and mean square error with 256 and with "
    "16,384 answers in all: eight prompts with eight answers each.",
    draw=curves(SIZE, "", "xy", columns=3),
)
def group_budget(budget: Budget) -> pd.DataFrame:
    """Measure at a few group sizes, and take the closed form everywhere."""
    env, policy = solved(MANY, 8)
    terms = GroupTerms.of_world(env, policy)
    rows = []
    n = budget.n(64_000, multiple=50 * max(MEASURED))
    for g in MEASURED:
        found = measure(
            env, policy, ["leave_one_out", "value_baseline"], n=n, group_size=g, seed=budget.seed, dtype="float64", exact=False
        ).summary
        for name, v, low, high in found[["phi", "variance", "variance_low", "variance_high"]].itertuples(index=False):
            e = Effect(v, low, high, n, log=True)
            rows.append(row(name, e, panel="n · tr Cov", x=g, exact=float(terms.variance(name, g))))
    for budgeted in BUDGETS:
        for name in ("leave_one_out", "value_baseline", "group_mean"):
            for g in MEASURED:
                rows.append(row(name, float(terms.mse(name, g, budgeted)), panel=f"MSE with {budgeted:,} answers", x=g))
            if name != "value_baseline":
                rows.append(row(name, terms.best_group(name, budgeted), panel="", x=budgeted, what="best group"))
    rows.append(row("group_mean", terms.best_group("group_mean", 2**16), panel="", x=2**16, what="best group"))
    for name in ("leave_one_out", "batch_mean"):
        within = terms.variance(name, 128) - 128 * terms.between
        rows.append(row(name, within / terms.within, panel="", x=128, what="within"))
    return pd.DataFrame(rows)


def _best(rows: pd.DataFrame, label: str, large: int = BUDGETS[1]) -> Effect:
    return ratio(*(cell(rows, what="best group", label=label, x=x) for x in (large, BUDGETS[0])))


def _measured(rows: pd.DataFrame, closed: str = "leave_one_out") -> Effect:
    """Return the measured variance of leave-one-out at G = 2 over the closed form of a baseline."""
    panel = "n · tr Cov"
    e = cell(rows, panel=panel, label="leave_one_out", x=2)
    exact = float(rows[(rows["panel"] == panel) & (rows["label"] == closed) & (rows["x"] == 2)]["exact"].iloc[0])
    return Effect(e.value / exact, e.low / exact, e.high / exact, e.n, log=True)


ZHOU = "Zhou, Ye, Xu, Zhu, Gong, Shi, 2026, Demystifying Group Relative Policy Optimization"
claim(
    id="RL-4a", sentence="As groups grow, the mean of the group is as good a baseline as the true V.", source=ZHOU, tag="A",
    study="group_budget", statistic="variance at given prompts over that with V, G = 128, within 0.02 of 1", direction="within",
    bound=1.0, margin=0.02, effect=lambda rows: cell(rows, what="within", label="leave_one_out"), needs=("leave_one_out",),
    control=Control("so is one mean for all prompts", lambda rows: cell(rows, what="within", label="batch_mean")),
)  # fmt: skip
claim(
    id="RL-4b", sentence="The best group size does not depend on how many answers there are in all.", source=ZHOU, tag="A",
    study="group_budget", statistic="best G with 16,384 answers over best G with 256, within 0.2 of 1", direction="within",
    bound=1.0, margin=0.2, effect=lambda rows: _best(rows, "leave_one_out"), condition="leave-one-out, by mean square error",
    needs=("leave_one_out",),
    control=Control("so it is with a mean that contains the answer", lambda rows: _best(rows, "group_mean")),
)  # fmt: skip
claim(
    id="RL-4c", sentence="The best group size does not depend on how many answers there are in all.", source=ZHOU, tag="A",
    study="group_budget", statistic="best G with 16,384 answers over best G with 256, within 0.2 of 1", direction="within",
    bound=1.0, margin=0.2, effect=lambda rows: _best(rows, "group_mean"), needs=("group_mean",),
    condition="the answer in its own mean, as in GRPO: its bias ‖∇J‖²/G² does not fall with n",
    control=Control("nor with 65,536 answers", lambda rows: _best(rows, "group_mean", 2**16)),
)  # fmt: skip
claim(
    id="RL-4d", source=ZHOU, tag="A", study="group_budget",
    sentence="The group gradient has the variance of a U-statistic: between prompts, within them, and a term over G − 1.",
    statistic="measured over closed form at G = 2, where the last term is largest, within 0.1 of 1", direction="within",
    bound=1.0, margin=0.1, effect=_measured, needs=("leave_one_out",),
    control=Control("the last term is nothing", lambda rows: _measured(rows, "value_baseline")),
)  # fmt: skip


@study(
    "group_shrinkage",
    "Variance with James-Stein baselines over that with leave-one-out means, for prompts of like and of unlike difficulty; three "
    "groups to a unit, enumerated, and sixteen, measured.",
    draw=curves(SIZE, "variance ratio", "x", line=1.0),
)
def group_shrinkage(budget: Budget) -> pd.DataFrame:
    """Enumerate units of three groups, and measure units of sixteen."""
    rows = []
    rare = prompts(success=[[1.0, 0.0], [1.0, 1.0]])
    worlds = {"p = 0.3 … 0.6": solved(ALIKE), "p = 0.05, 0.95": solved(ENDS), "p = 1/2, and always": (rare, SoftmaxTable(rare))}
    for name, (env, policy) in worlds.items():
        for g in (2, 3, 4, 8):
            units = enumerate_units(env, policy, g, 3)
            found = [units.moments(units.phi(estimators.parse(x))).variance for x in ("james_stein", "leave_one_out")]
            rows.append(row(name, found[0] / found[1], panel="three groups", x=g))
    for name, (env, policy) in worlds.items():
        for g in (2, 4, 8):
            n = budget.n(64_000, multiple=50 * 16 * g)
            summary = measure(
                env, policy, ["leave_one_out", "james_stein", "group_mean"], n=n, group_size=g, groups=16, seed=budget.seed,
                dtype="float64", exact=False,
            ).summary.set_index("phi")  # fmt: skip
            one = summary.loc["james_stein"]
            found = Effect(one["variance_ratio"], one["variance_ratio_low"], one["variance_ratio_high"], n, log=True)
            rows.append(row(name, found, panel="sixteen groups", x=g))
    return pd.DataFrame(rows)


def _gain(rows: pd.DataFrame, label: str, small: int = 2, large: int = 8) -> Effect:
    two, eight = (cell(rows, panel="three groups", label=label, x=g).value for g in (small, large))
    return Effect.exact((1 - two) / (1 - eight))


ZENG = "Zeng, Zhou, Arora, Zanette, 2025, Shrinking the Variance"
claim(
    id="RL-5a", sentence="A James-Stein baseline varies less than the mean of each group where groups are small.", source=ZENG,
    tag="A", study="group_shrinkage", statistic="variance over that of leave-one-out, G = 2, sixteen groups", direction="below",
    bound=0.95, effect=lambda rows: cell(rows, panel="sixteen groups", label="p = 0.3 … 0.6", x=2),
    condition="four prompts solved with p = 0.3 to 0.6", needs=("james_stein", "leave_one_out"),
    control=Control(
        "also with G = 8 where one prompt is solved by any answer",
        lambda rows: cell(rows, panel="three groups", label="p = 1/2, and always", x=8),
    ),
)  # fmt: skip
claim(
    id="RL-5b", sentence="The gain grows as groups get smaller.", source=ZENG, tag="A", study="group_shrinkage",
    statistic="share of the variance saved at G = 2 over that at G = 8, three groups", direction="above", bound=1.0,
    effect=lambda rows: _gain(rows, "p = 0.3 … 0.6"), condition="as RL-5a", needs=("james_stein",),
    control=Control("it grows as they get larger", lambda rows: _gain(rows, "p = 0.3 … 0.6", 8, 2)),
)  # fmt: skip
claim(
    id="RL-5c", sentence="The gain grows as groups get smaller.", source=ZENG, tag="A", study="group_shrinkage",
    statistic="share of the variance saved at G = 2 over that at G = 8, three groups", direction="above", bound=1.0,
    effect=lambda rows: _gain(rows, "p = 0.05, 0.95"), needs=("james_stein",),
    condition="in general: here two prompts with p = 0.05 and 0.95, whose best baselines 1 − p lie near each other's V",
    control=Control("between G = 4 and G = 8 it does", lambda rows: _gain(rows, "p = 0.05, 0.95", 4, 8)),
)  # fmt: skip
claim(
    id="RL-5d", sentence="A James-Stein baseline never varies more than the mean of each group.", source=ZENG, tag="A",
    study="group_shrinkage", statistic="largest ratio of variances over prompts and G, three groups",
    direction="below", bound=1.0, condition="in general",
    effect=lambda rows: Effect.exact(rows[rows["panel"] == "three groups"]["value"].max()),
    needs=("james_stein", "leave_one_out"),
    control=Control(
        "nor less than it at its worst, on the same prompts with G = 4",
        lambda rows: cell(rows, panel="three groups", label="p = 1/2, and always", x=4),
    ),
)  # fmt: skip
