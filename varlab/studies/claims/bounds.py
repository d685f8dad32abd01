"""Claims about bounds of the variance from bounded rewards, PB-1, against exact variances on finite MDPs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import torch

from varlab.analysis import estimates
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.oracles.exact import exact, world_of
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.baselines import log_slope
from varlab.studies.claims.catalogue import Budget, Control, claim, study
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.horizons import discounted
from varlab.studies.claims.verdicts import Effect

#: H and γ.
LONG, DISCOUNTS = (5, 10, 20, 50, 100, 200, 400), (0.9, 0.99)
#: γ at which the exponent of 1/(1 − γ) is read, H of each being 20/(1 − γ).
EXPONENT = (0.8, 0.9, 0.95, 0.98)


def reinforce_bound(norm: float, reward: float, horizon: int, gamma: float) -> float:
    """Return H C (r (1 − γ^H)/(1 − γ))² ≥ E‖(Σ_t z_t) R_γ‖², for |r_t| ≤ r and E[‖z_t‖² | s_t] ≤ C.

    |R_γ| is at most r Σ γ^t, and E‖Σ_t z_t‖² = Σ_t E‖z_t‖² ≤ H C, since E[z_t | s_t] = 0. It is attained where every reward is r
    and every state has E‖z‖² = C.

    Args:
        norm: C.
        reward: r.
        horizon: H.
        gamma: γ.

    Returns:
        The bound.
    """
    return horizon * norm * (reward * discounted(horizon, gamma)) ** 2


def reward_to_go_bound(norm: float, reward: float, horizon: int, gamma: float) -> float:
    """Return C r²/(1 − γ)³ ≥ E‖Σ_t γ^t z_t G_t‖², for |r_t| ≤ r and E[‖z_t‖² | s_t] ≤ C, whatever the horizon.

    g = Σ_u γ^u r_u Σ_{t≤u} z_t, and √E‖r_u Σ_{t≤u} z_t‖² ≤ r √(C (u + 1)). By the triangle inequality
    √E‖g‖² ≤ r √C Σ γ^u √(u + 1), and by that of Cauchy and Schwarz (Σ γ^u √(u + 1))² ≤ Σ γ^u Σ γ^u (u + 1) ≤ 1/(1 − γ)³.

    Args:
        norm: C.
        reward: r.
        horizon: H, which it does not depend on.
        gamma: γ.

    Returns:
        The bound.
    """
    return norm * reward**2 / (1 - gamma) ** 3


BOUNDS = {"total_return": reinforce_bound, "reward_to_go": reward_to_go_bound}


def bounded_worlds(seed: int, count: int) -> dict[str, list[tuple[FiniteMDP, torch.Tensor]]]:
    """Return MDPs and logits: two arms that always pay 1, and random MDPs with 4 states, 3 actions and rewards in [0, 1]."""
    paid = FiniteMDP.from_lists([[[(1.0, 0, 1.0, False)]] * 2], initial=[1.0])
    made = []
    for k in range(count):
        world, theta = (numpy_generator(Streams(seed).sequence(name, k)) for name in ("rollout", "theta"))
        mdp = random_mdp(world, states=4, actions=3, ending=0.0, rewards="uniform")
        made.append((mdp, torch.from_numpy(theta.standard_normal((4, 3)))))
    return {"always paid": [(paid, torch.zeros(1, 2, dtype=torch.float64))], "random MDPs": made}


def _moments(mdp: FiniteMDP, logits: torch.Tensor, horizon: int, gamma: float) -> tuple[np.ndarray, float, float]:
    """Return tr Cov of each Φ of :data:`BOUNDS`, C = max_s E[‖z‖² | s], and max |r|."""
    env = environment(mdp, horizon, "bounded")
    policy = SoftmaxTable(env, logits)
    pi = world_of(env, policy, None, gamma, None, "terminal").pi
    norm, reward = float((1 - (pi**2).sum(1)).max()), float(mdp.reward.abs().max())
    return exact(env, policy, list(BOUNDS), gamma=gamma).variance, norm, reward


@study(
    "bounded_rewards",
    "Bounds of the variance from bounded rewards and scores over the exact variance, against the horizon: how loose they are, at "
    "the median of random MDPs and where every step pays. Total return: H C (r (1 − γ^H)/(1 − γ))²; reward-to-go: C r²/(1 − γ)³.",
    draw=lambda rows, style=None: estimates.draw(
        rows[rows["panel"] != ""], style, xlabel="$H$", ylabel="bound / variance", log="xy", line=1.0
    ),
)
def bounded_rewards(budget: Budget) -> pd.DataFrame:
    """Compare bounds with exact variances."""
    rows = []
    least = dict.fromkeys((*BOUNDS, "without H", "(1 − γ)²"), math.inf)
    found: dict[tuple[str, float, int, str], float] = {}
    for name, worlds in bounded_worlds(budget.seed, budget.n(30, least=4, multiple=1)).items():
        for gamma, horizon in itertools.product(DISCOUNTS, LONG):
            ratios = []
            for mdp, logits in worlds:
                variance, norm, reward = _moments(mdp, logits, horizon, gamma)
                ratios.append([BOUNDS[phi](norm, reward, horizon, gamma) / v for phi, v in zip(BOUNDS, variance, strict=True)])
                found |= {(name, gamma, horizon, phi): float(v) for phi, v in zip(BOUNDS, variance, strict=True)}
            lowest = dict(zip(BOUNDS, np.min(ratios, 0), strict=True))
            broken = {"without H": lowest["total_return"] / horizon, "(1 − γ)²": lowest["reward_to_go"] * (1 - gamma)}
            least = {k: min(v, float((lowest | broken)[k])) for k, v in least.items()}
            for phi, middle in zip(BOUNDS, np.median(ratios, 0), strict=True):
                rows.append(row(f"{phi}, γ = {gamma:g}", float(middle), panel=name, x=horizon))
    rows += [row(k, v, panel="", what="least bound/variance") for k, v in least.items()]
    for phi in BOUNDS:
        ends = [found["always paid", DISCOUNTS[0], h, phi] for h in LONG[-2:]]
        rows.append(row(phi, ends[1] / ends[0], panel="", what="H from 200 to 400"))
    (paid, logits), *_ = bounded_worlds(budget.seed, 0)["always paid"]
    at = [_moments(paid, logits, round(20 / (1 - g)), g)[0] for g in EXPONENT]
    short = [_moments(paid, logits, 20, g)[0] for g in EXPONENT]
    for label, v in (("H = 20/(1 − γ)", at), ("H = 20", short)):
        slope = log_slope(tuple(1 / (1 - g) for g in EXPONENT), [Effect.exact(x) for x in np.array(v)[:, 1]])
        rows.append(row(label, slope, panel="", what="exponent"))
    return pd.DataFrame(rows)


POTION = "Papini's potion, variance_bounds.py, after Zhao et al., 2011"
BOUNDED = "softmax tables, rewards in [0, 1], γ = 0.9 and 0.99, H = 5 … 400, the bound derived here"
for _id, _phi, _broken, _words in (
    ("a", "total_return", "without H", "H C (r (1 − γ^H)/(1 − γ))² bounds REINFORCE's variance."),
    ("b", "reward_to_go", "(1 − γ)²", "C r²/(1 − γ)³ bounds the variance with reward-to-go at every horizon."),
):
    claim(
        id=f"PB-1{_id}", sentence=_words, source=POTION, tag="C", study="bounded_rewards", direction="above", bound=1.0,
        statistic="least bound over exact variance", condition=BOUNDED,
        effect=lambda rows, phi=_phi: cell(rows, what="least bound/variance", label=phi),
        control=Control(
            {"without H": "so it does without the factor H", "(1 − γ)²": "so does C r²/(1 − γ)²"}[_broken],
            lambda rows, broken=_broken: cell(rows, what="least bound/variance", label=broken),
        ),
    )  # fmt: skip
PAID = "one state, two like arms that always pay 1"
claim(
    id="PB-1c", sentence="REINFORCE's variance grows in proportion to H where the bound does.", source=POTION, tag="X",
    study="bounded_rewards", statistic="variance at H = 400 over that at 200, within 0.01 of 2", direction="within", bound=2.0,
    margin=0.01, effect=lambda rows: cell(rows, what="H from 200 to 400", label="total_return"), condition=f"{PAID}, γ = 0.9",
    control=Control("so it does with reward-to-go", lambda rows: cell(rows, what="H from 200 to 400", label="reward_to_go")),
)  # fmt: skip
claim(
    id="PB-1d", sentence="With reward-to-go the variance does not grow with H.", source=POTION, tag="C", study="bounded_rewards",
    statistic="variance at H = 400 over that at 200, within 0.01 of 1", direction="within", bound=1.0, margin=0.01,
    effect=lambda rows: cell(rows, what="H from 200 to 400", label="reward_to_go"), condition=f"{PAID}, γ = 0.9",
    control=Control("neither REINFORCE's", lambda rows: cell(rows, what="H from 200 to 400", label="total_return")),
)  # fmt: skip
claim(
    id="PB-1e", sentence="The exponent 3 of 1/(1 − γ) is reached.", source=POTION, tag="X", study="bounded_rewards",
    statistic="slope of log variance over log 1/(1 − γ), reward-to-go, within 0.1 of 3", direction="within", bound=3.0,
    margin=0.1,
    effect=lambda rows: cell(rows, what="exponent", label="H = 20/(1 − γ)"), condition=f"{PAID}, H = 20/(1 − γ), γ = 0.8 … 0.98",
    control=Control("with H = 20 for all γ", lambda rows: cell(rows, what="exponent", label="H = 20")),
)  # fmt: skip
for _id, _world, _words in (("f", "always paid", PAID), ("g", "random MDPs", "in general: random MDPs, at the median")):
    claim(
        id=f"PB-1{_id}", sentence="The bound is within a factor of 3 of the variance.", source=POTION, tag="X",
        study="bounded_rewards", statistic="C r²/(1 − γ)³ over the variance with reward-to-go, H = 400", direction="below",
        bound=3.0, condition=f"{_words}, γ = 0.99",
        effect=lambda rows, world=_world: cell(rows, panel=world, label="reward_to_go, γ = 0.99", x=LONG[-1]),
        control=Control(
            "also at H = 5", lambda rows, world=_world: cell(rows, panel=world, label="reward_to_go, γ = 0.99", x=LONG[0])
        ),
    )  # fmt: skip
