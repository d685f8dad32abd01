"""Mean square error against the size of a critic's error: exact bias and variance with Q + ε e in place of Q.

Bias grows like ε and a variance is a quadratic in ε, so that three exact evaluations give the mean square error for every ε and
number of trajectories, and the ε at which two estimators are equally good. That an average over actions trades variance for the
critic's bias: All-Action Policy Gradient Methods: A Numerical Integration Approach (Petit, Amdahl-Culleton, Liu, Smith, Bacon,
2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import environment
from varlab.envs.random_mdp import random_mdp
from varlab.oracles.exact import exact
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.values.dynamic_programming import ExactValues, occupancy, policy_table

STATES, ACTIONS, HORIZON = 8, 4, 10


@dataclass(frozen=True)
class BiasedCritic:
    """A finite MDP, a policy, and a direction in which the critic errs.

    Attributes:
        env: the world; undiscounted.
        policy: categorical on its states.
        error: [S, A] e, whose root mean square about its mean over actions, at the visited steps, is that of the advantage: with
            ε = 1 the critic is as wrong about the actions as they differ.
    """

    env: Environment
    policy: nn.Module
    error: Tensor

    @classmethod
    def of(cls, env: Environment, policy: nn.Module, error: Tensor) -> BiasedCritic:
        """Scale an error [S, A] of any size."""
        mdp, horizon = env.finite, env.horizon
        values = ExactValues.of(mdp, policy, 1.0, horizon)
        pi = policy_table(policy, mdp).detach()
        often = occupancy(mdp, pi, horizon).unsqueeze(2) * pi

        def size(x: Tensor) -> Tensor:
            return (often * (x - (pi * x).sum(-1, keepdim=True)) ** 2).sum().sqrt()

        return cls(env, policy, error * size(values.q) / size(error))

    @classmethod
    def drawn(cls, seed: int) -> BiasedCritic:
        """Draw a world of 8 states, 4 actions and 10 steps, a softmax table and an error, all from named streams of the seed."""
        world, theta, fit = (numpy_generator(Streams(seed).sequence(name)) for name in ("rollout", "theta", "fit"))
        env = environment(random_mdp(world, states=STATES, actions=ACTIONS, outcomes=3, ending=0.0), HORIZON, "random MDP")
        logits, error = (torch.from_numpy(x.standard_normal((STATES, ACTIONS))) for x in (theta, fit))
        return cls.of(env, SoftmaxTable(env, logits), error)

    @cached_property
    def values(self) -> ExactValues:
        """Exact values."""
        return ExactValues.of(self.env.finite, self.policy, 1.0, self.env.horizon)

    def critic(self, epsilon: float) -> ExactValues:
        """Return Q + ε e, and V that is its mean over actions."""
        pi = policy_table(self.policy, self.env.finite).detach()
        q = self.values.q + epsilon * self.error
        v = (pi * q).sum(-1)
        return ExactValues(torch.cat([v, torch.zeros_like(v[:1])]), q)

    def moments(self, phi: str, epsilon: float) -> tuple[float, float]:
        """Return ‖E g − ∇J‖ / ‖∇J‖ and tr Cov g / ‖∇J‖² of one trajectory with the critic."""
        found = exact(self.env, self.policy, [phi], values=self.critic(epsilon))
        square = float((found.gradient**2).sum())
        return float(np.sqrt(found.bias_sq[0] / square)), float(found.variance[0] / square)

    def errors(self, phi: str) -> tuple[float, np.ndarray]:
        """Return the bias at ε = 1, and the coefficients [3] of the variance as a polynomial in ε, constant first."""
        at = (0.0, 0.5, 1.0)
        found = [self.moments(phi, x) for x in at]
        return found[-1][0], np.linalg.solve(np.vander(at, increasing=True), [v for _, v in found])

    def mse(self, phi: str, epsilon: np.ndarray, n: int) -> np.ndarray:
        """Return E‖ĝ − ∇J‖² / ‖∇J‖² for the mean of n trajectories, at every ε."""
        bias, variance = self.errors(phi)
        return (np.asarray(epsilon) * bias) ** 2 + np.polynomial.polynomial.polyval(epsilon, variance) / n

    def crossover(self, phi: str, other: str, n: int) -> float:
        """Return the smallest ε > 0 at which both have the same mean square error.

        Args:
            phi: one Φ.
            other: the other one.
            n: trajectories.

        Returns:
            ε, infinite if there is none.
        """
        checks.positive_int("n", n)
        (bias, variance), (bias2, variance2) = self.errors(phi), self.errors(other)
        difference = (variance - variance2) / n
        difference[2] += bias**2 - bias2**2
        roots = np.polynomial.polynomial.polyroots(difference)
        real = roots[np.abs(roots.imag) < 1e-9].real
        return float(min(real[real > 0], default=np.inf))
