"""Worlds small enough for a formula: each comes with the variance or the gradient that it is known for.

They are counter-examples to what is often said of baselines, of reward-to-go and of discounting, and free unit tests.
Per-parameter variances are those of one entry of g for one trajectory; p = π(a = 1) throughout.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.lqg import LQG, LinearQuadratic
from varlab.envs.lqg import environment as linear_environment

#: Rewards of the sign-flip world: the cost of action 1 at t = 1, and what action 1 at t = 0 earns at t = 3.
PRICE, PRIZE = 1.5, 8.0


def two_arms() -> Environment:
    """Return the two-armed bandit r = 1{a = 1}: one state, one step (see :func:`two_arms_variance`)."""
    mdp = FiniteMDP.from_lists([[[(1.0, 0, 0.0, True)], [(1.0, 0, 1.0, True)]]], initial=[1.0])
    return environment(mdp, 1, "two arms")


def two_arms_variance(p: float, b: float = 0.0) -> float:
    """Return the variance p (1 − p) (1 − p − b)² of g = (1{a = 1} − p)(r − b) on :func:`two_arms`.

    The value function b = V = p gives p (1 − p) (1 − 2p)², which is worse than b = 0 for p > 2/3; the optimal baseline
    b* = 1 − p gives 0. In a softmax table each of the two logits has this variance, so that the trace is twice it.
    The optimal baseline: Variance Reduction Techniques for Gradient Estimates in Reinforcement Learning (Greensmith, Bartlett,
    Baxter, 2004).

    Args:
        p: π(a = 1), in [0, 1].
        b: the constant baseline.

    Returns:
        The variance of the derivative with respect to one logit.
    """
    checks.in_range("p", p, 0.0, 1.0)
    return p * (1 - p) * (1 - p - b) ** 2


def two_arms_natural_variance(p: float, b: float = 0.0, rewards: tuple[float, float] = (0.0, 1.0)) -> float:
    """Return tr Cov of the natural gradient F⁺ z (r − b) of a softmax table on two arms that pay ``rewards``.

    F = p (1 − p) u uᵀ with u = (−1, 1), so that F⁺ z is u / (2 p) where a = 1 and −u / (2 (1 − p)) where a = 0. The mean is
    u (r_1 − r_0) / 2 for every p and b, and

        tr Cov = ((r_1 − b)² / p + (r_0 − b)² / (1 − p) − (r_1 − r_0)²) / 2.

    As p → 1 it grows like (r_0 − b)² / (2 (1 − p)): without bound for b = 0 unless r_0 = 0, and without bound for b = V = r_0 +
    p (r_1 − r_0), for which r_0 − b → r_0 − r_1. The optimal b* = (1 − p) r_1 + p r_0 makes it 0. That V does not bound it: The
    Role of Baselines in Policy Gradient Optimization (Mei, Chung, Thomas, Dai, Szepesvari, Schuurmans, 2022).

    Args:
        p: π(a = 1), strictly between 0 and 1.
        b: the constant baseline.
        rewards: r_0 and r_1.

    Returns:
        The trace of the covariance for one trajectory.
    """
    checks.in_range("p", p, 1e-300, 1.0 - 2.0**-53)
    r0, r1 = rewards
    return ((r1 - b) ** 2 / p + (r0 - b) ** 2 / (1 - p) - (r1 - r0) ** 2) / 2


def gaussian_bandit(dim: int) -> LQG:
    """Return the bandit r = −‖a‖² with a ∈ R^dim: one step, and an observation that is always 0.

    A linear policy with its bias as only parameter and log σ = log s is a ~ N(μ, s² I); :func:`gaussian_bandit_variance` is for
    μ = 0. Source: Variance Reduction for Policy Gradient with Action-Dependent Factorized Baselines (Wu, Rajeswaran, Duan, Kumar,
    Bayen, Kakade, Mordatch, Abbeel, 2018).

    Args:
        dim: m, the action dimension.

    Returns:
        The environment, a linear system with one state that stays 0.
    """
    m = checks.positive_int("dim", dim)
    zero = torch.zeros(1, 1)
    system = LinearQuadratic(zero, torch.zeros(1, m), zero, torch.eye(m), zero, torch.zeros(1), zero)
    return linear_environment(system, 1, f"gaussian bandit {m}")


def gaussian_bandit_variance(dim: int, baseline: str, std: float = 1.0) -> float:
    """Return the variance of one coordinate of g = (a / s²)(r − b) on :func:`gaussian_bandit` with a ~ N(0, s² I).

    In units of s², with m the action dimension:

    - ``none``, b = 0: (m + 2)(m + 4);
    - ``value``, b = V = −m s²: 2 (m + 4);
    - ``optimal``, the best constant b* = −(m + 2) s²: 2 (m + 2);
    - ``factorised``, b_j = −Σ_{i≠j} a_i² − 3 s², which depends on the other actions: 6.

    They follow from E ε^{2k} = (2k − 1)!! for standard normal ε. Source of the world: Variance Reduction for Policy Gradient with
    Action-Dependent Factorized Baselines (Wu et al., 2018).

    Args:
        dim: m.
        baseline: none, value, optimal or factorised.
        std: s.

    Returns:
        The variance.
    """
    m = checks.positive_int("dim", dim)
    units = {"none": (m + 2) * (m + 4), "value": 2 * (m + 4), "optimal": 2 * (m + 2), "factorised": 6}
    return units[checks.one_of("baseline", baseline, units)] * std**2


def sign_flip() -> Environment:
    """Return the world where leaving out γ^t turns the gradient round: two decisions, then a delayed reward.

    Action 1 at t = 0 earns +8 at t = 3; action 1 at t = 1 costs 1.5 at once; at t = 2 and 3 actions have no effect. The policy
    sees 1 where it decides and 0 where it waits, so that a linear policy without bias has one p for both decisions (and no score
    while it waits). States: 0 first decision; 1, 2 second decision without and with the prize to come; 3, 4 waiting; 5, 6 paid.
    The phenomenon: Is the Policy Gradient a Gradient? (Nota and Thomas, 2020). See :func:`sign_flip_derivatives`.
    """

    def same(s_next: int, reward: float = 0.0, end: bool = False) -> list[list[tuple[float, int, float, bool]]]:
        return [[(1.0, s_next, reward, end)]] * 2

    second = [[[(1.0, wait, 0.0, False)], [(1.0, wait, -PRICE, False)]] for wait in (3, 4)]
    lists = [
        [[(1.0, 1, 0.0, False)], [(1.0, 2, 0.0, False)]],
        *second,
        same(5),
        same(6),
        same(5, end=True),
        same(6, PRIZE, end=True),
    ]
    plain = FiniteMDP.from_lists(lists, initial=[1.0, *[0.0] * 6])
    seen = torch.tensor([[1.0], [1.0], [1.0], [0.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
    return environment(replace(plain, observations=seen), 4, "sign flip")


def sign_flip_derivatives(p: float, gamma: float = 0.5) -> dict[str, float]:
    """Return derivatives with respect to the logit of p on :func:`sign_flip`.

    With Q's gap between the actions 8γ³ at t = 0 and −1.5 at t = 1,

        J_γ' = p (1 − p)(8γ³ − 1.5γ),   J_1' = 6.5 p (1 − p),   without γ^t: p (1 − p)(8γ³ − 1.5).

    At γ = 1/2 these are 0.25, 6.5 and −0.5 times p (1 − p): both objectives grow with p, and the update without γ^t lowers it, to
    the worst policy of either. Source of the phenomenon: Is the Policy Gradient a Gradient? (Nota and Thomas, 2020).

    Args:
        p: π(a = 1), the same at both decisions.
        gamma: γ.

    Returns:
        ``J_gamma``, ``J_1`` and ``dropped``.
    """
    checks.in_range("p", p, 0.0, 1.0)
    spread, first = p * (1 - p), PRIZE * gamma**3
    return {
        "J_gamma": spread * (first - PRICE * gamma),
        "J_1": spread * (PRIZE - PRICE),
        "dropped": spread * (first - PRICE),
    }


def constant_return() -> Environment:
    """Return the world with r_0 = +1 and r_1 = −1 whatever the action: R = 0 always (see :func:`constant_return_variance`)."""
    lists = [[[(1.0, 1, 1.0, False)]] * 2, [[(1.0, 1, -1.0, True)]] * 2]
    return environment(FiniteMDP.from_lists(lists, initial=[1.0, 0.0]), 2, "constant return")


def constant_return_variance(p: float) -> dict[str, float]:
    """Return variances of the derivative with respect to the logit of state 1 on :func:`constant_return`.

    Total return is 0 in every trajectory, and so is its gradient. Reward-to-go drops r_0 = +1 and keeps G_1 = −1, so that
    g = −(1{a_1 = 1} − p) has variance p (1 − p): 1/4 at p = 1/2. Leaving out past rewards is no reduction of variance in general.

    Args:
        p: π(a = 1) in state 1.

    Returns:
        ``total_return`` and ``reward_to_go``.
    """
    checks.in_range("p", p, 0.0, 1.0)
    return {"total_return": 0.0, "reward_to_go": p * (1 - p)}
