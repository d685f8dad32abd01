"""The infinite-horizon discounted objective as termination with probability 1 − γ after every step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.capabilities import Saved
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteSimulator
from varlab.types import Simulator


class GeometricSimulator:
    """Another simulator whose episodes also end with probability 1 − γ after each step."""

    def __init__(self, inner: Simulator, gamma: float, device: torch.device) -> None:
        """Wrap ``inner``."""
        self.inner, self.gamma, self.device = inner, gamma, device

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes (the endings have a generator of their own) and return their observations."""
        return self.inner.reset(n, self._split(seed), group)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance the live episodes, end each with probability 1 − γ; return observation, reward, termination."""
        obs, reward, terminated = self.inner.step(action)
        u = torch.rand(reward.shape[0], generator=self.generator, device=self.device, dtype=torch.float64)
        return obs, reward, terminated | (u >= self.gamma)

    @property
    def snapshots_at_once(self) -> int | None:
        """How many states may be kept at once, if the inner world tells."""
        return getattr(self.inner, "snapshots_at_once", None)

    @property
    def cut_short(self) -> list[bool] | None:
        """Which live episodes the inner world truncated by itself at the last step, if it tells."""
        return getattr(self.inner, "cut_short", None)

    @property
    def spent(self) -> Tensor | None:
        """Steps of a world inside the inner world that the last step took, if it tells."""
        return getattr(self.inner, "spent", None)

    def keep(self, alive: Tensor) -> None:
        """Drop finished episodes."""
        self.inner.keep(alive)

    def snapshot(self) -> Saved:
        """Return the inner states: when an episode ends does not depend on how long it lasted."""
        return self.inner.snapshot()

    def restore(self, saved: Saved, seed: np.random.SeedSequence) -> None:
        """Go on from inner states."""
        self.inner.restore(saved, self._split(seed))

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Draw the inner world's numbers and the endings from ``seed`` from now on."""
        self.inner.reseed(self._split(seed))

    def _split(self, seed: np.random.SeedSequence) -> np.random.SeedSequence:
        world, endings = rng.children(seed, 2)
        self.generator = rng.torch_generator(endings, self.device)
        return world


def with_termination(env: Environment, gamma: float) -> Environment:
    """Return ``env`` ending with probability 1 − γ after each step.

    E Σ_{t<H} r_t of the new world is E Σ_{t<H} γ^t r_t of the old one, so with H large enough
    (:func:`~varlab.envs.registry.horizon_for`) its undiscounted objective is the infinite-horizon discounted one.

    Args:
        env: any world.
        gamma: probability γ of going on, in [0, 1].

    Returns:
        The new world; finite if ``env`` is.
    """
    checks.in_range("gamma", gamma, 0.0, 1.0)
    identity = {**env.identity, "continuation": gamma * env.identity.get("continuation", 1.0)}
    if env.finite is not None:
        mdp = env.finite.with_termination(gamma)
        return replace(env, finite=mdp, make_simulator=lambda device: FiniteSimulator(mdp, device), identity=identity)
    return replace(
        env,
        make_simulator=lambda device: GeometricSimulator(env.make_simulator(device), gamma, device),
        identity=identity,
    )
