"""What a world can do beyond being sampled: step many episodes at once, and go on from a saved state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

#: Saved states, one for each row: numbers, or an array of Python objects [n].
Saved = Tensor | np.ndarray


@runtime_checkable
class Simulator(Protocol):
    """One batch of independent episodes, stepped together; finished ones are dropped by :meth:`keep`.

    It may have an attribute ``spent`` [n] int64: environment steps of an inner world that the last step took.
    """

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes, each ``group`` consecutive ones in one state, and return their observations [n, ...]."""

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance the live episodes; return observation [n, ...], reward [n] float64, terminated [n] bool."""

    def keep(self, alive: Tensor) -> None:
        """Drop the episodes where ``alive`` [n] is False."""


@runtime_checkable
class Cloneable(Protocol):
    """A :class:`Simulator` whose episodes can be gone on with from a saved state, as often as wanted.

    What is saved holds the whole state of the world but no random numbers to come: those follow from the seed given. It stays as
    it is whatever the simulators do that it came from or went into.
    """

    def snapshot(self) -> Saved:
        """Return the states of the live episodes, [n, ...] numbers or [n] objects."""

    def restore(self, saved: Saved, seed: np.random.SeedSequence) -> None:
        """Make the rows of ``saved`` the live episodes, with random numbers from ``seed``."""

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Go on with the live episodes, with random numbers from ``seed`` as after :meth:`restore`."""


@dataclass(frozen=True)
class Snapshots:
    """States saved along N trajectories of M steps.

    Attributes:
        steps: [M, ...] state in which the action of each step was taken.
        last: [N, ...] state after the last step of the episodes alive at a cut (other rows mean nothing), or None without one.
    """

    steps: Saved
    last: Saved | None = None

    def run(self, steps: slice, episodes: slice) -> Snapshots:
        """Return those of a run of episodes."""
        return Snapshots(self.steps[steps], None if self.last is None else self.last[episodes])

    def to(self, device: torch.device | str) -> Snapshots:
        """Return the same with every tensor on ``device``; objects stay where they are."""
        return Snapshots(*(x.to(device) if isinstance(x, Tensor) else x for x in (self.steps, self.last)))

    @staticmethod
    def join(made: Sequence[Snapshots]) -> Snapshots:
        """Put several records of one environment end to end."""
        last = None if made[0].last is None else cat([s.last for s in made])
        return Snapshots(cat([s.steps for s in made]), last)


def cat(pieces: Sequence[Saved]) -> Saved:
    """Put states end to end."""
    return torch.cat(list(pieces)) if isinstance(pieces[0], Tensor) else np.concatenate(pieces)


def take(saved: Saved, rows: Tensor) -> Saved:
    """Return the states of chosen rows, with repetitions."""
    return saved[rows] if isinstance(saved, Tensor) else saved[rows.cpu().numpy()]


def put(out: Saved | None, rows: Tensor, saved: Saved, n: int) -> Saved:
    """Write states into chosen rows of ``out`` [n, ...], made here if it is None, and return it."""
    if out is None:
        out = saved.new_zeros(n, *saved.shape[1:]) if isinstance(saved, Tensor) else np.empty(n, dtype=object)
    out[rows if isinstance(out, Tensor) else rows.cpu().numpy()] = saved
    return out
