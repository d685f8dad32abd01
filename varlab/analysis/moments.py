"""Block moments of per-trajectory gradients, accumulated chunk by chunk in float64.

Everything is measured from a fixed centre c_Φ near the mean (the pilot's mean gradient), so that sums of squares keep their
digits: with h_i = g_i − c,

    mean = c + S1/n,    m2 = S2 − S1²/n,    S1 = Σ h_i,  S2 = Σ h_i²,

which is the shifted form of the two-pass variance; it loses nothing while |mean − c| is not many spreads. Source: Algorithms
for Computing the Sample Variance: Analysis and Recommendations (Chan, Golub, LeVeque, 1983).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from varlab import checks
from varlab.scores.base import BatchScores
from varlab.types import Moments


class Block:
    """Running sums of one block.

    Attributes:
        n: units so far.
        steps: environment steps so far.
    """

    def __init__(self, center: Tensor, directions: Tensor, comparator: int, per_parameter: bool) -> None:
        """Begin an empty block.

        Args:
            center: [K, P] float64, c_Φ.
            directions: [R, P] float64 reference gradients for ⟨g − c_Φ, ∇J⟩.
            comparator: index of the comparator among the K.
            per_parameter: whether to keep S2 per parameter.
        """
        self.center, self.directions, self.comparator = center, directions, comparator
        self.n, self.steps = 0, 0
        self.s1 = torch.zeros_like(center)
        self.s2 = torch.zeros_like(center) if per_parameter else None
        shape = center.shape[0]
        self.norm_sq, self.fourth, self.cross = (center.new_zeros(shape) for _ in range(3))

    def add(self, scores: BatchScores, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Add C units.

        Args:
            scores: their score map.
            phi: [C, K, T] weights w_t Φ_t in the dtype of the scores.

        Returns:
            ‖g − c_Φ‖² [C, K] and ⟨g − c_Φ, directions⟩ [C, K, R], float64.
        """
        c, k, _ = phi.shape
        norm_sq = phi.new_zeros(c, k)
        dot = phi.new_zeros(c, k, self.directions.shape[0])
        cross = phi.new_zeros(c, k)
        for index, g in scores.blocks(phi):
            h = g.sub_(self.center[:, index].to(g.dtype))
            self.s1[:, index] += h.sum(0).double()
            cross += torch.bmm(h, h[:, self.comparator].unsqueeze(2)).squeeze(2)
            dot += h @ self.directions[:, index].T.to(g.dtype)
            h.square_()
            if self.s2 is not None:
                self.s2[:, index] += h.sum(0).double()
            norm_sq += h.sum(2)
        norm_sq, cross, dot = norm_sq.double(), cross.double(), dot.double()
        self.n += c
        self.norm_sq += norm_sq.sum(0)
        self.fourth += norm_sq.square().sum(0)
        self.cross += cross.sum(0)
        return norm_sq, dot

    def finish(self) -> dict[str, np.ndarray | None]:
        """Return this block's row of every field of :class:`~varlab.types.Moments`."""
        shift = self.s1 / self.n
        m2 = None if self.s2 is None else (self.s2 - self.s1 * shift).clamp_(min=0.0)
        trace = (self.norm_sq - (self.s1 * shift).sum(1)).clamp_(min=0.0) if m2 is None else m2.sum(1)
        cross = self.cross - (self.s1 * shift[self.comparator]).sum(1)
        cross[self.comparator] = trace[self.comparator]
        mean = self.center + shift
        fields = {
            "mean": mean,
            "low": (shift - (mean - self.center)).float(),  # exact where |centre| ≥ |shift|
            "trace_m2": trace,
            "m2": m2,
            "cross": cross,
            "m4": self.fourth,
            "m2c": self.norm_sq,
        }
        return {name: None if x is None else x.cpu().numpy() for name, x in fields.items()}


def collect(
    blocks: Sequence[Block],
    names: tuple[str, ...],
    first_block: int = 0,
    comparator: int = 0,
    unit: int = 1,
    charged: np.ndarray | None = None,
) -> Moments:
    """Return the moments of finished blocks, in order.

    Args:
        blocks: the blocks.
        names: labels of the K choices.
        first_block: id of the first block.
        comparator: index of the comparator.
        unit: trajectories of one unit.
        charged: [B, K] environment steps of the values' branches.

    Returns:
        The record.
    """
    rows = [block.finish() for block in blocks]
    fields = {name: None if rows[0][name] is None else np.stack([r[name] for r in rows]) for name in rows[0]}
    return Moments(
        block_id=np.arange(first_block, first_block + len(blocks)),
        count=np.array([unit * b.n for b in blocks], dtype=np.int64),
        steps=np.array([b.steps for b in blocks], dtype=np.int64),
        names=names,
        comparator=comparator,
        unit=unit,
        charged=charged,
        **fields,
    )


def keep_per_parameter(blocks: int, choices: int, parameters: int, limit: int, wanted: bool) -> tuple[bool, str]:
    """Decide before sampling whether moments per parameter fit into memory.

    Args:
        blocks: B.
        choices: K.
        parameters: P.
        limit: bytes that block moments may take.
        wanted: whether the user asked for them.

    Returns:
        Whether to keep them, and a sentence if they were dropped.

    Raises:
        InputError: if not even the block means fit.
    """
    means = blocks * choices * parameters * 12  # eight bytes of ``mean``, four of ``low``
    if means > limit:
        raise checks.InputError(
            f"Block means of at most memory_limit = {limit} bytes were expected, but {blocks} blocks × {choices} Φ × "
            f"{parameters} parameters take {means}; raise memory_limit or name fewer Φ."
        )
    if wanted and 5 * means // 3 > limit:
        return False, (
            f"Variances per parameter were dropped: with block means they would take {5 * means // 3} bytes, more than "
            f"memory_limit = {limit}."
        )
    return wanted, ""
