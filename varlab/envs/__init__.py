"""Worlds: any Gymnasium id with Discrete or Box spaces, varlab's own ids, and finite MDPs given as outcome lists."""

from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.geometric import with_termination
from varlab.envs.parameter_exploring import ParameterExploring, parameter_exploring
from varlab.envs.registry import horizon_for, make
from varlab.envs.worlds import SingleEnv

__all__ = [
    "Environment",
    "FiniteMDP",
    "ParameterExploring",
    "SingleEnv",
    "environment",
    "horizon_for",
    "make",
    "parameter_exploring",
    "with_termination",
]
