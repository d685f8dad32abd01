"""A world in which one action is a whole controller: θ is chosen once, and one step runs an episode under it.

With θ ~ p(θ | ρ) drawn once for each trajectory the gradient is ∇_ρ log p(θ | ρ) R_γ: the score is taken once, of the
distribution over θ, and not at every step of the inner world. Every Φ of a one-step world then is its form with parameter-based
exploration: total_return is PGPE, a baseline makes it PGPE with a baseline. Source: Parameter-Exploring Policy Gradients (Sehnke,
Osendorfer, Rückstieß, Graves, Peters, Schmidhuber, 2010).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.envs.base import Environment
from varlab.types import Simulator


class Controls(Protocol):
    """Acts with a θ of its own in each of n episodes."""

    num_parameters: int
    identity: Mapping[str, object]

    def act(self, theta: Tensor, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return actions [n] or [n, d] for parameters [n, P] and observations [n, ...]."""


class ParameterExploringSimulator:
    """Whole episodes as single steps: n episodes under n different θ run as one batch of the inner world.

    Attributes:
        spent: [n] int64, steps of the inner world that the last step took.
    """

    def __init__(self, env: Environment, controller: Controls, gamma: float, device: torch.device) -> None:
        """Make a simulator of the inner world ``env``."""
        self.env, self.controller, self.gamma, self.device = env, controller, gamma, device
        self.inner: Simulator = env.make_simulator(device)

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n inner episodes, each ``group`` consecutive ones in one state; actions have a generator of their own.

        Returns:
            The constant observation 0, [n, 1].
        """
        world, actions = rng.children(seed, 2)
        self.generator = rng.torch_generator(actions, self.device)
        self.obs = self.inner.reset(n, world) if group == 1 else self.inner.reset(n, world, group)
        return self._nothing(n)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run each episode to its end under its own θ.

        Args:
            action: [n, P] θ.

        Returns:
            The observation 0 [n, 1], the returns R_γ [n] float64, and that all ended.

        Raises:
            InputError: for NaN and infinities in the observations of the inner world.
        """
        n, obs, theta = action.shape[0], self.obs, action
        live = torch.arange(n, device=self.device)
        total = torch.zeros(n, dtype=torch.float64, device=self.device)
        self.spent = torch.zeros(n, dtype=torch.int64, device=self.device)
        for t in range(self.env.horizon):
            # A controller may hide a NaN: the most likely of NaN probabilities is some action.
            checks.finite_rows("observation", obs, self.env.name, 0, t, live)
            obs, reward, end = self.inner.step(self.controller.act(theta, obs, self.generator))
            total[live] += self.gamma**t * reward
            self.spent[live] += 1
            if t == self.env.horizon - 1 or bool(end.all()):
                break
            if bool(end.any()) or getattr(self.inner, "cut_short", None):
                alive = ~end
                obs, live, theta = obs[alive], live[alive], theta[alive]
                self.inner.keep(alive)
        return self._nothing(n), total, torch.ones(n, dtype=torch.bool, device=self.device)

    def keep(self, alive: Tensor) -> None:
        """Do nothing: there is no second step."""

    def _nothing(self, n: int) -> Tensor:
        return torch.zeros(n, 1, dtype=torch.float64, device=self.device)


@dataclass(frozen=True)
class ParameterExploring(Environment):
    """A one-step world around another.

    Attributes:
        inner: the world of whole episodes.
        gamma: γ of R_γ = Σ_t γ^t r_t, which is the reward here.
    """

    inner: Environment | None = None
    gamma: float = 1.0

    @property
    def objective_horizon(self) -> int:
        """H of the inner world, whose return is the objective."""
        return self.inner.horizon


def parameter_exploring(env: Environment, controller: Controls, gamma: float = 1.0) -> ParameterExploring:
    """Return the world whose one action is θ ∈ R^P and whose one step is an episode of ``env`` under the controller.

    Its reward is R_γ, its observation the constant 0, its horizon 1. A step costs as many environment steps as its episode has,
    and they are charged: see ``spent`` of :class:`~varlab.types.Trajectories`.

    Args:
        env: the inner world, with its horizon H.
        controller: acts with a θ of its own in every episode, such as :class:`varlab.policies.Controller`.
        gamma: γ of the inner return.

    Returns:
        The world.
    """
    checks.in_range("gamma", gamma, 0.0, 1.0)
    return ParameterExploring(
        name=env.name,
        horizon=1,
        observation_space=gymnasium.spaces.Box(0.0, 0.0, (1,), np.float64),
        action_space=gymnasium.spaces.Box(-np.inf, np.inf, (controller.num_parameters,), np.float64),
        make_simulator=lambda device: ParameterExploringSimulator(env, controller, gamma, device),
        part_size=env.part_size,
        identity={
            "parameter_exploring": dict(env.identity), "horizon": env.horizon, "gamma": gamma,
            "controller": dict(controller.identity),
        },
        inner=env,
        gamma=gamma,
    )  # fmt: skip


def check_inner_gamma(env: ParameterExploring, gamma: float, objectives: Sequence[str]) -> None:
    """Check that a measurement's γ is that of the inner return, so that its rows say what was discounted.

    Args:
        env: the world.
        gamma: γ of the measurement.
        objectives: what biases would refer to.

    Raises:
        InputError: if γ differs, or an undiscounted objective is asked of a discounted return.
    """
    if gamma != env.gamma:
        raise checks.InputError(
            f"gamma={env.gamma} was expected, by which the returns of {env.name} are discounted inside its one step, but "
            f"gamma={gamma} came; pass the same to parameter_exploring and to the measurement."
        )
    if gamma < 1.0 and "J_1" in objectives:
        raise checks.InputError(
            f"The objective J_gamma was expected on {env.name}, whose reward is the return discounted by {gamma}, but J_1 was "
            "asked for; leave objectives out, or set gamma=1."
        )
