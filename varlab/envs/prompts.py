"""The multi-prompt bandit: a prompt is drawn, one answer is given and pays 0 or 1, as in reasoning with verifiable rewards.

Groups of answers share a prompt; p(s) = Σ_a π(a | s) success(s, a) is the probability of success at prompt s, and
∇J = (1/S) Σ_s ∇p(s).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binom

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment


def prompts(
    prompts: int = 4,
    answers: int = 3,
    *,
    seed: int = 0,
    deterministic: bool = False,
    success: Sequence[Sequence[float]] | None = None,
) -> Environment:
    """Return the bandit with S prompts, drawn uniformly, and A answers, H = 1.

    Answer a to prompt s pays 1 with probability success(s, a), else 0: two outcomes that differ in reward alone. Drawn tables
    have uniform probabilities on [0, 1], or one right answer to each prompt, uniform among the A; then p(s) = π(right | s).

    Args:
        prompts: S.
        answers: A.
        seed: of the drawn table: the same numbers for the same seed and sizes.
        deterministic: whether the drawn table has one right answer to each prompt.
        success: [S, A] the table itself; S, A, seed and ``deterministic`` then say nothing.

    Returns:
        The environment.

    Raises:
        InputError: for a table that is not rectangular or holds other numbers than probabilities.
    """
    s, a = checks.positive_int("prompts", prompts), checks.positive_int("answers", answers, least=2)
    if success is None:
        generator = np.random.default_rng(checks.positive_int("seed", seed, least=0))
        table = np.eye(a)[generator.integers(a, size=s)] if deterministic else generator.random((s, a))
    else:
        rows = [[checks.in_range("a success probability", q, 0.0, 1.0) for q in row] for row in success]
        if len({len(row) for row in rows}) != 1:
            raise checks.InputError(
                f"A success probability for each of A answers was expected at every prompt, but the rows have "
                f"{[len(r) for r in rows]} entries; give each prompt the same number of answers."
            )
        table = np.array(rows)

    def outcomes(prompt: int, q: float) -> list[tuple[float, int, float, bool]]:
        return [(share, prompt, reward, True) for share, reward in ((q, 1.0), (1 - q, 0.0)) if share > 0]

    lists = [[outcomes(i, q) for q in row] for i, row in enumerate(table.tolist())]
    return environment(FiniteMDP.from_lists(lists, initial=[1 / len(lists)] * len(lists)), 1, "prompts")


def group_advantage_variance(p: float, group: int, leave_one_out: bool) -> float:
    """Return the variance of R_i − mean_j R_j, or of R_i − mean_{j≠i} R_j, for returns that are 1 with probability p, else 0.

    p (1 − p)(G − 1)/G with R_i in its own mean, p (1 − p) G/(G − 1) without: a factor (G/(G − 1))² between estimators of which
    one is the other times G/(G − 1). Source: Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof, Welling, 2019).

    Args:
        p: probability of success.
        group: G.
        leave_one_out: which of the two.

    Returns:
        The variance.
    """
    checks.in_range("p", p, 0.0, 1.0)
    g = checks.positive_int("group", group, least=2)
    return p * (1 - p) * (g / (g - 1) if leave_one_out else (g - 1) / g)


def group_normalised_factor(p: float, group: int) -> float:
    """Return f(p) with E[ĝ | s] = f(p(s)) ∇p(s), for ĝ the gradient of a group under group_normalised and returns 0 or 1.

    Φ of trajectory i depends on R_i and on the number k of successes among the others, which is binomial; so that
    E[z_i Φ_i] = (E[Φ_i | R_i = 1] − E[Φ_i | R_i = 0]) ∇p, and

        f(p) = Σ_{k<G} P(k; G − 1, p) (Φ(1, k + 1) − Φ(0, k)),   Φ(r, K) = (r − K/G) / (√(K (G − K) / (G (G − 1))) + 1e-8).

    For G = 2 and 3 it is 1/√2 and 2/√3 whatever p: unbiased but for the factor. As G grows it tends to 1/√(p (1 − p)): prompts
    that are nearly always or nearly never solved weigh more, and E ĝ = (1/S) Σ_s f(p(s)) ∇p(s) turns away from ∇J. Source of the
    phenomenon: Understanding R1-Zero-Like Training: A Critical Perspective (Liu et al., 2025).

    Args:
        p: probability of success.
        group: G.

    Returns:
        The factor.
    """
    checks.in_range("p", p, 0.0, 1.0)
    g = checks.positive_int("group", group, least=2)

    def phi(reward: int, wins: np.ndarray) -> np.ndarray:
        return (reward - wins / g) / (np.sqrt(wins * (g - wins) / (g * (g - 1))) + 1e-8)

    k = np.arange(g)
    return float(binom.pmf(k, g - 1, p) @ (phi(1, k + 1) - phi(0, k)))
