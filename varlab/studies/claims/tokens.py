"""Claims about sequences of tokens: baselines of each token (RL-6), and tails of surrogate gradients off policy (HT-1)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from varlab.analysis import estimates
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, curves, geometric_mean_of, row
from varlab.studies.claims.verdicts import Effect
from varlab.studies.sequences import Sequences

#: Small and large groups of the source; groups drawn in each world, and the share of right answers that a world must have.
SMALL, LARGE, DRAWN, RIGHT = 4, 32, 4000, (0.02, 0.98)
#: Steps of ascent on the exact surrogate, and their size.
EPOCHS, STEP = 10, 1.0
FORMS = {"unclipped": "unclipped", "clipped": "clipped, ε = 0.2", "no_ratio": "without ratios"}
FRESH = "fresh data at θ"
PANEL = "random sequence worlds"


def worlds(budget: Budget, default: int) -> Iterator[tuple[int, Sequences]]:
    """Yield random worlds with their numbers, leaving out those where nearly every answer is right, or nearly none."""
    found = number = 0
    while found < budget.n(default, least=100):
        world = Sequences.draw(budget.seed, number)
        if RIGHT[0] <= world.moments.mean <= RIGHT[1]:
            found += 1
            yield number, world
        number += 1


def _estimated(budget: Budget, number: int, world: Sequences) -> float:
    """Return G · tr Cov of groups of four with estimated token baselines, from drawn groups."""
    rng = numpy_generator(Streams(budget.seed).sequence("branch", number))
    index = rng.choice(len(world.chance), size=(DRAWN, SMALL), p=world.chance / world.chance.sum())
    return SMALL * float(world.estimated_token_baselines(index).var(axis=0, ddof=1).sum())


@study(
    "token_baselines",
    "Variance per answer over that of leave-one-out means in groups of 32: geometric mean over random worlds (sequences of six "
    "out of three tokens, checked at the end), with intervals for the worlds that were drawn.",
    draw=lambda rows, style=None: estimates.draw(
        rows[rows["panel"] != ""], style, xlabel="variance over leave-one-out, G = 32", line=1.0
    ),
)
def token_baselines(budget: Budget) -> pd.DataFrame:
    """List the sequences of every world; groups with estimated baselines are drawn."""
    of_world: dict[str, list[float]] = {}
    for number, world in worlds(budget, 200):
        m = world.moments
        for name, v in (
            ("leave-one-out, G = 32", m.leave_one_out(LARGE)), ("leave-one-out, G = 4", m.leave_one_out(SMALL)),
            ("token baseline, G = 4", _estimated(budget, number, world)), ("mean", m.variance(m.mean)),
            ("token baseline", m.variance(m.cumulative)), ("best", m.variance(m.best)), ("no baseline", m.plain),
        ):  # fmt: skip
            of_world.setdefault(name, []).append(v)
    v = {name: np.array(x) for name, x in of_world.items()}
    large = v.pop("leave-one-out, G = 32")
    rows = [
        row(name if "G" in name or name == "no baseline" else f"{name}, known", geometric_mean_of(x / large), panel=PANEL)
        for name, x in v.items()
    ]
    for above, below in (("token baseline", "mean"), ("no baseline", "mean"), ("token baseline", "best"), ("mean", "best")):
        ratio = v[above] / v[below]
        rows.append(row(f"{above} over {below}", geometric_mean_of(ratio), panel="", what="mean"))
        rows.append(row(f"{above} over {below}", float(ratio.max()), panel="", what="largest"))
    for above in ("token baseline, G = 4", "no baseline"):
        ratio = geometric_mean_of(v[above] / v["leave-one-out, G = 4"])
        rows.append(row(f"{above} over leave-one-out, G = 4", ratio, panel="", what="mean"))
    return pd.DataFrame(rows)


LI = "Li, Xu, Li, Liu, Liu, Tong, Zheng, Xue, Zhang, Cai, Zhang, Liu, Wang, 2026, The Optimal Token Baseline"
WORLDS = "random sequences of 6 out of 3 tokens, softmax of the last token, right or wrong at the end"
claim(
    id="RL-6a", sentence="Weighting returns by the cumulative score norm gives the token baseline of least variance.", source=LI,
    tag="A", study="token_baselines", statistic="largest tr Cov over that of the best baseline of each token, within 10⁻⁹ of 1",
    direction="within", bound=1.0, margin=1e-9, condition=f"{WORLDS}; expectations known",
    effect=lambda rows: cell(rows, what="largest", label="token baseline over best"),
    control=Control("so does the mean return", lambda rows: cell(rows, what="largest", label="mean over best")),
)  # fmt: skip
claim(
    id="RL-6b", sentence="That baseline varies less than the mean of a large group.", source=LI, tag="A", study="token_baselines",
    statistic="tr Cov over that with E R, geometric mean over worlds", direction="below", bound=1.0, condition=WORLDS,
    effect=lambda rows: cell(rows, what="mean", label="token baseline over mean"),
    control=Control("so does no baseline", lambda rows: cell(rows, what="mean", label="no baseline over mean")),
)  # fmt: skip
claim(
    id="RL-6c", sentence="That baseline varies less than the mean of a large group.", source=LI, tag="A", study="token_baselines",
    statistic="tr Cov over that with E R, largest over worlds", direction="below", bound=1.0, condition=f"in general: {WORLDS}",
    effect=lambda rows: cell(rows, what="largest", label="token baseline over mean"),
    control=Control("so does no baseline", lambda rows: cell(rows, what="largest", label="no baseline over mean")),
)  # fmt: skip
claim(
    id="RL-6d", sentence="Groups of 4 with token baselines match groups of 32 with over 65 % fewer tokens.", source=LI, tag="A",
    study="token_baselines", statistic="tokens for equal variance, over those of leave-one-out with G = 32, geometric mean",
    direction="below", bound=0.35, condition=f"variance at a fixed policy; {WORLDS}", published="N = 4 for N = 32 [A]",
    effect=lambda rows: cell(rows, label="token baseline, G = 4"),
    control=Control("so do groups of 4 with leave-one-out", lambda rows: cell(rows, label="leave-one-out, G = 4")),
)  # fmt: skip
claim(
    id="RL-6e", sentence="Groups of 4 with token baselines take fewer tokens than groups of 4 with leave-one-out means.",
    source=LI, tag="A", study="token_baselines", statistic="tokens for equal variance, geometric mean of the ratio",
    direction="below", bound=1.0, condition=f"variance at a fixed policy; {WORLDS}",
    effect=lambda rows: cell(rows, label="token baseline, G = 4 over leave-one-out, G = 4"),
    control=Control("so do answers without a baseline", lambda rows: cell(rows, label="no baseline over leave-one-out, G = 4")),
)  # fmt: skip


@study(
    "surrogate_tails",
    "Kurtosis of the surrogate gradient over that at θ_b, along steps of exact ascent on the surrogate: with ratios, clipped, "
    "without ratios, and from fresh data at θ. Geometric means over random sequence worlds, exact in each.",
    draw=curves("steps away from the data's policy", "kurtosis over that at the start", "y", line=1.0),
)
def surrogate_tails(budget: Budget) -> pd.DataFrame:
    """Ascend the surrogate of every world, and list its sequences at each step."""
    found: dict[tuple[str, int], list[float]] = {}
    for _, world in worlds(budget, 200):
        theta, first = world.logits, None
        for epoch in range(EPOCHS + 1):
            g = {form: world.surrogate(theta, form) for form in FORMS}
            fresh = Sequences(theta, world.pays, world.length)
            kappa = {FORMS[form]: world.kurtosis(x) for form, x in g.items()}
            kappa[FRESH] = fresh.kurtosis(fresh.surrogate(theta, "unclipped"))
            first = first or kappa[FRESH]
            for name, k in kappa.items():
                found.setdefault((name, epoch), []).append(k / first)
            theta = theta + STEP * (world.chance @ g["unclipped"]).reshape(theta.shape)
    rows = [row(name, geometric_mean_of(np.array(v)), panel=PANEL, x=epoch) for (name, epoch), v in found.items()]
    last = {name: np.array(v) for (name, epoch), v in found.items() if epoch == EPOCHS}
    for above, below in (
        (FORMS["clipped"], FORMS["unclipped"]), (FORMS["unclipped"], FRESH), (FORMS["no_ratio"], FRESH),
        (FRESH, FORMS["unclipped"]),
    ):  # fmt: skip
        rows.append(row(f"{above} over {below}", geometric_mean_of(last[above] / last[below]), panel="", x=EPOCHS))
    return pd.DataFrame(rows)


def _grown(rows: pd.DataFrame, label: str) -> Effect:
    return cell(rows, panel=PANEL, label=label, x=EPOCHS)


def _over(rows: pd.DataFrame, above: str, below: str) -> Effect:
    return cell(rows, label=f"{above} over {below}")


GARG = "Garg, Zhanson, Parisotto, Prasad, Kolter, Lipton, et al., 2021, On Proximal Policy Optimization's Heavy-tailed Gradients"
ASCENT = f"10 steps of ascent on the exact surrogate; {WORLDS}"
claim(
    id="HT-1a", sentence="The tails of the surrogate gradient grow as the policy leaves the one that made the data.", source=GARG,
    tag="A", study="surrogate_tails", statistic="kurtosis over that at the start, geometric mean over worlds", direction="above",
    bound=1.05, effect=lambda rows: _grown(rows, FORMS["unclipped"]), condition=ASCENT, needs=("surrogate(lam=1)",),
    control=Control("without the ratios they do too", lambda rows: _grown(rows, FORMS["no_ratio"])),
)  # fmt: skip
claim(
    id="HT-1b", sentence="Clipping the ratios offsets the heavy tails.", source=GARG, tag="A", study="surrogate_tails",
    statistic="kurtosis clipped over unclipped, geometric mean over worlds", direction="below", bound=1.0, condition=ASCENT,
    effect=lambda rows: _over(rows, FORMS["clipped"], FORMS["unclipped"]), needs=("clipped_surrogate(lam=1)",),
    control=Control("so does taking fresh data", lambda rows: _over(rows, FRESH, FORMS["unclipped"])),
)  # fmt: skip
claim(
    id="HT-1c", sentence="They are heavier off policy than they would be on policy.", source=GARG, tag="A",
    study="surrogate_tails", statistic="kurtosis off policy over that of fresh data at the same θ, geometric mean over worlds",
    direction="above", bound=1.0, effect=lambda rows: _over(rows, FORMS["unclipped"], FRESH), condition=ASCENT,
    needs=("surrogate(lam=1)",),
    control=Control("even without the ratios", lambda rows: _over(rows, FORMS["no_ratio"], FRESH)),
)  # fmt: skip
