"""In which coordinates joint moments with the score are carried backward, and how pairs of steps add up to E g².

For every coordinate of a sum of scores a recursion keeps some moments given the state, such as E[X_t W_t | s_t = s]. There are
three choices of coordinates:

* the logits of a softmax table. The score z(s, a) has the entries 1{a = b} − π(b | s) in the row of s alone, so of all pairs of
  steps only those in one state add to the square of an entry;
* the same logits under any policy with at least as many parameters P as there are pairs (s, a). By the chain rule its score is
  Σ_b (1{a = b} − π(b | s)) ∇ log π(b | s): all pairs of (s, a) are kept and mapped to θ once, at the end, so that P costs
  nothing per step;
* θ itself where P is smaller.

Coordinates do not mix, so they are taken in parts that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from varlab.oracles.world import World

#: Numbers in one moment [S, part], half a megabyte.
PART = 2**16
#: Columns of θ that the last contraction works on at once.
COLUMNS = 1024


@dataclass(frozen=True)
class Step:
    """One step of a backward recursion on n moments m_i [S, D], primes meaning one step later.

        m_i(s) = Σ_j Σ_{a,o} flow[i, j][s, a, o] m'_j(s') + Σ_a π(a | s) z(s, a) scored[i][s, a]

    Where actions are averaged, u(s) = Σ_a π(a | s) z(s, a) ψ(s, a) is added to m_0(s), and weight(s) (m_0(s) − u(s) / 2) u(s)
    to E g².

    Attributes:
        flow: (i, j) → [S, A, O].
        scored: [n, S, A]; without u.
        pairs: j → [S, A, O], the weight at which z(s, a) m'_j(s') adds to E g².
        averaged: ψ [S, A] and weight(s) π(a | s) ψ(s, a) [S, A], or None.
    """

    flow: Mapping[tuple[int, int], np.ndarray]
    scored: np.ndarray
    pairs: Mapping[int, np.ndarray]
    averaged: tuple[np.ndarray, np.ndarray] | None = None


class Coordinates(Protocol):
    """What :func:`pairs_of_steps` asks of a choice of coordinates."""

    def parts(self) -> Iterator[slice]:
        """Yield ranges of rows of logits, or of parameters."""

    def zeros(self, part: slice) -> np.ndarray:
        """Return a moment [S, D of the part] of zeros."""

    def add_scored(self, part: slice, moment: np.ndarray, f: np.ndarray) -> None:
        """Add E[z f(s, a) | s], for f [S, A], to a moment in place."""

    def pairing(self, weight: np.ndarray) -> object:
        """Return what :meth:`add_pairs` needs of weights [S, A, O]."""

    def add_pairs(self, part: slice, pairing: object, moment: np.ndarray) -> None:
        """Add Σ_{s,a,o} weight[s, a, o] z(s, a) moment[s'] to the sum of pairs."""

    def add_own_pairs(self, part: slice, weight: np.ndarray, moment: np.ndarray) -> None:
        """Add Σ_{s,a} weight[s, a] z(s, a) moment[s] to the sum of pairs."""

    def first(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a), [P]."""

    def second(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)² and the sum of pairs, [P]."""


def pairs_of_steps(world: World, coordinates: Coordinates, steps: Sequence[Step]) -> None:
    """Run a recursion from its last step to its first and add up all pairs of steps.

    Args:
        world: the dynamics.
        coordinates: those of the moments; they hold the sum.
        steps: in the order t = L − 1, …, 0.
    """
    # What does not vary in time is one object: its matrix is built once.
    matrices = {id(w): world.by_state(w) for step in steps for w in step.flow.values()}
    pairings = {id(w): coordinates.pairing(w) for step in steps for w in step.pairs.values()}
    for part in coordinates.parts():
        moments = [coordinates.zeros(part) for _ in steps[0].scored]
        for step in steps:
            for j, weight in step.pairs.items():
                coordinates.add_pairs(part, pairings[id(weight)], moments[j])
            new: list[np.ndarray | None] = [None] * len(moments)
            products: dict[tuple[int, int], np.ndarray] = {}
            for (i, j), weight in step.flow.items():
                key = (id(weight), j)
                ahead = products[key].copy() if key in products else products.setdefault(key, matrices[id(weight)] @ moments[j])
                new[i] = ahead if new[i] is None else new[i] + ahead
            moments = [coordinates.zeros(part) if m is None else m for m in new]
            for moment, f in zip(moments, step.scored, strict=True):
                coordinates.add_scored(part, moment, f)
            if step.averaged is not None:
                psi, weight = step.averaged
                coordinates.add_scored(part, moments[0], psi / 2)
                coordinates.add_own_pairs(part, weight, moments[0])
                coordinates.add_scored(part, moments[0], psi / 2)


class TableLogits:
    """The logits of a softmax table, P = S·A; parts are ranges of rows.

    The entries of each row of a score add up to 0, so that of the last action is left out of the moments: D = S (A − 1).
    """

    def __init__(self, world: World) -> None:
        """Begin with no pairs."""
        self.world = world
        self.num_states, num_actions = world.pi.shape
        self.width = num_actions - 1
        self.pairs = self._no_pairs()

    def parts(self) -> Iterator[slice]:
        """Yield ranges of rows."""
        size = max(1, PART // (self.num_states * max(self.width, 1)))
        return (slice(i, min(i + size, self.num_states)) for i in range(0, self.num_states, size))

    def zeros(self, part: slice) -> np.ndarray:
        """Return a moment of zeros."""
        return np.zeros((self.num_states, (part.stop - part.start) * self.width))

    def add_scored(self, part: slice, moment: np.ndarray, f: np.ndarray) -> None:
        """Add E[z f(s, a) | s] to the entries of each state's own row."""
        pi = self.world.pi[part]
        weighted = pi * f[part]
        rows = np.arange(len(pi))
        own = moment[part].reshape(len(pi), len(pi), self.width)
        own[rows, rows] += (weighted - pi * weighted.sum(1, keepdims=True))[:, :-1]

    def _no_pairs(self) -> np.ndarray:
        """[S, A, A − 1] pairs of a step in (s, a) with the entries of its own row."""
        return np.zeros((*self.world.pi.shape, self.width))

    def _all_pairs(self) -> np.ndarray:
        """Pairs with the entries of the last action too."""
        return np.concatenate([self.pairs, -self.pairs.sum(-1, keepdims=True)], -1)

    def pairing(self, weight: np.ndarray) -> np.ndarray:
        """Return the weights."""
        return weight

    def add_pairs(self, part: slice, pairing: np.ndarray, moment: np.ndarray) -> None:
        """Add pairs of steps in one state."""
        rows = np.arange(part.stop - part.start)[:, None, None]
        near = moment.reshape(self.num_states, len(rows), self.width)[self.world.next_state[part], rows]  # [rows, A, O, A − 1]
        self.pairs[part] += np.einsum("sao,saob->sab", pairing[part], near)

    def add_own_pairs(self, part: slice, weight: np.ndarray, moment: np.ndarray) -> None:
        """Add pairs of a step with the moment of its own state."""
        rows = np.arange(part.stop - part.start)
        self.pairs[part] += weight[part, :, None] * moment[part].reshape(len(rows), len(rows), self.width)[rows, rows, None]

    def first(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)."""
        return np.einsum("sa,sab->sb", f, self.world.scores).ravel()

    def second(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)² and pairs."""
        z = self.world.scores
        return np.einsum("sab,sab->sb", f[:, :, None] * z + self._all_pairs(), z).ravel()


class NetworkLogits(TableLogits):
    """The logits under any policy of θ, S·A ≤ P."""

    def _no_pairs(self) -> np.ndarray:
        """[S·A, S, A − 1] pairs of a step in (s, a) with every entry."""
        return np.zeros((self.world.pi.size, self.num_states, self.width))

    def pairing(self, weight: np.ndarray) -> object:
        """Return the matrix of the weights."""
        return self.world.by_pair(weight)

    def add_pairs(self, part: slice, pairing: object, moment: np.ndarray) -> None:
        """Add pairs of steps in any two states."""
        self.pairs[:, part] += (pairing @ moment).reshape(len(self.pairs), part.stop - part.start, self.width)

    def add_own_pairs(self, part: slice, weight: np.ndarray, moment: np.ndarray) -> None:
        """Add pairs of a step with the moment of its own state."""
        both = weight[:, :, None] * moment[:, None]
        self.pairs[:, part] += both.reshape(len(self.pairs), part.stop - part.start, self.width)

    def first(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)."""
        return np.einsum("sa,sap->p", f, self.world.scores)

    def second(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)² and pairs, by the chain rule on both sides."""
        z = self.world.scores.reshape(self.world.pi.size, -1)
        both = self._all_pairs().reshape(len(z), -1) + np.diag(f.ravel())
        columns = (z[:, i : i + COLUMNS] for i in range(0, z.shape[1], COLUMNS))
        return np.concatenate([(c * (both @ c)).sum(0) for c in columns])


class Parameters:
    """θ itself, D = P; parts are ranges of parameters."""

    def __init__(self, world: World) -> None:
        """Begin with no pairs."""
        self.world = world
        self.z = world.scores.reshape(-1, world.num_parameters)
        self.pairs = np.zeros(world.num_parameters)

    def parts(self) -> Iterator[slice]:
        """Yield ranges of parameters."""
        size = max(1, PART // self.world.num_states)
        return (slice(i, min(i + size, len(self.pairs))) for i in range(0, len(self.pairs), size))

    def zeros(self, part: slice) -> np.ndarray:
        """Return a moment of zeros."""
        return np.zeros((self.world.num_states, part.stop - part.start))

    def add_scored(self, part: slice, moment: np.ndarray, f: np.ndarray) -> None:
        """Add E[z f(s, a) | s]."""
        moment += np.einsum("sa,sap->sp", self.world.pi * f, self.world.scores[:, :, part])

    def pairing(self, weight: np.ndarray) -> object:
        """Return the transposed matrix of the weights."""
        return self.world.by_pair(weight).T

    def add_pairs(self, part: slice, pairing: object, moment: np.ndarray) -> None:
        """Add pairs of steps."""
        self.pairs[part] += ((pairing @ self.z[:, part]) * moment).sum(0)

    def add_own_pairs(self, part: slice, weight: np.ndarray, moment: np.ndarray) -> None:
        """Add pairs of a step with the moment of its own state."""
        self.pairs[part] += (np.einsum("sa,sap->sp", weight, self.world.scores[:, :, part]) * moment).sum(0)

    def first(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)."""
        return f.ravel() @ self.z

    def second(self, f: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a} f[s, a] z(s, a)² and pairs."""
        return f.ravel() @ self.z**2 + self.pairs


def choose(world: World) -> Coordinates:
    """Return the coordinates in which the moments of a world are cheapest."""
    if world.support is not None:
        return TableLogits(world)
    return Parameters(world) if world.num_parameters < world.pi.size else NetworkLogits(world)
