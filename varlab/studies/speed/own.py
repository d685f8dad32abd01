"""How varlab finds the three results: with the operations that measurements use."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab import scores
from varlab.analysis.moments import Block
from varlab.analysis.traces import TraceBlock
from varlab.cores import CHUNK_ROWS, CHUNK_UNITS
from varlab.scores.base import ScoreMap, StepScores
from varlab.studies.speed.results import MomentsResult, PairsResult, Result
from varlab.studies.speed.works import Work
from varlab.workers import Crew, one_thread_each

#: Steps on which the score map is probed, as in a measurement.
PROBE = 16
#: Parts that a work falls into, unless its result has more blocks.
PARTS = 4



def score_map(work: Work) -> ScoreMap:
    """Return the score map that a measurement would choose."""
    return scores.make(work.policy, work.obs[0, :PROBE], work.action[0, :PROBE])


def chunk(work: Work) -> int:
    """Return how many trajectories a measurement works on at once."""
    return max(2, min(CHUNK_UNITS, CHUNK_ROWS // work.obs.shape[1]))


def block(work: Work, per_parameter: bool) -> Block:
    """Return an empty block with its centre at 0 and no direction."""
    center = torch.zeros(work.k, work.num_parameters, dtype=torch.float64, device=work.obs.device)
    return Block(center, center[:0], 0, per_parameter=per_parameter)


class Own:
    """varlab on one work: :class:`~varlab.analysis.moments.Block` as in ``measure``, ``products`` as in ``variances``.

    As there, each core takes parts from beginning to end, and the processes that do so are there before the clock starts; here
    parts are equal shares of the work.

    Attributes:
        name: of the contender.
        chunks: sizes to choose among.
        by_step: whether it holds a gradient for every step.
    """

    name, by_step = "varlab", False

    def __init__(self, work: Work, result: type[Result]) -> None:
        """Choose the score map."""
        self.work, self.result, self.scores = work, result, score_map(work)
        self.size = max(1, work.n // max(PARTS, result.blocks))  # trajectories of a part
        self.chunks = tuple(sorted({2, 4, 8, 16, 32, 64, 128, chunk(work)}))
        self.empty = block(work, per_parameter=result is MomentsResult)
        reduce = self.pairs if result is PairsResult else self.sums
        self.crew = Crew(reduce, torch.get_num_threads() if work.obs.device.type == "cpu" else 1)

    def __call__(self, chunk: int) -> tuple[Tensor, ...]:
        """Return the result, with ``chunk`` trajectories at a time."""
        found, total = self.result(self.work), self.empty.empty()
        with one_thread_each():
            for part in self.crew.in_order((first, chunk) for first in range(0, self.work.n, self.size)):
                if isinstance(part, Block):
                    total.merge(part)
                else:
                    found.add(part)
                    found.passed(self.size)
        return (total.s1 / total.n, total.s2 / total.n) if self.result is MomentsResult else found.found()

    def sums(self, item: tuple[int, int]) -> Block | tuple[Tensor, ...]:
        """Return the sums over the gradients of a part: moments of every parameter, or the sum and Σ ‖g‖²."""
        first, chunk = item
        part = self.empty.empty()
        for o, a, f in self.work.pieces(chunk, first, first + self.size):
            part.add(self.scores.at(o, a), f)
        return part if self.result is MomentsResult else (part.s1, part.norm_sq)

    def pairs(self, item: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return Σ ½‖g − g'‖² over the pairs of a part, by whichever way is cheaper."""
        first, chunk = item
        part = TraceBlock(self.work.k, self.work.phi.device)
        for o, a, f in self.work.pieces(chunk, first, first + self.size):
            part.add(*self.products(self.scores.at(o, a), f))
        return (part.half_sq,)

    def products(self, at: StepScores, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return ‖g_i‖² and ⟨g_2j, g_2j+1⟩."""
        return at.products(phi)


class ThroughGrams(Own):
    """varlab, had it taken Grams whatever they cost."""

    name = "varlab through Grams"

    def products(self, at: StepScores, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the products through Grams."""
        return at.products(phi, "grams")


class ThroughGradients(Own):
    """varlab, had it taken gradients whatever they cost."""

    name = "varlab through gradients"

    def products(self, at: StepScores, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Return the products through gradients."""
        return at.products(phi, "gradients")
