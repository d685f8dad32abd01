"""All episodes of a small finite MDP with a softmax table: constant baselines and those of each parameter, best and fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from varlab.envs.base import Environment
from varlab.policies.networks import SoftmaxTable
from varlab.values.fisher import score_table


@dataclass(frozen=True)
class Episodes:
    """All M episodes of a small finite MDP on which nothing terminates; γ = 1.

    Attributes:
        p: [M] probabilities.
        score: [M, P] S = Σ_t z_t.
        norm: [M, P] Σ_t z_t², entry by entry.
        reward: [M] R.
    """

    p: np.ndarray
    score: np.ndarray
    norm: np.ndarray
    reward: np.ndarray

    @classmethod
    def of(cls, env: Environment, policy: SoftmaxTable) -> Episodes:
        """Follow every outcome of every action."""
        mdp = env.finite
        pi, z, support = score_table(mdp, policy)
        dense = np.zeros((*pi.shape, support.size))
        for s, a in np.ndindex(*pi.shape):
            dense[s, a, support[s]] = z[s, a]
        probability, reward, ahead = (x.numpy() for x in (mdp.probability, mdp.reward, mdp.next_state))
        a, o = (x.ravel() for x in np.indices(probability.shape[1:]))
        state, p = np.arange(len(pi)), mdp.initial.numpy()
        score, norm, paid = np.zeros((len(pi), support.size)), np.zeros((len(pi), support.size)), np.zeros(len(pi))
        for _ in range(env.horizon):
            p = (p[:, None] * pi[state][:, a] * probability[state][:, a, o]).ravel()
            paid = (paid[:, None] + reward[state][:, a, o]).ravel()
            here = dense[state][:, a]
            score = (score[:, None] + here).reshape(len(p), -1)
            norm = (norm[:, None] + here**2).reshape(len(p), -1)
            state = ahead[state][:, a, o].ravel()
        return cls(p, score, norm, paid)

    @property
    def best(self) -> float:
        """b* = E[‖S‖² R] / E‖S‖²."""
        size = self.p * (self.score**2).sum(1)
        return float(size @ self.reward / size.sum())

    @property
    def best_by_parameter(self) -> np.ndarray:
        """[P] E[S_p² R] / E[S_p²]."""
        size = self.p[:, None] * self.score**2
        return (size * self.reward[:, None]).sum(0) / size.sum(0)

    def fits(self, n: int, datasets: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Fit baselines on data sets of n episodes, and evaluate each on the world itself.

        A baseline is the mean of S_p² R over that of Σ_t z_tp² in n episodes, 0 where nothing moved, or the same of sums over
        parameters. It adds Σ_p (b̂_p − b*_p)² E[S_p²] to the variance with b*_p, (b̂ − b*)² E‖S‖² to that with b*.

        Args:
            n: episodes of a data set.
            datasets: D.
            rng: source of randomness.

        Returns:
            By name, tr Cov over that with the best constant, [D]; one of them gives each parameter the baseline of the one two
            places before, which with two actions is that of another state.
        """
        counts = rng.multinomial(n, self.p / self.p.sum(), size=datasets).astype(float)
        above, below = counts @ (self.score**2 * self.reward[:, None]), counts @ self.norm
        size = self.p @ self.score**2
        own = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        one = above.sum(1) / below.sum(1)
        spread = ((self.best - self.best_by_parameter) ** 2) @ size
        gap = {
            "per parameter": ((own - self.best_by_parameter) ** 2) @ size - spread,
            "of another state": ((np.roll(own, 2, 1) - self.best_by_parameter) ** 2) @ size - spread,
            "constant": (one - self.best) ** 2 * size.sum(),
        }
        return {k: 1 + x / self.variance(self.best) for k, x in gap.items()}

    def variance(self, b: float | np.ndarray) -> float:
        """Return tr Cov of S (R − b) for a number b, or of S ∘ (R − b) for [P] of them."""
        g = self.score * (self.reward[:, None] - np.broadcast_to(b, self.score.shape[1:]))
        return float(self.p @ (g**2).sum(1) - ((self.p @ g) ** 2).sum())
