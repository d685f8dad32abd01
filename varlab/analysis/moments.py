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
from varlab.scores.base import BatchScores, Workspace
from varlab.types import Moments


class _Piece:
    """Running sums of the parameters that come together, in the order and dtype in which their gradients come."""

    def __init__(self, index: Tensor, center: Tensor, directions: Tensor, dtype: torch.dtype, per_parameter: bool) -> None:
        self.index = index
        self.center, self.directions = center[:, index].to(dtype), directions[:, index].to(dtype)
        self.recent = [torch.zeros_like(self.center).view(1, -1) for _ in range(1 + per_parameter)]

    def add(self, g: Tensor, comparator: int, norm_sq: Tensor, along: Tensor, work: Workspace) -> None:
        """Add gradients [c, K, p]; every pass over them counts, so there are few.

        A sum over trajectories is a product with ones, and the inner products with the comparator and the references are one
        product for each trajectory: each reads the gradients once, and is faster than a sum.
        """
        c, _, p = g.shape
        ones = work.get("ones", (1, c), g).fill_(1.0)
        beside = work.get("beside", (c, along.shape[2], p), g)
        h = g.sub_(self.center)
        beside[:, 0], beside[:, 1:] = h[:, comparator], self.directions
        along += torch.bmm(h, beside.transpose(1, 2))
        self.recent[0].addmm_(ones, h.view(c, -1))
        h.square_()
        if len(self.recent) == 2:
            self.recent[1].addmm_(ones, h.view(c, -1))
        norm_sq += h.sum(2)

    def take(self) -> tuple[Tensor, list[Tensor]]:
        """Return (index, S1 and S2 of the units since the last time in float64), and begin anew."""
        taken = [recent.to(torch.float64, copy=True).view_as(self.center) for recent in self.recent]
        for recent in self.recent:
            recent.zero_()
        return self.index, taken


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
        self.center, self.directions, self.comparator, self.per_parameter = center, directions, comparator, per_parameter
        self.n, self.steps = 0, 0
        self.norm_sq, self.fourth, self.cross = (center.new_zeros(center.shape[0]) for _ in range(3))
        self._sums: list[tuple[Tensor, list[Tensor]]] = []
        self._pieces: list[_Piece] = []
        self._work = Workspace()

    def empty(self) -> Block:
        """Return an empty block of the same kind, which shares buffers with this one."""
        other = Block(self.center, self.directions, self.comparator, self.per_parameter)
        other._pieces, other._work = self._pieces, self._work
        return other

    def __getstate__(self) -> dict[str, object]:
        """Return sums alone: what comes from another process can be merged, and no more."""
        kept = ("n", "steps", "norm_sq", "fourth", "cross", "_sums")
        return {name: getattr(self, name) for name in kept}

    def add(self, scores: BatchScores, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Add C units.

        Args:
            scores: their score map.
            phi: [C, K, T] weights w_t Φ_t in the dtype of the scores.

        Returns:
            ‖g − c_Φ‖² [C, K] and ⟨g − c_Φ, directions⟩ [C, K, R], float64.
        """
        (c, k, _), pieces = phi.shape, self._pieces
        norm_sq, along = phi.new_zeros(c, k), phi.new_zeros(c, k, 1 + self.directions.shape[0])
        number = -1
        for rows, index, g in scores.tiles(phi):
            if rows.start == 0:
                number += 1
                if number == len(pieces):
                    pieces.append(_Piece(index, self.center, self.directions, g.dtype, self.per_parameter))
            pieces[number].add(g, self.comparator, norm_sq[rows], along[rows], self._work)
        norm_sq, along = norm_sq.double(), along.double()
        self.n += c
        self.norm_sq += norm_sq.sum(0)
        self.fourth += norm_sq.square().sum(0)
        self.cross += along[..., 0].sum(0)
        self._include([piece.take() for piece in pieces])
        return norm_sq, along[..., 1:]

    def merge(self, other: Block) -> None:
        """Add the units of another block of the same kind, which is used up."""
        self.n, self.steps = self.n + other.n, self.steps + other.steps
        for name in ("norm_sq", "fourth", "cross"):
            getattr(self, name).add_(getattr(other, name))
        self._include(other._sums)

    def _include(self, sums: list[tuple[Tensor, list[Tensor]]]) -> None:
        """Add S1 and S2, piece by piece."""
        if not self._sums:
            self._sums = sums
            return
        for (_, total), (_, more) in zip(self._sums, sums, strict=True):
            for s, x in zip(total, more, strict=True):
                s += x

    def _gathered(self, which: int) -> Tensor:
        """Return S1 or S2 in the order of θ, [K, P]."""
        out = torch.zeros_like(self.center)
        for index, total in self._sums:
            out[:, index] = total[which]
        return out

    @property
    def s1(self) -> Tensor:
        """[K, P] Σ h_i."""
        return self._gathered(0)

    @property
    def s2(self) -> Tensor | None:
        """[K, P] Σ h_i², or None where only traces are kept."""
        return self._gathered(1) if self.per_parameter else None

    def finish(self) -> dict[str, np.ndarray | None]:
        """Return this block's row of every field of :class:`~varlab.types.Moments`."""
        s1, s2 = self.s1, self.s2
        shift = s1 / self.n
        m2 = None if s2 is None else (s2 - s1 * shift).clamp_(min=0.0)
        trace = (self.norm_sq - (s1 * shift).sum(1)).clamp_(min=0.0) if m2 is None else m2.sum(1)
        cross = self.cross - (s1 * shift[self.comparator]).sum(1)
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
