"""Worlds whose steps share one logit: what is taken out of each step alone, the covariance between steps had taken back already.

Both are deterministic, with π(a = 1 | s) = 1 / (1 + exp(−θ x(s))) at θ = 0 (:class:`varlab.policies.Logistic` on the observation
x). They are counter-examples to orders of variance that hold step by step; their variances are those of one entry of g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment


def _world(lists: list, seen: Sequence[float], horizon: int, name: str) -> Environment:
    mdp = FiniteMDP.from_lists(lists, initial=[1.0, *[0.0] * (len(lists) - 1)])
    observations = torch.tensor(seen, dtype=torch.float64).unsqueeze(1)
    return environment(replace(mdp, observations=observations), horizon, name)


def crossed_gaps() -> Environment:
    """Return two steps of which the second turns round: r_0 = 1 whatever the action, then ±1 for action 1 and ∓1 for action 0.

    The upper sign is that of the state after a_0 = 0, the lower that of the state after a_0 = 1; x = 1 everywhere. z_1 Q_1 = ±1/2
    whatever a_1, and z_0 Q_0 = ∓1/2 by a_0: Q_t has gradient 0 on every path. See :func:`crossed_gaps_variance`.
    """
    lists = [
        [[(1.0, 1, 1.0, False)], [(1.0, 2, 1.0, False)]],
        [[(1.0, 0, -1.0, True)], [(1.0, 0, 1.0, True)]],
        [[(1.0, 0, 1.0, True)], [(1.0, 0, -1.0, True)]],
    ]
    return _world(lists, [1.0, 1.0, 1.0], 2, "crossed gaps")


def crossed_gaps_variance() -> dict[str, float]:
    """Return the variance of g on :func:`crossed_gaps` under each Φ, with exact values.

    With e = ±1 the sign of the second state and r_1 = ±1, z_0 = −e/2 and z_1 r_1 = e/2: g is −e r_1/2 for G_t, e (1 − r_1)/2 for
    G_t − V_t and for the control variate of each step, e/2 along the trajectory, for the sum over actions and for A_t, and 0 for
    Q_t.

    Returns:
        Variance by name of Φ.
    """
    return {
        "reward_to_go": 0.25, "value_baseline": 0.5, "state_action_control_variate": 0.5, "trajectory_control_variate": 0.25,
        "all_action": 0.25, "advantage": 0.25, "q_value": 0.0,
    }  # fmt: skip


def late_gaps() -> Environment:
    """Return three steps whose last gap between the actions follows a_1: ±1/4, with x = 4 there.

    a_0 leads to one of two states, x = 1, in which action 1 pays 1. They send a_1 to the last two states crosswise. Taken step by
    step, −Z_0 A_1 takes back what the last states' ∇V = ±1/4 bring. See :func:`late_gaps_variance`.
    """
    lists = [
        [[(1.0, 1, 0.0, False)], [(1.0, 2, 0.0, False)]],
        [[(1.0, 4, 0.0, False)], [(1.0, 3, 1.0, False)]],
        [[(1.0, 3, 0.0, False)], [(1.0, 4, 1.0, False)]],
        [[(1.0, 0, -0.125, True)], [(1.0, 0, 0.125, True)]],
        [[(1.0, 0, 0.125, True)], [(1.0, 0, -0.125, True)]],
    ]
    return _world(lists, [1.0, 1.0, 1.0, 4.0, 4.0], 3, "late gaps")


def late_gaps_variance() -> dict[str, float]:
    """Return the variance of g on :func:`late_gaps` under each Φ, with exact values.

    Trajectory-wise, as for the sum over actions, it is that of ∇V_2 = ±1/4. Step by step z_0 A_1 = ∓1/4 cancels that, and 1/256
    each is left of z_0 A_2 = ±1/16 and z_1 A_2 = ±1/16.

    Returns:
        Variance by name of Φ.
    """
    return {
        "reward_to_go": 17 / 128, "value_baseline": 1 / 128, "state_action_control_variate": 1 / 128,
        "trajectory_control_variate": 1 / 16, "all_action": 1 / 16, "advantage": 1 / 16, "q_value": 3 / 16,
    }  # fmt: skip
