"""Learning on bandits by stochastic gradient ascent, many runs at once that share their random numbers.

In every update one arm of each bandit is drawn and its θ moves along η z (r − b), or along the natural gradient η F⁺ z (r − b).
Run i draws its arms by the same uniform numbers under every baseline, so that what differs between runs is the baseline alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from varlab import checks
from varlab.rng import Streams, numpy_generator

RULES = ("plain", "natural")
#: Baselines b(log π [E, R, A], r [E, A]) → [E, R], for E bandits in R runs.
Baseline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def none(log_pi: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Return 0."""
    return np.zeros(log_pi.shape[:2])


def value(log_pi: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Return V = Σ_a π_a r_a of each bandit."""
    return np.einsum("era,ea->er", np.exp(log_pi), rewards)


def shared_value(log_pi: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Return the mean of V over the bandits: what one critic that cannot tell them apart learns."""
    return np.broadcast_to(value(log_pi, rewards).mean(0), log_pi.shape[:2])


def log_norm(log_pi: np.ndarray, rule: str) -> np.ndarray:
    """Return log ‖z_a‖², ‖z_a‖² = 1 − 2 π_a + Σ_b π_b², or log ‖F⁺ z_a‖² = log(1 − 1/A) − 2 log π_a, [E, R, A].

    F = diag π − π πᵀ has F⁺ z_a = (I − 1 1ᵀ / A) e_a / π_a on softmax logits.
    """
    if checks.one_of("rule of learning", rule, RULES) == "natural":
        return np.log1p(-1 / log_pi.shape[-1]) - 2 * log_pi
    pi = np.exp(log_pi)
    rest = -np.expm1(log_pi)  # 1 − π_a without cancellation
    with np.errstate(divide="ignore"):
        return np.log(rest**2 + (pi**2).sum(-1, keepdims=True) - pi**2)


def best(rule: str, shift: float = 0.0) -> Baseline:
    """Return b* + shift, b* = E[‖·‖² r] / E‖·‖² with the rule's norm: the baseline of least variance at every π."""

    def baseline(log_pi: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        weight = log_pi + log_norm(log_pi, rule)
        weight = np.exp(weight - weight.max(-1, keepdims=True))
        return np.einsum("era,ea->er", weight, rewards) / weight.sum(-1) + shift

    return baseline


def mean_update(log_pi: np.ndarray, rewards: np.ndarray, b: np.ndarray, rule: str) -> np.ndarray:
    """Return E of one update with η = 1, [E, R, A], as the sum over arms."""
    pi, arms = np.exp(log_pi), log_pi.shape[-1]
    pushed = pi * (rewards[:, None] - b[..., None])
    if checks.one_of("rule of learning", rule, RULES) == "plain":
        return pushed - pi * pushed.sum(-1, keepdims=True)
    return (pushed / pi) @ (np.eye(arms) - 1 / arms)


def variance(log_pi: np.ndarray, rewards: np.ndarray, b: np.ndarray, rule: str) -> np.ndarray:
    """Return tr Cov of one update with η = 1, [E, R]: Σ_a π_a ‖·‖² (r_a − b)² less the squared norm of the mean."""
    second = np.exp(log_pi + log_norm(log_pi, rule)) * (rewards[:, None] - b[..., None]) ** 2
    return second.sum(-1) - (mean_update(log_pi, rewards, b, rule) ** 2).sum(-1)


def log_softmax(theta: np.ndarray) -> np.ndarray:
    """Return log π of logits [..., A]."""
    x = theta - theta.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@dataclass(frozen=True)
class Runs:
    """Many runs with one baseline.

    Attributes:
        rewards: [E, A].
        policy: [C, E, R, A] π at the updates that were kept.
        updates: [C] after how many updates.
    """

    rewards: np.ndarray
    policy: np.ndarray
    updates: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """max_a r_a − J [C, E, R], as Σ_a π_a (max r − r_a): nothing cancels as π(best) → 1."""
        return np.einsum("cera,ea->cer", self.policy, self.rewards.max(1, keepdims=True) - self.rewards)


def learn(
    rewards: Sequence[Sequence[float]],
    baseline: Baseline,
    *,
    seed: int,
    runs: int,
    keep: Sequence[int],
    step: float,
    rule: str = "plain",
    part: int = 0,
) -> Runs:
    """Learn from uniform policies in many runs at once.

    Args:
        rewards: [E, A] r of E bandits, without noise.
        baseline: b at every π.
        seed: root seed; numbers come from its rollout stream.
        runs: R.
        keep: after how many updates π is kept, ascending; the last ends the runs.
        step: η.
        rule: plain or natural.
        part: numbers independent sets of runs; equal parts share their random numbers.

    Returns:
        The runs.
    """
    r = np.asarray(rewards, dtype=float)
    checks.one_of("rule of learning", rule, RULES)
    rng = numpy_generator(Streams(seed).sequence("rollout", part))
    theta = np.zeros((len(r), runs, r.shape[1]))
    out = []
    for t in range(keep[-1] + 1):
        log_pi = log_softmax(theta)
        pi = np.exp(log_pi)
        if t in keep:
            out.append(pi)
        u = rng.random((len(r), runs, 1))
        arm = np.minimum((u >= pi.cumsum(-1)).sum(-1, keepdims=True), r.shape[1] - 1)
        push = step * (np.take_along_axis(r[:, None], arm, 2) - baseline(log_pi, r)[..., None])
        if rule == "plain":
            theta -= push * pi
        else:  # F⁺ z up to a multiple of 1, which no softmax sees
            push = push / np.maximum(np.take_along_axis(pi, arm, 2), 1e-300)
        np.put_along_axis(theta, arm, np.take_along_axis(theta, arm, 2) + push, 2)
    return Runs(r, np.stack(out), np.asarray(keep))
