"""Where V and Q come from: exact dynamic programming, fitted critics, state cloning, or a user's functions."""

from varlab.values.cloning import Cloning
from varlab.values.critic import Critic, CriticSettings, fit
from varlab.values.dynamic_programming import ExactValues, evaluate, expected_return, gradient, occupancy, policy_table
from varlab.values.error import WithError, with_error
from varlab.values.functions import FunctionValues

__all__ = [
    "Cloning",
    "Critic",
    "CriticSettings",
    "ExactValues",
    "FunctionValues",
    "WithError",
    "evaluate",
    "expected_return",
    "fit",
    "gradient",
    "occupancy",
    "policy_table",
    "with_error",
]
