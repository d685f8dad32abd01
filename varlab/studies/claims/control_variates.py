"""Claims about Q as a control variate of each step, along the trajectory and doubly robust: TC-1 and DR-1, on small worlds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from varlab import policies
from varlab.analysis import estimates
from varlab.analysis import style as styles
from varlab.envs.shared_logit import crossed_gaps, late_gaps
from varlab.oracles.components import components
from varlab.oracles.exact import exact
from varlab.oracles.units import Listed
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, mean_of, row
from varlab.studies.claims.random_worlds import drawn, share
from varlab.studies.claims.verdicts import Effect
from varlab.studies.textbook_order import median

NONE, STATE, STEP, PATH = "reward_to_go", "value_baseline", "state_action_control_variate", "trajectory_control_variate"
ROBUST, MISTAKEN = "doubly_robust(error=0.0)", "doubly_robust(error=0.5)"
#: Of which the moments have recursions.
RECURSIVE = (NONE, STATE, STEP, PATH, "all_action", "q_value", "advantage")
#: Pairs (lower, higher) of what is said.
ORDER = ((STATE, NONE), (STEP, STATE), (PATH, STEP), (ROBUST, PATH))
SAMPLED_Q = (("all_action", "q_value"), ("all_action", "advantage"))
SIGNS = {
    NONE: "$G_t$", STATE: "$G_t-V_t$", STEP: "per step", PATH: "along path", ROBUST: "DR", "all_action": r"$\sum_a$",
    "q_value": "$Q_t$", "advantage": "$A_t$",
}  # fmt: skip
#: Of variances: differences below this are rounding.
ROUNDING = 1e-9
PARTS = ("future of the step", "pairs of steps")
LARGEST = "largest ratio of variances"


@study(
    "trajectory_control_variates",
    "Two parts of tr Cov ĝ as shares of that of reward-to-go, means over random MDPs with exact Q: what is random about a step "
    "once its state and action are known, and the covariances between pairs of steps.",
    draw=lambda rows, style=None: estimates.draw(rows[rows["panel"] != ""], style, xlabel="share of tr Cov of $G_t$"),
)
def trajectory_control_variates(budget: Budget) -> pd.DataFrame:
    """Take the exact components on worlds with and without random transitions."""
    rows = []
    for kind, outcomes in (("deterministic", 1), ("random", 2)):
        found: dict[tuple[str, str], list[float]] = {}
        for number in range(budget.n(300, least=50)):
            world = drawn(budget.seed, number, outcomes)
            made = {phi: components(*world, phi) for phi in (NONE, STATE, STEP, PATH, "all_action")}
            for phi, c in made.items():
                whole = made[NONE].total
                numbers = {
                    "residual": (c.action.sum() + c.trajectory.sum()) / whole,
                    PARTS[0]: c.trajectory.sum() / whole,
                    PARTS[1]: c.cross.sum() / whole,
                    "future left": c.trajectory.sum() / made[NONE].trajectory.sum() - 1,
                    "pairs left": (c.cross.sum() - made["all_action"].cross.sum()) / whole,
                }
                for what, x in numbers.items():
                    found.setdefault((what, phi), []).append(float(x))
        for (what, phi), x in found.items():
            if what in PARTS:
                rows.append(row(phi, mean_of(np.array(x)), panel=f"{what}, {kind}", what=what))
            else:
                rows.append(row(phi, float(np.abs(x).max()), panel="", what=f"{what}, {kind}"))
    return pd.DataFrame(rows)


CHENG = "Cheng, Yan, Boots, 2019, Trajectory-wise Control Variates for Variance Reduction in Policy Gradient Methods"
DETERMINISTIC = "exact Q, deterministic transitions"
for _id, _sentence, _statistic, _what, _phi, _control in (
    (
        "a", "Where transitions are deterministic a trajectory-wise control variate leaves nothing of a step but its state.",
        "action and trajectory parts of all steps over tr Cov of G, largest over random MDPs, within 10⁻⁹",
        "residual, deterministic", PATH, STEP,
    ),
    (
        "b", "A control variate of each step alone leaves all that the future brings into the step.",
        "trajectory parts over those of G, less 1, largest over random MDPs, within 10⁻⁹", "future left, random", STEP, PATH,
    ),
    (
        "c", "Trajectory-wise, pairs of steps covary only as far as their states do.",
        "covariances between steps less those of the sum over actions, over tr Cov of G, largest over random MDPs, within 10⁻⁹",
        "pairs left, deterministic", PATH, STEP,
    ),
):  # fmt: skip
    claim(
        id=f"TC-1{_id}", sentence=_sentence, source=CHENG, tag="A", study="trajectory_control_variates", statistic=_statistic,
        effect=lambda rows, what=_what, phi=_phi: cell(rows, what=what, label=phi), direction="within", bound=0.0,
        margin=ROUNDING, condition="exact Q" if _id == "b" else DETERMINISTIC, needs=(STEP, PATH),
        control=Control(
            "so does one of each step" if _control == STEP else "so does one along the trajectory",
            lambda rows, what=_what, phi=_control: cell(rows, what=what, label=phi),
        ),
    )  # fmt: skip


def draw_order(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw shares of failures in one panel and median ratios in another, one row for each pair."""
    shown = rows[rows["panel"] != ""]
    return estimates.draw(shown, style)


@study(
    "control_variate_order",
    "Random MDPs in which an order of variances fails, with Clopper–Pearson intervals, and the median ratio of both variances, "
    "with exact Q and V and undiscounted. From above: the order of control variates, then the sum over actions against the "
    "action taken.",
    draw=draw_order,
)
def control_variate_order(budget: Budget) -> pd.DataFrame:
    """Take exact variances on random MDPs, doubly robust ones by adding up all trajectories."""
    made: dict[str, list[float]] = {}
    for number in range(budget.n(1000)):
        world = drawn(budget.seed, number)
        paths = Listed.of(*world)
        listed = paths.covariance(paths.gradients((ROBUST, MISTAKEN))).diagonal().tolist()
        for phi, v in zip((*RECURSIVE, ROBUST, MISTAKEN), (*exact(*world, RECURSIVE).variance, *listed), strict=True):
            made.setdefault(phi, []).append(float(v))
    variance = {phi: np.array(x) for phi, x in made.items()}
    rows = []
    for low, high in (*ORDER, *SAMPLED_Q):
        label = f"{SIGNS[low]} over {SIGNS[high]}"
        ratio = variance[low] / variance[high]
        rows.append(row(label, share(ratio > 1 + ROUNDING), panel="share of MDPs above 1", what=f"{low} fails {high}"))
        middle = median(pd.Series(ratio))
        rows.append(row(label, Effect(*middle, len(ratio), log=True), panel="median ratio", what="median"))
        rows.append(row(f"{low} / {high}", float(ratio.max()), panel="", what=LARGEST))
    rows.append(row(f"{MISTAKEN} / {PATH}", float((variance[MISTAKEN] / variance[PATH]).max()), panel="", what=LARGEST))
    for name, (low, high) in (("whole order", (STATE, NONE)), ("V and nothing exchanged", (NONE, STATE))):
        chain = (high, low, STEP, PATH, ROBUST)
        kept = np.all([variance[b] <= variance[a] * (1 + ROUNDING) for a, b in zip(chain, chain[1:], strict=False)], axis=0)
        rows.append(row(name, share(kept), panel="", what="order"))
    for low, high in ((PATH, STEP), (STEP, PATH), *SAMPLED_Q, *(x[::-1] for x in SAMPLED_Q)):
        less = variance[low] < variance[high] * (1 - ROUNDING)
        rows.append(row(f"{low} / {high}", share(less), panel="", what="below"))
    return pd.DataFrame([*rows, *_built(), *_without_chance(budget)])


def _built() -> list[dict[str, object]]:
    """Return rows of the two worlds that were built as counter-examples."""
    rows = []
    for name, env in (("crossed gaps", crossed_gaps()), ("late gaps", late_gaps())):
        for phi, v in zip(RECURSIVE, exact(env, policies.Logistic(env), RECURSIVE).variance, strict=True):
            rows.append(row(phi, float(v), panel="", what=name))
    return rows


def _without_chance(budget: Budget) -> list[dict[str, object]]:
    """Return the largest variances where neither start nor transitions are random, over that of reward-to-go."""
    found = []
    for number in range(50):
        paths = Listed.of(*drawn(budget.seed, number, outcomes=1, fixed_start=True))
        v = paths.covariance(paths.gradients((ROBUST, PATH, NONE))).diagonal()
        found.append((v[:2] / v[2]).tolist())
    most = np.array(found).max(0)
    return [row(phi, float(v), panel="", what="without chance") for phi, v in zip((ROBUST, PATH), most, strict=True)]


def built_ratio(rows: pd.DataFrame, world: str, low: str, high: str) -> Effect:
    """Return the ratio of two variances in a world that was built."""
    a, b = (cell(rows, what=world, label=phi) for phi in (low, high))
    return Effect.exact(a.value / b.value)


def below(rows: pd.DataFrame, low: str, high: str) -> Effect:
    """Return the share of random MDPs in which one Φ has less variance than another."""
    return cell(rows, what="below", label=f"{low} / {high}")


def largest(rows: pd.DataFrame, low: str, high: str) -> Effect:
    """Return the largest ratio of two variances over the random MDPs."""
    return cell(rows, what=LARGEST, label=f"{low} / {high}")


claim(
    id="TC-1d", sentence="Taking out the covariance with later steps lowers the variance of the gradient.", source=CHENG, tag="A",
    study="control_variate_order", statistic="variance trajectory-wise over that with a control variate of each step; in one "
    "world of three steps that covariance is negative", direction="below", bound=1.0, condition="in general, exact Q",
    effect=lambda rows: built_ratio(rows, "late gaps", PATH, STEP), needs=(STEP, PATH),
    control=Control("so does an average over actions", lambda rows: built_ratio(rows, "late gaps", "all_action", STEP)),
)  # fmt: skip
claim(
    id="TC-1e", sentence="Taking out the covariance with later steps lowers the variance of the gradient.", source=CHENG, tag="A",
    study="control_variate_order", statistic="share of random MDPs in which it does, at least 0.95", direction="above",
    bound=0.95, effect=lambda rows: below(rows, PATH, STEP), condition="random MDPs of three steps, exact Q", needs=(STEP, PATH),
    control=Control("leaving it in does", lambda rows: below(rows, STEP, PATH)),
)  # fmt: skip
HUANG = "Huang, Jiang, 2020, From Importance Sampling to Doubly Robust Policy Gradient"
claim(
    id="DR-1a", sentence="The doubly robust gradient has no more variance than the trajectory-wise control variate.",
    source=HUANG, tag="M", study="control_variate_order", statistic=f"{LARGEST} over random MDPs", direction="below", bound=1.0,
    effect=lambda rows: largest(rows, ROBUST, PATH), condition="true model, w_t = γ^t", needs=(ROBUST, PATH),
    control=Control(
        "nor has it with a model whose rewards are off by 1/2", lambda rows: largest(rows, MISTAKEN, PATH)
    ),
)  # fmt: skip
claim(
    id="DR-1b", sentence="The trajectory-wise control variate has no more variance than the one of each step.", source=HUANG,
    tag="M", study="control_variate_order", statistic="ratio of variances in a world of three steps that share a logit",
    direction="below", bound=1.0, effect=lambda rows: built_ratio(rows, "late gaps", PATH, STEP), needs=(STEP, PATH),
    condition="in general, exact Q",
    control=Control("nor has it more than a value baseline", lambda rows: built_ratio(rows, "late gaps", PATH, STATE)),
)  # fmt: skip
claim(
    id="DR-1c", sentence="A control variate of state and action has no more variance than a value baseline.", source=HUANG,
    tag="M", study="control_variate_order", statistic=f"{LARGEST} over random MDPs", direction="below", bound=1.0,
    effect=lambda rows: largest(rows, STEP, STATE), condition="in general, exact Q", needs=(STEP, STATE),
    control=Control("nor has a value baseline more than none", lambda rows: largest(rows, STATE, NONE)),
)  # fmt: skip
claim(
    id="DR-1d", sentence="A value baseline has no more variance than none.", source=HUANG, tag="M", study="control_variate_order",
    statistic="ratio of variances in a world of two steps that share a logit", direction="below", bound=1.0,
    effect=lambda rows: built_ratio(rows, "crossed gaps", STATE, NONE), condition="in general, exact V", needs=(STATE, NONE),
    control=Control(
        "nor has a control variate of state and action", lambda rows: built_ratio(rows, "crossed gaps", STEP, NONE)
    ),
)  # fmt: skip
claim(
    id="DR-1e", sentence="Doubly robust < trajectory-wise < state-action < state < none.", source=HUANG, tag="M",
    study="control_variate_order", statistic="share of random MDPs in which the whole order holds, at least 1/2",
    direction="above", bound=0.5, effect=lambda rows: cell(rows, what="order", label="whole order"),
    condition="random MDPs of three steps, exact Q", needs=(ROBUST, PATH, STEP, STATE, NONE),
    control=Control(
        "the same with state and none exchanged", lambda rows: cell(rows, what="order", label="V and nothing exchanged")
    ),
)  # fmt: skip
claim(
    id="DR-1f", sentence="With the true model the doubly robust gradient has no variance but that of start and transitions.",
    source=HUANG, tag="X", study="control_variate_order", direction="within", bound=0.0, margin=ROUNDING, needs=(ROBUST, PATH),
    statistic="tr Cov over that of G in random MDPs without chance, largest of 50 of them, within 10⁻⁹",
    effect=lambda rows: cell(rows, what="without chance", label=ROBUST), condition="w_t = γ^t",
    control=Control("nor has the trajectory-wise one", lambda rows: cell(rows, what="without chance", label=PATH)),
)  # fmt: skip
