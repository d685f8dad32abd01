"""How varlab finds the three results: with the operations that measurements use."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab import scores
from varlab.analysis.moments import Block
from varlab.analysis.traces import TraceBlock
from varlab.cores import CHUNK_ROWS, CHUNK_UNITS
from varlab.scores.base import ScoreMap, StepScores
from varlab.studies.speed.results import MomentsResult, PairsResult, Result, TraceResult
from varlab.studies.speed.works import BLOCKS, Work

#: Steps on which the score map is probed, as in a measurement.
PROBE = 16


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

    Attributes:
        name: of the contender.
        chunks: sizes to choose among.
        by_step: whether it holds a gradient for every step.
    """

    name, by_step = "varlab", False

    def __init__(self, work: Work, result: type[Result]) -> None:
        """Choose the score map."""
        self.work, self.result, self.scores = work, result, score_map(work)
        self.chunks = tuple(sorted({2, 4, 8, 16, 32, 64, 128, chunk(work)}))
        self.run = {MomentsResult: self.moments, TraceResult: self.trace, PairsResult: self.pairs}[result]

    def __call__(self, chunk: int) -> tuple[Tensor, ...]:
        """Return the result, with ``chunk`` trajectories at a time."""
        return self.run(chunk)

    def moments(self, chunk: int) -> tuple[Tensor, ...]:
        """Moments of every parameter, as a measurement keeps them."""
        total = block(self.work, per_parameter=True)
        for o, a, f in self.work.pieces(chunk):
            total.add(self.scores.at(o, a), f)
        return total.s1 / total.n, total.s2 / total.n

    def trace(self, chunk: int) -> tuple[Tensor, ...]:
        """Trace as a measurement without moments per parameter finds it: per-trajectory gradients, block by block."""
        made, held = TraceResult(self.work), self.work.n // BLOCKS
        total = block(self.work, per_parameter=False)
        for o, a, f in self.work.pieces(chunk):
            total.add(self.scores.at(o, a), f)
            if total.n >= held:
                made.add((total.s1, total.norm_sq))
                made.passed(total.n)
                total = block(self.work, per_parameter=False)
        return made.found()

    def pairs(self, chunk: int) -> tuple[Tensor, ...]:
        """Trace from pairs as ``varlab.variances`` finds it: inner products of gradients, by whichever way is cheaper."""
        made = PairsResult(self.work)
        for o, a, f in self.work.pieces(chunk):
            total = TraceBlock(self.work.k, f.device)
            total.add(*self.products(self.scores.at(o, a), f))
            made.add((total.half_sq,))
            made.passed(len(o))
        return made.found()

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
