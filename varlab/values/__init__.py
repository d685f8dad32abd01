"""Where V and Q come from: exact dynamic programming, fitted critics, or a user's functions."""

from varlab.values.critic import Critic, CriticSettings, fit
from varlab.values.dynamic_programming import ExactValues, evaluate, expected_return, gradient, occupancy, policy_table
from varlab.values.functions import FunctionValues

__all__ = [
    "Critic",
    "CriticSettings",
    "ExactValues",
    "FunctionValues",
    "evaluate",
    "expected_return",
    "fit",
    "gradient",
    "occupancy",
    "policy_table",
]
