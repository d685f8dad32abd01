"""Which worlds have exact values and an exact ∇J: finite MDPs, and linear systems under linear-Gaussian policies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varlab.envs.base import Environment
from varlab.envs.lqg import LQG
from varlab.policies.networks import Linear
from varlab.values import dynamic_programming, linear_quadratic
from varlab.values.dynamic_programming import ExactValues
from varlab.values.linear_quadratic import QuadraticValues


def applies(env: Environment, policy: nn.Module) -> bool:
    """Return whether values and ∇J of this policy on this world are known exactly."""
    return env.finite is not None or (linear_system(env) and type(policy) is Linear)


def linear_system(env: Environment) -> bool:
    """Return whether the world is a linear system that runs to its horizon (random termination makes it another)."""
    return isinstance(env, LQG) and "continuation" not in env.identity


def source(env: Environment, policy: nn.Module, gamma: float, device: torch.device) -> ExactValues | QuadraticValues:
    """Return exact values where :func:`applies`.

    Args:
        env: the world.
        policy: in float64.
        gamma: γ.
        device: where the values are looked up.

    Returns:
        The source of values.
    """
    if env.finite is not None:
        return ExactValues.of(env.finite, policy, gamma, env.horizon).to(device)
    return QuadraticValues.of(env, policy, gamma).to(device)


def gradient(env: Environment, policy: nn.Module, gamma: float) -> tuple[Tensor, float]:
    """Return ∇J_γ [P] float64 and J_γ where :func:`applies`."""
    if env.finite is not None:
        return dynamic_programming.gradient(env.finite, policy, gamma, env.horizon)
    return linear_quadratic.gradient(env, policy, gamma)
