"""The variance of group estimators as a function of the group size, in closed form: between prompts, within, and baseline noise.

Let S be the score of an answer, R its return, V(s) and ∇J_s the mean return and its gradient at prompt s, r = R − V(s). A group
of G answers to one prompt with leave-one-out baselines has, as E S = 0 makes all other products vanish,

    G · tr Cov(ĝ | s) = a_s + c_s / (G − 1),   a_s = E‖S‖² r² − ‖∇J_s‖²,   c_s = E r² · E‖S‖² + ‖∇J_s‖²,

and with V(s) itself a_s alone. With M = N/G prompts, B = E‖∇J_s − ∇J‖² and means over prompts,

    N · MSE = G B + E a_s + E c_s / (G − 1),

least at G* = 1 + √(E c_s / B) whatever N. An answer in its own mean shrinks the gradient by (G − 1)/G: the variance by the square
of that, with a bias ‖∇J‖²/G² on top which N does not lower. Source of the decomposition: A Class of Statistics with
Asymptotically Normal Distribution (Hoeffding, 1948).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from varlab import checks, policies
from varlab.envs.base import Environment
from varlab.values.fisher import score_table

KINDS = ("leave_one_out", "group_mean", "value_baseline", "batch_mean")


@dataclass(frozen=True)
class GroupTerms:
    """Terms of N · MSE.

    Attributes:
        between: B.
        within: E a_s, with V(s) as baseline.
        noise: E c_s.
        gradient_sq: ‖∇J‖².
        pooled: E a_s with one baseline V = E V(s) for all prompts, the limit of a mean over a large batch.
    """

    between: float
    within: float
    noise: float
    gradient_sq: float
    pooled: float

    @classmethod
    def of(cls, start: np.ndarray, chance: np.ndarray, score: np.ndarray, reward: np.ndarray) -> GroupTerms:
        """Return the terms of answers that are listed.

        Args:
            start: [S] probability of each prompt.
            chance: [S, K] of each answer.
            score: [S, K, P] its S.
            reward: [S, K] its R.

        Returns:
            The terms.
        """
        value = (chance * reward).sum(1)
        grad = np.einsum("sk,skp,sk->sp", chance, score, reward)
        norm = (score**2).sum(2)
        own = (grad**2).sum(1)
        r = reward - value[:, None]
        mean = start @ grad
        pooled = reward - start @ value
        return cls(
            between=float(start @ ((grad - mean) ** 2).sum(1)),
            within=float(start @ ((chance * norm * r**2).sum(1) - own)),
            noise=float(start @ ((chance * r**2).sum(1) * (chance * norm).sum(1) + own)),
            gradient_sq=float(mean @ mean),
            pooled=float(start @ ((chance * norm * pooled**2).sum(1) - own)),
        )

    @classmethod
    def of_world(cls, env: Environment, policy: nn.Module) -> GroupTerms:
        """Return the terms of a one-step world.

        Args:
            env: finite, of one step.
            policy: a softmax table on it.

        Returns:
            The terms.

        Raises:
            InputError: for a world of several steps.
        """
        if env.finite is None or env.horizon != 1:
            raise checks.InputError(
                f"A finite world of one step was expected, but {env.name} is none; list its answers for GroupTerms.of."
            )
        double = policies.prepare(policy, torch.float64, torch.device("cpu"))
        pi, z, support = score_table(env.finite, double)
        s, a = pi.shape
        chance = (pi[:, :, None] * env.finite.probability.numpy()).reshape(s, -1)
        reward = env.finite.reward.numpy().reshape(s, -1)
        dense = np.zeros((s, a, policies.num_parameters(double)))
        if support is None:
            dense[:] = z
        else:
            dense[np.arange(s)[:, None, None], np.arange(a)[:, None], support[:, None, :]] = z
        return cls.of(env.finite.initial.numpy(), chance, dense.repeat(reward.shape[1] // a, 1), reward)

    def variance(self, kind: str, group: np.ndarray | float) -> np.ndarray | float:
        """Return N · tr Cov, per trajectory, of a mean over N trajectories in groups of G.

        Args:
            kind: one of :data:`KINDS`; batch_mean in the limit of a large batch.
            group: G.

        Returns:
            The variance.
        """
        checks.one_of("kind of baseline", kind, KINDS)
        g = np.asarray(group, dtype=float)
        if kind in ("value_baseline", "batch_mean"):
            return g * self.between + (self.within if kind == "value_baseline" else self.pooled)
        plain = g * self.between + self.within + self.noise / (g - 1)
        return plain if kind == "leave_one_out" else plain * ((g - 1) / g) ** 2

    def mse(self, kind: str, group: np.ndarray | float, n: int) -> np.ndarray | float:
        """Return E‖ĝ − ∇J‖² with N answers in groups of G."""
        bias = self.gradient_sq / np.asarray(group, dtype=float) ** 2 if kind == "group_mean" else 0.0
        return self.variance(kind, group) / n + bias

    def best_group(self, kind: str, n: int) -> int:
        """Return the G in 2 … N that has the least mean square error with N answers in all."""
        group = np.arange(2, n + 1)
        return int(group[np.argmin(self.mse(kind, group, n))])
