"""Parts of a stream on all cores: each is sampled, weighted and reduced by one core, with one thread.

A part is the unit of randomness, simulation and reduction (:mod:`varlab.layout`), and results come in stream order
(:mod:`varlab.workers`): no number depends on how many cores there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from varlab import rollout, terms
from varlab.envs.base import Environment
from varlab.layout import Layout
from varlab.rng import Streams
from varlab.scores.base import BatchScores, ScoreMap
from varlab.terms import Terms
from varlab.types import Simulator, Trajectories
from varlab.workers import in_order

#: Steps (and nodes) that go through the policy together, and units at most: what the layers hold then stays in cache.
CHUNK_ROWS, CHUNK_UNITS = 2**13, 512

Out = TypeVar("Out")
#: (first unit, terms) piece by piece.
Made = Iterable[tuple[int, list[Terms]]]
#: (index [C] of the units, their scores, φ [C, K, T] of the steps) group by group.
Groups = Iterator[tuple[Tensor, BatchScores, Tensor]]


class Cores:
    """One policy at fixed θ in one world, and the cores that sample it and take its scores.

    Attributes:
        env: the world.
        policy: θ.
        behaviour: policy that acts.
        scores: score map of θ.
        dtype: of the gradients.
        device: where they are made.
        count: cores; one where the device is no CPU, since that splits its work by itself.
    """

    def __init__(
        self,
        env: Environment,
        policy: nn.Module,
        scores: ScoreMap,
        dtype: torch.dtype,
        device: torch.device,
        count: int = 1,
        behaviour: nn.Module | None = None,
    ) -> None:
        """Keep them; ``behaviour`` is θ itself if None."""
        self.env, self.policy, self.scores, self.dtype, self.device = env, policy, scores, dtype, device
        self.behaviour = policy if behaviour is None else behaviour
        self.count = count if device.type == "cpu" else 1
        self._maps, self._simulator = [scores], None

    @property
    def simulator(self) -> Simulator:
        """The world's simulator, made when it is first asked for: in each worker."""
        self._simulator = self._simulator or self.env.make_simulator(self.device)
        return self._simulator

    def groups(
        self, made: Made, chunk: int | None = None, together: int = 1, transform: Mapping[int, Tensor] | None = None
    ) -> Groups:
        """Go through units in groups of similar length, each small enough for the caches.

        Args:
            made: terms.
            chunk: most units in a group; None: :data:`CHUNK_UNITS`.
            together: consecutive units that stay neighbours.
            transform: :func:`varlab.terms.matrices` of the choices.

        Yields:
            (index [C] of the units, their scores, φ [C, K, T] of the steps), in an order that depends on nothing but the lengths.
        """
        for first, of_piece in made:
            self._maps += [type(self.scores)(self.policy) for _ in of_piece[len(self._maps) :]]
            for group in terms.groups(of_piece, chunk or CHUNK_UNITS, together, CHUNK_ROWS):
                found = terms.scores_of(of_piece, self._maps[: len(of_piece)], group, self.dtype, transform)
                yield first + group[0].index, *found

    def parts(
        self,
        layout: Layout,
        streams: Streams,
        stream: str,
        function: Callable[[int, Trajectories], Out],
        *,
        on_policy: bool = False,
        alone: bool = False,
        **same: object,
    ) -> Iterator[tuple[int, Out]]:
        """Sample a stream part by part and reduce each part.

        Args:
            layout: how n falls into blocks and parts.
            streams: the root seed.
            stream: its name.
            function: of the number of the first trajectory, and of a part's trajectories; what it gives should be small, and what
                it changes is lost unless one core does it all.
            on_policy: whether θ acts even where another policy would.
            alone: whether one core does it all.
            **same: cut, group and snapshots of :func:`varlab.rollout.rollout`.

        Yields:
            (index of the block within the layout, what the function gave), in stream order.
        """
        acting = self.policy if on_policy else self.behaviour

        def work(item: tuple[int, int, int, np.random.SeedSequence]) -> tuple[int, Out]:
            b, first, n, seed = item
            here = {"simulator": self.simulator, "device": self.device}
            return b, function(first, rollout.rollout(self.env, acting, n, seed, first_trajectory=first, **here, **same))

        yield from in_order(work, rollout.draws(layout, streams, stream), 1 if alone else self.count)
