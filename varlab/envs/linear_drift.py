"""A drifting point on the line with a bounded reward: s' = s + a + ε, r = exp(−s²/2 − a²/2) + 1."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.envs.base import Environment


class LinearDriftSimulator:
    """Many episodes of the drifting point as one batch of float64 tensors."""

    def __init__(self, noise: float, start: float, device: torch.device) -> None:
        """Keep the standard deviations of ε and of s_0."""
        self.noise, self.start, self.device = noise, start, device

    def _draw(self, n: int) -> Tensor:
        return torch.randn(n, 1, generator=self.generator, device=self.device, dtype=torch.float64)

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes, each ``group`` consecutive ones in one state, and return their states [n, 1]."""
        self.generator = rng.torch_generator(seed, self.device)
        self.state = self.start * self._draw(-(-n // group)).repeat_interleave(group, 0)[:n]
        return self.state

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by s' = s + a + ε; return s', the reward of (s, a), and that nothing terminated."""
        a = action.to(torch.float64)
        reward = torch.exp(-(self.state.square() + a.square()) / 2).squeeze(1) + 1.0
        self.state = self.state + a + self.noise * self._draw(a.shape[0])
        return self.state, reward, torch.zeros_like(reward, dtype=torch.bool)

    def keep(self, alive: Tensor) -> None:
        """Drop episodes that another rule ended."""
        self.state = self.state[alive]


def linear_drift(horizon: int = 10, *, noise: float = 0.5, start: float = 1.0) -> Environment:
    """Return the world s' = s + a + ε, r = exp(−s²/2 − a²/2) + 1, ε ~ N(0, noise²), s_0 ~ N(0, start²).

    Rewards lie in (1, 2]: the constant 1 tells an action nothing, and is noise in a gradient without baseline. It is after the
    illustration in Analysis and Improvement of Policy Gradient Estimation (Zhao, Hachiya, Niu, Sugiyama, 2011); the standard
    deviations here are this package's own.

    Args:
        horizon: H.
        noise: standard deviation of ε.
        start: standard deviation of s_0, 0 for a start at 0.

    Returns:
        The environment.
    """
    checks.in_range("noise", noise, 0.0, 1e6)
    checks.in_range("start", start, 0.0, 1e6)
    space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    return Environment(
        name="linear drift",
        horizon=horizon,
        observation_space=space,
        action_space=space,
        make_simulator=lambda device: LinearDriftSimulator(noise, start, device),
        part_size=4096,
        identity={"name": "linear drift", "noise": float(noise), "start": float(start)},
    )
