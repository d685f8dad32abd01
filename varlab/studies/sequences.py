"""Sequences of tokens under a softmax table of the last token: every sequence is listed, so that all moments are exact.

A policy writes T tokens out of A; each is drawn given the one before it, and the whole pays once, at its end, as an answer that
is checked. g = Σ_t z_t (R − b_t) with baselines of the time, and surrogate gradients where another policy wrote, are linear in
the scores of the A^T sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from varlab import checks
from varlab.rng import Streams, numpy_generator

FORMS = ("unclipped", "clipped", "no_ratio")


@dataclass(frozen=True)
class Sequences:
    """A world and a policy θ on it.

    Attributes:
        logits: [A + 1, A] of the next token given the last; row A is the beginning.
        pays: [A ** T] R of every sequence, the first token the most significant digit.
        length: T.
    """

    logits: np.ndarray
    pays: np.ndarray
    length: int

    @classmethod
    def draw(cls, seed: int, number: int, *, tokens: int = 3, length: int = 6, scale: float = 1.0) -> Sequences:
        """Draw world ``number`` of a root seed: an answer is right, R = 1, if its pairs of tokens score more than nothing.

        Every pair of neighbours (the beginning counts as a token) has a score N(0, 1); the sum over a sequence decides.

        Args:
            seed: root seed; rewards come from its rollout stream, logits from its θ stream.
            number: of the world.
            tokens: A.
            length: T.
            scale: standard deviation of the logits, N(0, scale²).

        Returns:
            The world.
        """
        world, policy = (numpy_generator(Streams(seed).sequence(name, number)) for name in ("rollout", "theta"))
        pair = world.standard_normal((tokens + 1, tokens))
        made = cls(scale * policy.standard_normal((tokens + 1, tokens)), np.zeros(tokens**length), length)
        pays = pair[made.last, made.tokens].sum(1) > 0
        return cls(made.logits, pays.astype(float), length)

    @cached_property
    def tokens(self) -> np.ndarray:
        """[K, T] all sequences."""
        a = self.logits.shape[1]
        return np.indices((a,) * self.length).reshape(self.length, -1).T

    @cached_property
    def last(self) -> np.ndarray:
        """[K, T] the token before each, A at the beginning."""
        begin = np.full((len(self.tokens), 1), self.logits.shape[1])
        return np.concatenate([begin, self.tokens[:, :-1]], 1)

    def log_policy(self, logits: np.ndarray | None = None) -> np.ndarray:
        """Return log π [A + 1, A] of θ, or of other logits."""
        x = self.logits if logits is None else logits
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    def log_steps(self, logits: np.ndarray | None = None) -> np.ndarray:
        """Return log π(a_t | a_{t−1}) [K, T]."""
        return self.log_policy(logits)[self.last, self.tokens]

    @cached_property
    def chance(self) -> np.ndarray:
        """[K] probability of each sequence under θ."""
        return np.exp(self.log_steps().sum(1))

    def scores(self, logits: np.ndarray | None = None) -> np.ndarray:
        """Return z_t [K, T, P] at θ, or at other logits, P = (A + 1) A."""
        pi = np.exp(self.log_policy(logits))
        z = np.zeros((*self.tokens.shape, *pi.shape))
        k, t = np.indices(self.tokens.shape)
        z[k, t, self.last] = -pi[self.last]
        z[k, t, self.last, self.tokens] += 1.0
        return z.reshape(*self.tokens.shape, -1)

    @cached_property
    def value(self) -> np.ndarray:
        """[K, T] V of what was written before token t: E[R | a_0 … a_{t−1}]."""
        a, t = self.logits.shape[1], self.length
        out = np.empty(self.tokens.shape)
        chance, paid = self.chance, self.chance * self.pays
        for i in range(t):
            mass, worth = (x.reshape(a**i, -1).sum(1) for x in (chance, paid))
            out[:, i] = np.repeat(worth / mass, a ** (t - i))
        return out

    @cached_property
    def moments(self) -> TokenMoments:
        """Products of scores that baselines of the time are read from."""
        z, p = self.scores(), self.chance
        norm = (z**2).sum(2)
        whole = z.sum(1)
        inner = np.einsum("ktp,kp->kt", z, whole)
        grad = p @ (whole * self.pays[:, None])
        return TokenMoments(
            plain=float((p * self.pays**2) @ (whole**2).sum(1) - grad @ grad),
            product=(p * self.pays) @ inner,
            norm=p @ norm,
            cumulative=((p * self.pays) @ norm.cumsum(1)) / (p @ norm.cumsum(1)),
            mean=float(p @ self.pays),
            spread=float(p @ self.pays**2 - (p @ self.pays) ** 2),
            gradient_sq=float(grad @ grad),
        )

    def surrogate(self, theta: np.ndarray, form: str, eps: float = 0.2) -> np.ndarray:
        """Return g [K, P] at ``theta`` of the surrogate Σ_t ρ_t A_t with data and A_t = R − V of this world's policy.

        Args:
            theta: [A + 1, A] logits at which the gradient is taken.
            form: unclipped ρ_t A_t; clipped, 0 where PPO's objective is flat; or no_ratio A_t.
            eps: ε of the clipping.

        Returns:
            The gradients.
        """
        checks.one_of("form of surrogate", form, FORMS)
        ratio = np.exp(self.log_steps(theta) - self.log_steps())
        advantage = self.pays[:, None] - self.value
        phi = advantage if form == "no_ratio" else ratio * advantage
        if form == "clipped":
            phi = np.where(np.where(advantage > 0, ratio > 1 + eps, ratio < 1 - eps), 0.0, phi)
        return np.einsum("ktp,kt->kp", self.scores(theta), phi)

    def kurtosis(self, g: np.ndarray) -> float:
        """Return E‖g − E g‖⁴ / (E‖g − E g‖²)² of gradients [K, P] of the sequences."""
        square = ((g - self.chance @ g) ** 2).sum(1)
        return float(self.chance @ square**2 / (self.chance @ square) ** 2)

    def estimated_token_baselines(self, index: np.ndarray) -> np.ndarray:
        """Return the gradients [n, P] of groups with token baselines estimated from the other answers.

        b_it = Σ_{j≠i} W_jt R_j / Σ_{j≠i} W_jt with W_jt = Σ_{u≤t} ‖z_ju‖².

        Args:
            index: [n, G] sequences of each group.

        Returns:
            The mean over each group of Σ_t z_it (R_i − b_it).
        """
        z = self.scores()
        weight = (z**2).sum(2).cumsum(1)[index]  # [n, G, T]
        returns = self.pays[index][..., None]
        paid = weight * returns
        b = (paid.sum(1, keepdims=True) - paid) / (weight.sum(1, keepdims=True) - weight)
        return np.einsum("ngtp,ngt->np", z[index], returns - b) / index.shape[1]


@dataclass(frozen=True)
class TokenMoments:
    """What the variance of g = Σ_t z_t (R − b_t) depends on.

    Attributes:
        plain: tr Cov without baseline.
        product: [T] E⟨z_t, g_0⟩.
        norm: [T] E‖z_t‖².
        cumulative: [T] E[W_t R] / E W_t with W_t = Σ_{u≤t} ‖z_u‖², the optimal token baseline of its source.
        mean: E R, the limit of a group mean.
        spread: Var R.
        gradient_sq: ‖∇J‖².
    """

    plain: float
    product: np.ndarray
    norm: np.ndarray
    cumulative: np.ndarray
    mean: float
    spread: float
    gradient_sq: float

    @property
    def best(self) -> np.ndarray:
        """[T] b_t = E⟨z_t, g_0⟩ / E‖z_t‖², of least tr Cov g among baselines of the time."""
        return self.product / self.norm

    def variance(self, baseline: np.ndarray | float) -> float:
        """Return tr Cov g with known baselines b_t [T]: products of two steps vanish, E[z_u | a_0 … a_{u−1}] = 0."""
        b = np.broadcast_to(baseline, self.norm.shape)
        return float(self.plain - 2 * b @ self.product + b**2 @ self.norm)

    def leave_one_out(self, group: int) -> float:
        """Return G · tr Cov of a group of G with leave-one-out means: see :mod:`varlab.studies.group_terms`."""
        return self.variance(self.mean) + (self.spread * float(self.norm.sum()) + self.gradient_sq) / (group - 1)
