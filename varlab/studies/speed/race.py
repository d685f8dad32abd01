"""Equal work in turn: agreement first, then each contender's own best chunk size, then interleaved repeats.

Ratios of neighbouring runs hold where absolute times drift with the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from varlab import checks
from varlab.studies.speed.results import Result
from varlab.studies.speed.targets import Row, absent, with_target
from varlab.studies.speed.works import Work, doubled

#: Largest relative difference between two contenders' numbers, by dtype.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
#: Trajectories on which chunk sizes are tried.
TRIAL = 128
#: Bytes of per-trajectory gradients, or of per-step scores, that no chunk may exceed.
MOST_BYTES = 2**29
#: Floating-point operations of such a trial, about.
TRIAL_OPERATIONS = 3e10


class Contender(Protocol):
    """Whoever finds a result of a work, chunk by chunk."""

    name: str
    chunks: tuple[int, ...]
    by_step: bool

    def __call__(self, chunk: int) -> tuple[Tensor, ...]:
        """Return the result, with ``chunk`` trajectories at a time."""
        ...


Entrant = Callable[[Work, type[Result]], Contender]


@dataclass(frozen=True)
class Budget:
    """How long things may take.

    Attributes:
        rounds: repeats of every comparison.
        longest: seconds that one run of one contender should not exceed; slower ones do a share of the trajectories and are
            scaled by steps.
    """

    rounds: int = 7
    longest: float = 2.0


def seconds(run: Callable[[], object]) -> float:
    """Return the wall time of one call, work on an accelerator included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(work: str, mine: Callable[[], float], others: Mapping[str, Callable[[], float]], rounds: int) -> list[Row]:
    """Time varlab and its peers in turn (A B A C, A B A C, …).

    Args:
        work: its name.
        mine: gives varlab's seconds for the work.
        others: peer → its seconds for the same work.
        rounds: repetitions of the whole turn.

    Returns:
        One row for each peer.
    """
    ratios: dict[str, list[float]] = {name: [] for name in others}
    own: list[float] = []
    for _ in range(rounds):
        for name, other in others.items():
            own.append(mine())
            ratios[name].append(other() / own[-1])
    return [row(work, name, r, float(np.median(own))) for name, r in ratios.items()]


def row(work: str, peer: str, ratios: Sequence[float], own: float | None, note: str = "") -> Row:
    """Return the row of some ratios, with its target."""
    return with_target(Row(work, peer, float(np.median(ratios)), min(ratios), max(ratios), None, own, note))


def agree(name: str, found: Iterable[Tensor], truth: Iterable[Tensor], tolerance: float) -> None:
    """Refuse to time contenders that compute something else.

    Args:
        name: of the contender.
        found: its numbers.
        truth: varlab's.
        tolerance: largest difference, relative to the largest number.

    Raises:
        InputError: naming the contender.
    """
    for a, b in zip(found, truth, strict=True):
        worst = float((a - b).abs().max() / b.abs().max())
        if not worst <= tolerance:
            raise checks.InputError(f"Equal numbers were expected from {name}, but they differ by {worst:.1e}; mend it first.")


def check(work: Work, result: type[Result], entrants: Sequence[Entrant]) -> None:
    """Let all contenders find the result on a small part of the work, in both dtypes, and compare with the first."""
    for dtype, tolerance in TOLERANCE.items():
        small = work.small(dtype)
        made = [entrant(small, result) for entrant in entrants]
        truth = made[0](2)
        for contender in made[1:]:
            agree(contender.name, contender(2), truth, tolerance)


def prepare(entrant: Entrant, work: Work, result: type[Result], longest: float) -> tuple[Callable[[], float], int]:
    """Choose a contender's chunk size, and how many trajectories it does.

    Args:
        entrant: makes the contender.
        work: the whole work.
        result: what to find.
        longest: seconds that a run should not exceed.

    Returns:
        A function that gives its seconds for the whole work, and its chunk size.
    """
    each = 2 * work.k * work.obs.shape[1] * work.num_parameters
    trial = work.share(doubled(result.unit, min(TRIAL, work.n, TRIAL_OPERATIONS / each)))
    contender = entrant(trial, result)
    most = MOST_BYTES // (4 * work.num_parameters * max(work.k, work.obs.shape[1] if contender.by_step else 1))
    best, chunk = np.inf, 2
    for size in contender.chunks:
        if size > max(2, most) or not result.allows(size, work.n):
            continue
        # Chunks that the trial cannot hold are tried on the whole work.
        fits = result.allows(size, trial.n)
        subject, steps = (contender, trial.steps) if fits else (entrant(work, result), work.steps)
        if not fits and best * steps > longest:
            break
        took = seconds(lambda s=subject, c=size: s(c)) / steps
        if took * steps < longest:  # once more, now that everything is compiled and in place
            took = seconds(lambda s=subject, c=size: s(c)) / steps
        if took < best:
            best, chunk = took, size
        elif took > 2 * best:
            break
    n = min(work.n, doubled(result.unit, work.n * min(1.0, longest / (best * work.steps))))
    while not result.allows(chunk, n):  # a small share has small blocks
        chunk = max(result.unit // result.blocks, chunk // 2)
    part = work if n == work.n else work.share(n)
    runner, scale = entrant(part, result), work.steps / part.steps
    runner(chunk)  # compiled and in place for this size
    return lambda: scale * seconds(lambda: runner(chunk)), chunk


def race(
    work: Work, result: type[Result], entrants: Sequence[Entrant], missing: Mapping[str, str], budget: Budget
) -> list[Row]:
    """Let varlab and its peers find one result of one work.

    Args:
        work: the work.
        result: what to find.
        entrants: varlab first.
        missing: peer → why it is absent.
        budget: how long it may take.

    Returns:
        One row for each peer, absent ones last.
    """
    title = f"{result.name} {work.label}; N={work.n} P={work.num_parameters}"
    check(work, result, entrants)
    (mine, own_chunk), *others = [prepare(entrant, work, result, budget.longest) for entrant in entrants]
    timed = {entrant.name: run for entrant, (run, _) in zip(entrants[1:], others, strict=True)}
    chunks = {entrant.name: chunk for entrant, (_, chunk) in zip(entrants[1:], others, strict=True)}
    rows = compare(title, mine, timed, budget.rounds)
    rows = [_noted(r, f"chunks of {own_chunk} and {chunks[r.peer]}") for r in rows]
    return rows + [absent(title, name, reason) for name, reason in missing.items()]


def _noted(made: Row, note: str) -> Row:
    return Row(**{**vars(made), "note": note})
