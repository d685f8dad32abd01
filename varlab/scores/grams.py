"""Inner products of scores and of gradients from the factors of each layer, without any gradient.

With z_t · z'_u = Σ over layers of (δ_t · δ'_u)(h_t · h'_u), the product of gradients g = Σ_t φ_t z_t and g' = Σ_u φ'_u z'_u is

    ⟨g, g'⟩ = φᵀ G φ',    G = Σ_layers (Δ Δ'ᵀ) ∘ (H H'ᵀ),

at a cost of T² (P_in + P_out + K) instead of K T P: what hundreds of choices of φ share is G. A bias is one more input that is
always 1. Source of the identity for a layer: Efficient Per-Example Gradient Computations (Goodfellow, 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varlab.policies.base import Broadcast
from varlab.scores.base import Workspace

#: What it costs to write one number of a gradient, and one of a layer's Gram (whose products are short), in multiplications of a
#: large matrix product; measured on T = 20, 100 and 1,000 by scripts/benchmark.py.
PASS, GRAM_PASS = 24.0, 80.0


def inputs(factors: Sequence) -> list[Tensor | None]:
    """Return what stands beside δ in each factor: h, h with a column of ones for a bias, indices, or None.

    Args:
        factors: of :class:`varlab.scores.factored.Factor`.

    Returns:
        One tensor [C, T, in] (indices: [C, T]) for each, None where the score is δ itself.
    """
    out = []
    for claim, delta, h in ((f.claim, f.delta, f.h) for f in factors):
        if isinstance(claim.module, Broadcast) or claim.weight is None:
            out.append(None)
        elif isinstance(claim.module, nn.Linear) and claim.bias is not None:
            out.append(torch.cat([h, delta.new_ones(*h.shape[:2], 1)], 2))
        else:
            out.append(h)
    return out


def gram(deltas: Sequence[tuple[Tensor, Tensor]], beside: Sequence[tuple[Tensor, Tensor] | None], work: Workspace) -> Tensor:
    """Return G [c, T, U] between the steps of c trajectories and those of c others.

    Args:
        deltas: for each factor δ [c, T, out] and δ' [c, U, out].
        beside: what :func:`inputs` gives for both, or None.
        work: buffers; the result lives in one of them.

    Returns:
        z_t · z'_u, overwritten by the next call.
    """
    left, right = deltas[0]
    shape = (left.shape[0], left.shape[1], right.shape[1])
    total, dd, hh = (work.get(f"gram {name}", shape, left) for name in ("total", "dd", "hh"))
    for i, ((left, right), pair) in enumerate(zip(deltas, beside, strict=True)):
        torch.bmm(left, right.transpose(1, 2), out=dd)
        if pair is None:
            hh.fill_(1.0)
        elif pair[0].dim() == 3:
            torch.bmm(pair[0], pair[1].transpose(1, 2), out=hh)
        else:
            hh.copy_(pair[0][:, :, None] == pair[1][:, None, :])
        if i == 0:
            torch.mul(dd, hh, out=total)
        else:
            total.addcmul_(dd, hh)
    return total


def products(factors: Sequence, phi: Tensor, work: Workspace, pairs: int) -> tuple[Tensor, Tensor]:
    """Return ‖g_i‖² and ⟨g_2j, g_2j+1⟩ of neighbouring trajectories.

    Args:
        factors: of C trajectories, C even.
        phi: [C, K, T].
        work: buffers.
        pairs: how many pairs are worked on at once.

    Returns:
        [C, K] and [C / 2, K].
    """
    c, k, t = phi.shape
    norm_sq, inner = phi.new_empty(c, k), phi.new_empty(c // 2, k)
    beside = inputs(factors)
    for first in range(0, c, 2 * pairs):
        end = min(c, first + 2 * pairs)
        one, two = slice(first, end, 2), slice(first + 1, end, 2)
        for left, right, out in (
            (one, one, norm_sq[one]), (two, two, norm_sq[two]), (one, two, inner[first // 2 : end // 2]),
        ):  # fmt: skip
            deltas = [(f.delta[left], f.delta[right]) for f in factors]
            g = gram(deltas, [None if b is None else (b[left], b[right]) for b in beside], work)
            half = work.get("gram phi", (g.shape[0], k, t), phi)
            torch.bmm(phi[left], g, out=half)
            torch.sum(half.mul_(phi[right]), 2, out=out)
    return norm_sq, inner


def cost(factors: Sequence, k: int, t: int) -> tuple[float, float]:
    """Return what ‖g_i‖² and ⟨g_i, g_j⟩ of one trajectory cost through Grams and through gradients, in multiplications.

    Args:
        factors: of the batch.
        k: choices of φ.
        t: steps.

    Returns:
        (through Grams, through gradients). A pair has three Grams, hence 3/2 for a trajectory.
    """
    through_grams, through_gradients = 1.5 * k * t * (t + PASS), 0.0
    for claim, delta, h in ((f.claim, f.delta, f.h) for f in factors):
        out = delta.shape[2]
        width = 1 if h is None or claim.weight is None else h.shape[2] if h.dim() == 3 else 1
        through_grams += 1.5 * t * t * (out + width + GRAM_PASS)
        through_gradients += k * t * out * width + PASS * k * (t * min(out, width) + 2 * out * width)
    return through_grams, through_gradients
