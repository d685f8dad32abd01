"""The score map S of a batch: every Φ gives g = Sᵀ φ, where row t of S is z_t = ∇_θ log π_θ(a_t | s_t).

S is never built. Four operations read off it what is needed:

    apply(φ)      [C, K, P]  one gradient per trajectory and choice of φ,
    apply_sum(φ)  [K, P]     their sum over trajectories,
    products(φ)   [C, K], [C/2, K]  ‖g_i‖² and ⟨g_2j, g_2j+1⟩, by gradients or by Grams, whichever is cheaper,
    gram(join)    [C, T, T]  z_t · z_u within one trajectory, or within ``join`` trajectories put end to end.

φ is [C, K, T] and must be 0 on padded steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of gradients that are worked on at once: they stay in the caches of two cores.
CACHE_BYTES = 2 * 2**20


class Workspace:
    """Buffers used again from chunk to chunk: fresh multi-megabyte tensors cost more in page faults than arithmetic."""

    def __init__(self) -> None:
        """Begin with no buffer."""
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return an uninitialised tensor [shape] in the dtype and on the device of ``like``.

        The same name gives the same memory: what it held before is lost.
        """
        size = 1
        for s in shape:
            size *= s
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
            flat = self._flat[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return flat[:size].view(shape)


def slices(n: int, size: int, multiple: int = 1) -> Iterator[slice]:
    """Cut 0 … n − 1 into runs of about ``size``, a multiple of ``multiple`` each but the last.

    Args:
        n: how many.
        size: wanted length.
        multiple: of which lengths are multiples, and the least length.

    Yields:
        The runs.
    """
    size = max(multiple, size - size % multiple)
    for i in range(0, n, size):
        yield slice(i, min(n, i + size))


class BatchScores(ABC):
    """The score map of C trajectories padded to T steps.

    Attributes:
        num_parameters: P.
    """

    num_parameters: int

    @abstractmethod
    def tiles(self, phi: Tensor, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give per-trajectory gradients tile by tile: one parameter tensor, as many trajectories as stay in the caches.

        Args:
            phi: [C, K, T].
            multiple: tiles begin at multiples of it; C for whole ones.

        Yields:
            (which c of the trajectories, index [p] of the entries within θ, gradient [c, K, p]); the memory is overwritten by
            the next tile.
        """

    def blocks(self, phi: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give (index [p], gradient [C, K, p]) parameter tensor by parameter tensor; overwritten by the next call."""
        for _, index, g in self.tiles(phi, len(phi)):
            yield index, g

    @abstractmethod
    def rows(self, index: slice) -> BatchScores:
        """Return the scores of some of the trajectories; buffers are shared."""

    def apply_sum(self, phi: Tensor) -> Tensor:
        """Return Σ_i g_i [K, P] for φ [C, K, T]."""
        out = phi.new_zeros(phi.shape[1], self.num_parameters)
        for _, index, g in self.tiles(phi):
            out[:, index] += g.sum(0)
        return out

    def products(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return ‖g_i‖² [C, K] and ⟨g_2j, g_2j+1⟩ [C / 2, K] of neighbouring trajectories, for φ [C, K, T], C even."""
        return products_of(self, phi)

    def apply(self, phi: Tensor) -> Tensor:
        """Return one gradient per trajectory, [C, K, P], for φ [C, K, T]."""
        out = phi.new_empty(*phi.shape[:2], self.num_parameters)
        for index, g in self.blocks(phi):
            out[..., index] = g
        return out


def products_of(scores: BatchScores, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖g_i‖² [C, K] and ⟨g_2j, g_2j+1⟩ [C / 2, K] through the gradients, tile by tile.

    Args:
        scores: whatever gives gradients in ``tiles``.
        phi: [C, K, T], C even.

    Returns:
        The products.
    """
    norm_sq, inner = phi.new_zeros(phi.shape[:2]), phi.new_zeros(phi.shape[0] // 2, phi.shape[1])
    for rows, _, g in scores.tiles(phi, 2):
        inner[rows.start // 2 : rows.stop // 2] += (g[0::2] * g[1::2]).sum(2)
        norm_sq[rows] += g.square_().sum(2)
    return norm_sq, inner


class StepScores(BatchScores):
    """The score map of steps alone, which has inner products of steps too."""

    @abstractmethod
    def gram(self, join: int = 1) -> Tensor:
        """Return z_t · z_u [C / join, join · T, join · T]; consecutive trajectories are joined."""


class ScoreMap(ABC):
    """Scores of one policy at fixed θ.

    Attributes:
        num_parameters: P.
        kind: ``factored`` or ``functional``.
    """

    num_parameters: int
    kind: str

    @abstractmethod
    def at(self, obs: Tensor, action: Tensor) -> StepScores:
        """Return the scores of a padded batch: obs [C, T, ...], action [C, T] or [C, T, d]."""
