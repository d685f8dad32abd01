"""Scores of a part's units, group by group, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from varlab import policies, terms
from varlab.scores.base import BatchScores, ScoreMap
from varlab.terms import Terms
from varlab.types import Chunk
from varlab.workers import in_order

#: Steps (and nodes) that go through the policy together, and units at most: what the layers hold then stays in cache.
CHUNK_ROWS, CHUNK_UNITS = 2**13, 512

Out = TypeVar("Out")


class Cores:
    """Score maps of one policy for every core and every kind of rows; no two share a buffer or a module with hooks."""

    def __init__(self, scores: ScoreMap, policy: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        """Copy the policy once for each further core.

        Args:
            scores: the score map chosen for the policy.
            policy: prepared for dtype and device.
            dtype: of the gradients.
            device: where they are made; one that is no CPU splits its work by itself.
        """
        self.kind, self.dtype = type(scores), dtype
        cores = torch.get_num_threads() if device.type == "cpu" and scores.kind == "factored" else 1
        copies = [policy, *(policies.prepare(policy, dtype, device) for _ in range(cores - 1))]
        self.replicas = [(copied, [scores if copied is policy else self.kind(copied)]) for copied in copies]

    def each(
        self,
        made: Iterable[tuple[int, list[Terms]]],
        function: Callable[[BatchScores, Tensor], Out],
        chunk: int | None = None,
        together: int = 1,
        transform: Mapping[int, Tensor] | None = None,
    ) -> Iterator[tuple[Tensor, Out]]:
        """Apply a function to groups of units of similar length, each small enough for the caches.

        Args:
            made: (first unit, terms) piece by piece.
            function: of a group's scores and φ [C, K, T]; it runs in several threads.
            chunk: most units in a group; None: :data:`CHUNK_UNITS`.
            together: consecutive units that stay neighbours.
            transform: :func:`varlab.terms.matrices` of the choices.

        Yields:
            (index [C] of the units, what the function gave), in an order that depends on nothing but the lengths.
        """
        for first, of_piece in made:

            def work(
                replica: tuple[nn.Module, list[ScoreMap]], group: Sequence[Chunk], of_piece: list[Terms] = of_piece
            ) -> tuple[Tensor, Out]:
                policy, maps = replica
                maps += [self.kind(policy) for _ in of_piece[len(maps) :]]
                found = terms.scores_of(of_piece, maps[: len(of_piece)], group, self.dtype, transform)
                return group[0].index, function(*found)

            for index, out in in_order(work, terms.groups(of_piece, chunk or CHUNK_UNITS, together, CHUNK_ROWS), self.replicas):
                yield first + index, out
