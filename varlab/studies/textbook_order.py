"""How often the textbook order of variances fails: exact shares over random finite MDPs.

Textbooks order the Φ by variance: reward-to-go below total return, a value baseline below none, Q below the sampled return that
it is the mean of, A below all, δ below GAE. All have one mean, so that each may be compared with each, but no ordering is a
theorem. The claims: Spinning Up in Deep RL, Part 3: Intro to Policy Optimization (Achiam, 2018); High-Dimensional Continuous
Control Using Generalized Advantage Estimation (Schulman et al., 2016).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor, nn

from varlab import checks
from varlab.analysis import captions, marks, tables
from varlab.analysis import style as styles
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.oracles.exact import exact
from varlab.policies.base import categorical
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator

STATES, ACTIONS, HORIZON, FEATURES = 3, 2, 3, 2
REWARDS = {"U(0, 1)": scipy.stats.uniform.ppf, "N(0, 1)": scipy.stats.norm.ppf}
POLICIES = ("table", "features")
SCALES = (1.0, 3.0)
CELL = ["rewards", "policy", "logit_scale"]
PHI = ("total_return", "reward_to_go", "value_baseline", "q_value", "advantage", "td_residual", "gae(lam=0.9)")
#: Pairs (lower, higher) of the textbook order; it fails where the first has the larger variance.
ORDER = (
    ("reward_to_go", "total_return"), ("value_baseline", "reward_to_go"), ("q_value", "reward_to_go"),
    ("advantage", "value_baseline"), ("advantage", "td_residual"), ("td_residual", "gae(lam=0.9)"),
)  # fmt: skip
SYMBOLS = {
    "total_return": ("R", "$R$"), "reward_to_go": ("RTG", "$G_t$"), "value_baseline": ("RTG−V", "$G_t-V_t$"),
    "q_value": ("Q", "$Q_t$"), "advantage": ("A", "$A_t$"), "td_residual": ("TD0", r"$\delta_t$"),
    "gae(lam=0.9)": ("GAE(0.9)", "GAE(0.9)"),
}  # fmt: skip
#: Variances that differ by less, relatively, are equal up to rounding.
ROUNDING = 1e-10


class FeatureSoftmax(nn.Module):
    """π(a | s) ∝ exp(θ · f(s, a)): few features shared by all states and actions."""

    def __init__(self, theta: Tensor) -> None:
        """Make ``theta`` [d] the parameter."""
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, obs: Tensor) -> torch.distributions.Categorical:
        """Return the distribution at features ``obs`` [n, A, d]."""
        return categorical(obs @ self.theta)


@dataclass(frozen=True)
class Draw:
    """The randomness of one MDP, shared by all cells: they differ in nothing but their laws.

    Attributes:
        transition: [S, A, S] P(s' | s, a), uniform on the simplex.
        initial: [S] ρ_0, uniform on the simplex.
        quantile: [S, A, S] uniform numbers; a reward is its law's quantile there.
        logits: [S, A] N(0, 1).
        features: [S, A, d] N(0, 1).
        theta: [d] N(0, 1).
    """

    transition: np.ndarray
    initial: np.ndarray
    quantile: np.ndarray
    logits: np.ndarray
    features: np.ndarray
    theta: np.ndarray

    @classmethod
    def of(cls, seed: int, number: int) -> Draw:
        """Draw MDP ``number`` of a root seed: dynamics from its rollout stream, the policy from its θ stream."""
        world, policy = (numpy_generator(Streams(seed).sequence(name, number)) for name in ("rollout", "theta"))
        mdp = random_mdp(world, states=STATES, actions=ACTIONS, ending=0.0, rewards="uniform")
        return cls(
            mdp.probability.numpy(),
            mdp.initial.numpy(),
            mdp.reward.numpy(),
            policy.standard_normal((STATES, ACTIONS)),
            policy.standard_normal((STATES, ACTIONS, FEATURES)),
            policy.standard_normal(FEATURES),
        )

    def make(self, rewards: str, policy: str, logit_scale: float) -> tuple[Environment, nn.Module]:
        """Return the world and the policy of one cell; every logit has standard deviation ``logit_scale``.

        Args:
            rewards: a key of ``REWARDS``, the law of r(s, a, s').
            policy: ``table``, or ``features`` shared by all states and actions.
            logit_scale: standard deviation of a logit.

        Returns:
            Environment of ``HORIZON`` steps without termination, and policy.
        """
        tabular = checks.one_of("policy", policy, POLICIES) == "table"
        mdp = FiniteMDP(
            probability=torch.from_numpy(self.transition),
            next_state=torch.arange(STATES).expand(STATES, ACTIONS, STATES),
            reward=torch.from_numpy(REWARDS[checks.one_of("law of rewards", rewards, REWARDS)](self.quantile)),
            terminated=torch.zeros(STATES, ACTIONS, STATES, dtype=torch.bool),
            initial=torch.from_numpy(self.initial),
            observations=None if tabular else torch.from_numpy(self.features),
        )
        env = environment(mdp, HORIZON, "random MDP")
        if tabular:
            return env, SoftmaxTable(env, torch.from_numpy(logit_scale * self.logits))
        return env, FeatureSoftmax(torch.from_numpy(logit_scale / np.sqrt(FEATURES) * self.theta))


def variances(mdps: int = 300, seed: int = 0) -> pd.DataFrame:
    """Return the exact variance of every Φ on random MDPs: S = 3, A = 2, T = 3, γ = 1.

    Args:
        mdps: MDPs per cell; the cells share their draws, so that only rows of one cell are independent.
        seed: root seed.

    Returns:
        One row per cell (rewards, policy, logit_scale), mdp and phi, with ``variance``.
    """
    rows = []
    for number in range(checks.positive_int("mdps", mdps)):
        drawn = Draw.of(seed, number)
        for cell in itertools.product(REWARDS, POLICIES, SCALES):
            found = exact(*drawn.make(*cell), PHI)
            rows += [(*cell, number, phi, float(v)) for phi, v in zip(PHI, found.variance, strict=True)]
    return pd.DataFrame(rows, columns=[*CELL, "mdp", "phi", "variance"])


def summarise(table: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Return, per cell, how often the textbook order fails and the median ratio of each Φ to the total return.

    Args:
        table: rows of :func:`variances`.
        level: of the intervals: Clopper–Pearson for shares, order statistics (free of the distribution) for medians.

    Returns:
        One row per cell, statistic, phi and other, with estimate, estimate_low, estimate_high and n. The statistic ``share`` is
        that of the MDPs where phi has a larger variance than other, against the textbook; ``median_ratio`` is the median of the
        variance of phi over that of other.
    """
    rows = []
    for cell, part in table.groupby(CELL, sort=False):
        wide = part.pivot(index="mdp", columns="phi", values="variance")
        n = len(wide)
        for phi, other in ORDER:
            count = int((wide[phi] > wide[other] * (1 + ROUNDING)).sum())
            interval = scipy.stats.binomtest(count, n).proportion_ci(level, method="exact")
            rows.append((*cell, "share", phi, other, count / n, interval.low, interval.high, n))
        for phi in PHI[1:]:
            rows.append((*cell, "median_ratio", phi, PHI[0], *median(wide[phi] / wide[PHI[0]], level), n))
    return pd.DataFrame(rows, columns=[*CELL, "statistic", "phi", "other", "estimate", "estimate_low", "estimate_high", "n"])


def median(x: pd.Series, level: float = 0.95) -> tuple[float, float, float]:
    """Return the median of independent numbers with the interval of order statistics that covers at least ``level``.

    With B of n numbers below the median, B ~ Binomial(n, 1/2): the j-th smallest and the j-th largest enclose it but with
    probability 2 P(B < j). Fewer than six numbers bound nothing at 95 %, and the interval is (0, ∞) for positive ones.
    """
    ordered = np.sort(x.to_numpy())
    j = int(scipy.stats.binom.ppf((1 - level) / 2, len(ordered), 0.5))
    low, high = (ordered[j - 1], ordered[-j]) if j else (0.0, np.inf)
    return float(np.median(ordered)), float(low), float(high)


def to_markdown(summary: pd.DataFrame) -> str:
    """Return two Markdown tables, shares in percent and median ratios, one row per cell; brackets hold the intervals."""
    lines = []
    for statistic, title, sign, number in (
        ("share", "Share of random MDPs in which the textbook order fails, %", ">", lambda x: f"{100 * x:.1f}"),
        ("median_ratio", "Median ratio of the variance to that of the total return R", "/", tables.short),
    ):
        part = summary[summary["statistic"] == statistic]
        pairs = list(dict.fromkeys(zip(part["phi"], part["other"], strict=True)))
        heads = ["rewards", "policy", "logit scale", *(f"{SYMBOLS[phi][0]} {sign} {SYMBOLS[other][0]}" for phi, other in pairs)]
        lines += [f"{title} ({part['n'].iloc[0]} MDPs in every row; brackets are 95 % intervals)", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---|---|---:|" + "---:|" * len(pairs)]
        for (rewards, policy, scale), rows in part.groupby(CELL, sort=False):
            found = {(r["phi"], r["other"]): r for r in rows.to_dict("records")}
            shown = [tuple(number(found[pair][f"estimate{end}"]) for end in ("", "_low", "_high")) for pair in pairs]
            texts = [f"{centre} [{low}, {high}]" for centre, low, high in shown]
            lines.append(f"| {rewards} | {policy} | {scale:g} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def draw(summary: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the shares as points with 95 % intervals, one panel per cell.

    Args:
        summary: rows of :func:`summarise`.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure: rewards by row, policy and logit scale by column.
    """
    shares = summary[summary["statistic"] == "share"]
    down, across = list(shares["rewards"].unique()), list(shares.groupby(CELL[1:], sort=False).groups)
    with styles.context(style) as s:
        line = s.font_size / 72
        figure = styles.Figure(figsize=(s.text, len(down) * line * (1.75 * len(ORDER) + 3) + 2 * line), layout="constrained")
        axs = figure.subplots(len(down), len(across), sharex=True, sharey=True, squeeze=False)
        for (i, rewards), (j, (policy, scale)) in itertools.product(enumerate(down), enumerate(across)):
            ax = axs[i, j]
            here = shares[(shares["rewards"] == rewards) & (shares["policy"] == policy) & (shares["logit_scale"] == scale)]
            for row in here.to_dict("records"):
                marks.point(ax, row, ORDER.index((row["phi"], row["other"])), "estimate", along="x", caps=True)
            ax.grid(axis="both")
            ax.tick_params(axis="y", length=0)
            if i == 0:
                ax.set_title(f"{policy}, logit scale {scale:g}")
            if j == 0:
                ax.set_ylabel(f"rewards {rewards}")
        axs[0, 0].set_yticks(range(len(ORDER)), [f"{SYMBOLS[a][1]} > {SYMBOLS[b][1]}" for a, b in ORDER])
        axs[0, 0].set_ylim(len(ORDER) - 0.4, -0.6)
        axs[0, 0].set_xscale("symlog", linthresh=0.01, linscale=1.0)  # zero and rare failures both stay in view
        axs[0, 0].set_xlim(-0.002, 1.2)
        axs[0, 0].set_xticks([0, 0.01, 0.1, 1], ["0", "1", "10", "100"])
        axs[0, 0].set_xticks([], minor=True)
        figure.supxlabel("MDPs in which the order of variances is violated, %", fontsize=s.font_size)
    return figure


def caption(summary: pd.DataFrame, seed: int, command: str) -> str:
    """Return the caption of :func:`draw`'s figure."""
    n = summary["n"].iloc[0]
    return (
        f"{captions.MARK}\n"
        "Share of random finite MDPs in which the textbook order of variances fails, from exact variances tr Cov ĝ: "
        f"{STATES} states, {ACTIONS} actions, {HORIZON} steps, γ = 1, n = {n} MDPs per panel, seed {seed}. Transitions and first "
        "states are uniform on the simplex, r(s, a, s') has the law named at the left, every logit has mean 0 and the standard "
        f"deviation named above; the policy is a softmax table or has {FEATURES} features shared by all states and actions. "
        "Panels share their draws and differ in these laws alone. The axis is linear up to 1 % and logarithmic beyond; bars are "
        "95 % Clopper–Pearson intervals of the share.\n\n"
        f"Command: `{command}`\n"
    )
