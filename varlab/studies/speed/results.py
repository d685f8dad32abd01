"""What every contender must find, from sums over its chunks: moments of each parameter, or tr Cov with its interval.

Three results from per-trajectory gradients g_i [K, P]:

    moments   (1/n) Σ g_i and (1/n) Σ g_i²,
    trace     tr Cov = (Σ ‖g_i‖² − ‖Σ g_i‖²/n) / (n − 1), for which P means are kept under every choice,
    pairs     tr Cov = the mean of ½ ‖g_i − g_j‖² over disjoint pairs, for which nothing of size P is.

The last two are unbiased and come with the half width of a 95 % interval of log tr Cov, by the delete-one-block jackknife over
equal blocks with t quantiles (Bias and confidence in not-quite large samples, Tukey, 1958).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from scipy import stats
from torch import Tensor

from varlab import checks
from varlab.studies.speed.works import BLOCKS, UNIT, Work

LEVEL = 0.95


class Result(ABC):
    """Sums over chunks, and what is made of them.

    Attributes:
        name: of the result.
        unit: trajectories of a work must be a multiple.
        blocks: equal blocks that sums are kept for; no chunk reaches over the end of one.
    """

    name: str
    unit: int
    blocks: int

    def __init__(self, work: Work) -> None:
        """Begin with empty sums."""
        self.n, self.seen = work.n, 0
        shape = (self.blocks, work.k)
        like = {"dtype": torch.float64, "device": work.obs.device}
        self.sums = [torch.zeros(*shape, *tail, **like) for tail in self.tails(work.num_parameters)]

    @classmethod
    def allows(cls, chunk: int, n: int) -> bool:
        """Return whether n trajectories may be done ``chunk`` at a time: all at once, or so that chunks fill the blocks."""
        return chunk <= n if cls.blocks == 1 else n // cls.blocks % chunk == 0

    @staticmethod
    @abstractmethod
    def tails(parameters: int) -> list[tuple[int, ...]]:
        """Return the shape of every sum beyond [blocks, K]."""

    @staticmethod
    @abstractmethod
    def parts(g: Tensor) -> tuple[Tensor, ...]:
        """Return the sums over one chunk of gradients [C, k, p], of some choices and entries."""

    @abstractmethod
    def found(self) -> tuple[Tensor, ...]:
        """Return the result."""

    def add(self, parts: tuple[Tensor, ...], choices: slice = slice(None), entries: slice = slice(None)) -> None:
        """Add the sums over one chunk, under some of the choices of φ and for some entries of θ."""
        block = self.seen * self.blocks // self.n
        for total, part in zip(self.sums, parts, strict=True):
            total[(block, choices, entries)[: total.ndim]] += part

    def passed(self, trajectories: int) -> None:
        """Note that so many trajectories are done under every choice.

        Raises:
            InputError: if they reach over the end of a block.
        """
        first, last = (i * self.blocks // self.n for i in (self.seen, self.seen + trajectories - 1))
        if first != last:
            raise checks.InputError(
                f"Chunks that fill blocks of {self.n // self.blocks} trajectories were expected, but one of {trajectories} "
                "reaches over the end of a block; take a divisor."
            )
        self.seen += trajectories


class MomentsResult(Result):
    """First and second moment of every parameter, [K, P] each."""

    name, unit, blocks = "moments", 1, 1

    @staticmethod
    def tails(parameters: int) -> list[tuple[int, ...]]:
        """Return [P] twice."""
        return [(parameters,), (parameters,)]

    @staticmethod
    def parts(g: Tensor) -> tuple[Tensor, ...]:
        """Return Σ g and Σ g²."""
        return g.sum(0), g.square().sum(0)

    def found(self) -> tuple[Tensor, ...]:
        """Return both moments."""
        return tuple(total[0] / self.n for total in self.sums)


class TraceResult(Result):
    """tr Cov from squared norms less that of the mean, [K], and its interval."""

    name, unit, blocks = "trace variance with all means", UNIT, BLOCKS

    @staticmethod
    def tails(parameters: int) -> list[tuple[int, ...]]:
        """Return [P] and a number."""
        return [(parameters,), ()]

    @staticmethod
    def parts(g: Tensor) -> tuple[Tensor, ...]:
        """Return Σ g and Σ ‖g‖²."""
        return g.sum(0), g.square().sum((0, 2))

    def found(self) -> tuple[Tensor, ...]:
        """Return tr Cov and the half width of its interval on the logarithmic scale."""
        first, second = self.sums
        left = self.n - self.n // BLOCKS
        return _with_interval(
            _trace(first.sum(0), second.sum(0), self.n),
            torch.stack([_trace(first.sum(0) - f, second.sum(0) - s, left) for f, s in zip(first, second, strict=True)]),
        )


class PairsResult(Result):
    """tr Cov from disjoint pairs, [K], and its interval."""

    name, unit, blocks = "trace variance", UNIT, BLOCKS

    @staticmethod
    def tails(parameters: int) -> list[tuple[int, ...]]:
        """Return a number."""
        return [()]

    @staticmethod
    def parts(g: Tensor) -> tuple[Tensor, ...]:
        """Return Σ ½ ‖g_i − g_j‖² over consecutive pairs."""
        return ((g[0::2] - g[1::2]).square().sum((0, 2)) / 2,)

    def found(self) -> tuple[Tensor, ...]:
        """Return tr Cov and the half width of its interval on the logarithmic scale."""
        (total,) = self.sums
        pairs = self.n // 2
        return _with_interval(total.sum(0) / pairs, (total.sum(0) - total) / (pairs - pairs // BLOCKS))


def _trace(first: Tensor, second: Tensor, n: int) -> Tensor:
    return (second - first.square().sum(-1) / n) / (n - 1)


def _with_interval(trace: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
    """Return tr Cov [K] and the half width of its interval, from its values [B, K] without each block."""
    spread = without.log().var(0, correction=0) * (len(without) - 1)
    return trace, float(stats.t.ppf((1 + LEVEL) / 2, len(without) - 1)) * spread.sqrt()
