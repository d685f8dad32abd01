"""What a choice is compared with: ∇J, A ∇J, or the best multiple of ∇J, each with the reference's own error.

Where the scale of an estimator is free (divided by a standard deviation, or by the number of steps) its bias is what no multiple
of ∇J explains. With u = ∇J/‖∇J‖ that is (I − u uᵀ) E ĝ, the rest of E ĝ after its projection on ∇J; an error e of the reference
turns u and so moves the rest by −c (I − u uᵀ) e, c = ⟨E ĝ, ∇J⟩/‖∇J‖² being the best multiple.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from varlab.analysis import bias as bias_room
from varlab.analysis.blocks import CentredBlocks
from varlab.analysis.intervals import Interval
from varlab.types import Reference


@dataclass(frozen=True)
class Truth:
    """The reference's share of every row: ‖∇J‖² debiased, its interval and leave-one-out values, and tr Cov r̄."""

    grad: np.ndarray
    blocks: CentredBlocks | None
    signs: np.ndarray | None
    square: float
    square_loo: np.ndarray | None
    square_interval: Interval
    noise: float
    noise_loo: np.ndarray | None

    @property
    def resolved(self) -> bool:
        """Whether ‖∇J‖² is positive at the level of the interval, and stays so without any one block."""
        return self.square > 0 and self.square_interval.low > 0 and (self.square_loo is None or bool((self.square_loo > 0).all()))


def truth_of(reference: Reference, rng: np.random.Generator, draws: int, level: float) -> Truth:
    """‖∇J‖² from the reference alone; :func:`varlab.analysis.bias.sign_multiplier` with no second mean.

    Args:
        reference: exact or sampled.
        rng: generator of the sign draws.
        draws: their number.
        level: coverage of the interval.

    Returns:
        The reference's share of every row.
    """
    grad = np.asarray(reference.grad, dtype=np.float64)
    norm_sq = float(grad @ grad)
    if reference.block_mean is None:
        return Truth(grad, None, None, norm_sq, None, Interval(norm_sq, norm_sq), 0.0, None)
    count = np.ones(len(reference.block_mean)) if reference.block_count is None else np.asarray(reference.block_count)
    blocks = CentredBlocks.of(count, reference.block_mean)
    w, h, c = blocks.weight, blocks.h, len(count)
    noise, noise_loo = mean_noise(blocks)
    inner = blocks.dev @ grad
    square_loo = norm_sq - 2 * h * inner + h**2 * blocks.dev_sq - noise_loo
    signs = bias_room.random_signs(rng, draws, c)
    factor = bias_room.contribution(w)
    gram = factor[:, None] * blocks.gram * factor
    interval = bias_room.sign_multiplier(norm_sq, factor * inner, gram, signs, c - 1, level).interval
    return Truth(grad, blocks, signs, norm_sq - noise, square_loo, interval, float(noise), noise_loo)


def mean_noise(blocks: CentredBlocks) -> tuple[float, np.ndarray]:
    """Return tr Cov of the mean from the spread of the blocks, and without each of them."""
    w, h, c = blocks.weight, blocks.h, len(blocks.count)
    each = w * blocks.dev_sq
    return each.sum() / (c - 1), np.maximum(each.sum() - each - w * h * blocks.dev_sq, 0.0) / (1 - w) / (c - 2)


def transformed(reference: Reference, matrix: np.ndarray) -> Reference:
    """Return A ∇J with its blocks, for A [P, P]."""
    blocks = None if reference.block_mean is None else reference.block_mean @ matrix.T
    return replace(reference, grad=matrix @ reference.grad, block_mean=blocks)


def across(choice: CentredBlocks, truth: Truth) -> tuple[CentredBlocks, Truth]:
    """Return what is left of a choice of free scale across ∇J, and the 0 that it is compared with.

    Args:
        choice: its blocks.
        truth: of ∇J.

    Returns:
        The blocks of (I − u uᵀ) ĝ, and a truth of gradient 0 whose blocks carry the error of u.
    """
    length = float(np.linalg.norm(truth.grad))
    if length == 0.0:
        return choice, truth
    u = truth.grad / length

    def rest(x: np.ndarray) -> np.ndarray:
        return x - (x @ u)[..., None] * u

    left = CentredBlocks(choice.count, choice.weight, rest(choice.mean), rest(choice.dev))
    zero = np.zeros_like(truth.grad)
    if truth.blocks is None:
        return left, replace(truth, grad=zero)
    multiple = float(choice.mean @ u) / length
    turned = truth.blocks
    turned = CentredBlocks(turned.count, turned.weight, zero, multiple * rest(turned.dev))
    noise, noise_loo = mean_noise(turned)
    return left, replace(truth, grad=zero, blocks=turned, noise=float(noise), noise_loo=noise_loo)
