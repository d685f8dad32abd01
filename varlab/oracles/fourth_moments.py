"""Exact fourth central moment E ‖g − E g‖⁴ and tr (Cov g)², by backward recursion on joint moments up to the fourth order.

The estimators are those of :mod:`varlab.oracles.recursions`. One step adds R = z Φ + κ W' and then what depends on the state
alone, W = R + u. Expanding the products

    X^m,   X^m W,   X^m W Wᵀ,   X^m ‖W‖² W,   X^m ‖W‖⁴

with X = x + c X' gives the same moments one step later: a closed set, in which m runs over powers of X up to 4, 3, 2, 1 and 0
(and over products of windows X^1 … X^{k−1} where Φ is a window of k terms). For g = Z (X_0 − b_0), such as total_return, Z takes
the place of W with Φ = 1, and m runs up to 4 throughout.

Three things keep it small and exact. Norms do not see a rotation, so that scores are written in an orthonormal basis of their
span, of dimension D ≤ min(P, S (A − 1)). An ended episode stays in one more state, with x = 0 and z = 0. And at every step x and
W are shifted to mean zero over states, so that high powers of large means never occur.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations, combinations_with_replacement
from math import comb

import numpy as np
import scipy.linalg
import scipy.sparse

from varlab.estimators.recursion import Recursion
from varlab.oracles.world import World

#: Lengths of windows of X, one for each factor; () is the empty product.
Monomial = tuple[int, ...]
#: Moments of one kind: monomial → [S + 1, …].
Table = dict[Monomial, np.ndarray]

#: Largest S · D² for which moments are computed, times k (k + 1) / 6 for a window of k terms: minutes for 100 steps.
LIMIT = 10**7
#: Longest window: their products up to the fourth order are many.
WINDOW = 10


@dataclass(frozen=True)
class Fourth:
    """E ‖g − E g‖⁴, and tr Σ and tr Σ² with Σ = Cov g."""

    fourth: float
    variance: float
    trace_sq: float


@dataclass
class _Moments:
    """Moments given the state, X^m times 1, W, W Wᵀ, ‖W‖² W and ‖W‖⁴; scalars are [S + 1, 1]."""

    one: Table
    vector: Table
    matrix: Table
    cubic: Table
    quartic: Table

    @property
    def square(self) -> Table:
        """E X^m ‖W‖² [S + 1, 1]."""
        return {m: np.einsum("sdd->s", x)[:, None] for m, x in self.matrix.items()}


def size(world: World, recursion: Recursion) -> float:
    """Return S · D², times k (k + 1) / 6 for a window of k terms: what :data:`LIMIT` bounds."""
    s, a = world.pi.shape
    k = carried_window(world, recursion) or 1
    return s * min(world.num_parameters, s * (a - 1)) ** 2 * max(1.0, k * (k + 1) / 6)


def fourth_moments(world: World, recursion: Recursion, kappa: float) -> Fourth:
    """Return exact fourth moments of g = Σ_t κ^t (z_t (X_t − b_t) + u_t), or of (Σ_t z_t) (X_0 − b_0).

    Args:
        world: dynamics, policy, values.
        recursion: x_t, c, window, b_t and ψ_t.
        kappa: γ with discount weighting, else 1; not used where ``recursion.total``.

    Returns:
        The moments.
    """
    chain, total = _Chain(world, recursion), recursion.total
    kinds = range(5)
    monomials = [_monomials(chain.stored, 4 if total else 4 - kind) for kind in kinds]
    moments = chain.end(monomials)
    for t in range(world.cut - 1, -1, -1):
        step = _Step(chain, t, moments)
        moments = _scored(step, monomials, 1.0 if total else kappa)
        if not total:
            u = np.zeros_like(moments.vector[()])
            if recursion.expected is not None:
                u[:-1] = np.einsum("sa,sad->sd", world.pi * recursion.expected(t), chain.scores[:-1])
            _shift(moments, u - chain.alive[t] @ (moments.vector[()] + u))
    initial = chain.alive[0]
    at = [(1,) * kind if total else () for kind in kinds]
    first, second = initial @ moments.vector[at[1]], np.tensordot(initial, moments.matrix[at[2]], 1)
    third, fourth = initial @ moments.cubic[at[3]], initial @ moments.quartic[at[4]]
    square = first @ first
    covariance = second - np.outer(first, first)
    central = fourth[0] - 4 * third @ first + 4 * first @ second @ first + 2 * square * np.trace(second) - 3 * square**2
    return Fourth(float(central), float(np.trace(covariance)), float((covariance**2).sum()))


def carried_window(world: World, recursion: Recursion) -> int | None:
    """Return the number of terms of X, or None where it ends with the episode."""
    window = 1 if recursion.carry == 0.0 else recursion.window
    return None if recursion.total or window is None or window >= world.cut else window


def _monomials(stored: range, degree: int) -> list[Monomial]:
    """Return all products of at most ``degree`` windows."""
    return [m for d in range(degree + 1) for m in combinations_with_replacement(stored, d)]


def _basis(world: World) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scores in an orthonormal basis of their span, [S + 1, A, d], and which of its D vectors those entries are of.

    The second is [S + 1, d], or None for d = D. Scores in the state of ended episodes are 0.
    """
    s, a = world.pi.shape
    if world.support is not None:  # the entries of a row add up to 0
        z, support = world.scores @ scipy.linalg.helmert(a).T, np.arange(s * (a - 1)).reshape(s, a - 1)
        return np.concatenate([z, np.zeros((1, a, a - 1))]), np.concatenate([support, support[:1]])
    z = world.scores.reshape(s * a, -1)
    if z.shape[1] > s * (a - 1):
        left, singular, _ = np.linalg.svd(z, full_matrices=False)
        z = (left * singular)[:, : s * (a - 1)]
    return np.concatenate([z.reshape(s, a, -1), np.zeros((1, a, z.shape[1]))]), None


class _Chain:
    """The world with one more state for ended episodes, each state with a list of its K distinct next states, padded.

    Attributes:
        world: the world.
        recursion: that of the estimator.
        top: length of the window that Φ reads; 1 where X has no end.
        stored: lengths of the windows whose moments are carried.
        down: how much shorter a window is one step later.
        pi: [S + 1, A].
        entries: [S + 1, A, d] of the scores.
        support: [S + 1, d] which they are, or None.
        scores: [S + 1, A, D].
        near: [S + 1, K] next states.
        cell: [S, A, O] place of an outcome's (s, a, next state) in a flat [S, A, K].
        alive: [L, S + 1] probability of every state, the last of them ended.
        local_mean: [L] E x_t.
        mean: [L + 1] E X_t of the window that Φ reads.
    """

    def __init__(self, world: World, recursion: Recursion) -> None:
        """Find next states and means."""
        self.world, self.recursion = world, recursion
        s, a = world.pi.shape
        window = carried_window(world, recursion)
        self.top, self.stored, self.down = (1, range(1, 2), 0) if window is None else (window, range(1, window), 1)
        self.pi = np.concatenate([world.pi, np.eye(1, a)])
        self.entries, self.support = _basis(world)
        self.scores = self.entries
        if self.support is not None:
            self.scores = np.zeros((s + 1, a, s * (a - 1)))
            np.put_along_axis(self.scores, self.support[:, None], self.entries, axis=2)
        following = np.where(world.mdp.terminated.numpy(), s, world.next_state).reshape(s, -1)
        distinct = [*map(np.unique, following), np.array([s])]
        count = max(map(len, distinct))
        self.near = np.stack([np.pad(row, (0, count - len(row)), mode="edge") for row in distinct])
        which = (following[:, :, None] == self.near[:s, None]).argmax(-1).reshape(world.probability.shape)
        self.cell = np.arange(s * a).reshape(s, a, 1) * count + which
        alive = world.visits[: world.cut]
        self.alive = np.concatenate([alive, 1 - alive.sum(1, keepdims=True)], 1)
        c, chosen = recursion.carry, world.pi[:, :, None] * world.probability
        self.local_mean = np.array([alive[t] @ (chosen * recursion.local(t)).sum((1, 2)) for t in range(world.cut)])
        self.mean = np.zeros(world.cut + 1)
        for t in range(world.cut):
            terms = self.local_mean[t:] if window is None else self.local_mean[t : t + window]
            self.mean[t] = np.polynomial.polynomial.polyval(c, terms)

    def end(self, monomials: list[list[Monomial]]) -> _Moments:
        """Return the moments of X = 0 and W = 0."""
        n, _, d = self.scores.shape
        shapes = ((n, 1), (n, d), (n, d, d), (n, d), (n, 1))
        out = _Moments(*({m: np.zeros(shape) for m in listed} for listed, shape in zip(monomials, shapes, strict=True)))
        out.one[()] += 1
        return out


class _Step:
    """Conditional moments of one step: E[X^m Y' | s, a] from E[X'^m Y' | s'], primes meaning one step later.

    Attributes:
        chain: the world.
        later: moments at t + 1.
        baseline: [S + 1, A, 1] b_t less the mean of X_t.
        weight: five of [S + 1, A, K], Σ over outcomes to the same next state of p x^j, x shifted to mean 0.
    """

    def __init__(self, chain: _Chain, t: int, later: _Moments) -> None:
        """Shift x and b."""
        self.chain, self.later, world, recursion = chain, later, chain.world, chain.recursion
        (n, k), a = chain.near.shape, chain.pi.shape[1]
        x, b, ended = recursion.local(t), recursion.baseline(t), -chain.local_mean[t]
        if recursion.total and t == 0:  # X_0 − b_0 itself is what Z is multiplied with
            x = x - b[:, :, None] + recursion.carry * chain.mean[1]
        else:
            x = x + ended
        self.baseline = np.zeros((n, a, 1))
        self.baseline[:-1, :, 0] = b - chain.mean[t]
        self.weight = []
        for power in range(5):
            term = (world.probability * x**power).ravel()
            alive = np.bincount(chain.cell.ravel(), term, minlength=(n - 1) * a * k).reshape(n - 1, a, k)
            last = np.zeros((1, a, k))
            last[..., 0] = ended**power
            self.weight.append(np.concatenate([alive, last]))

    def terms(self, m: Monomial) -> dict[tuple[int, Monomial], float]:
        """Return the coefficients of x^j X'^m' in X^m; a window of no terms is 0."""
        out: dict[tuple[int, Monomial], float] = {}
        for r in range(len(m) + 1):
            for kept in combinations(m, r):
                shorter = tuple(j - self.chain.down for j in kept)
                if 0 not in shorter:
                    key = (len(m) - r, shorter)
                    out[key] = out.get(key, 0.0) + self.chain.recursion.carry**r
        return out

    def ahead(self, table: Table) -> Callable[[Monomial], np.ndarray]:
        """Return m → E[X^m Y' | s, a], [S + 1, A, …], for the moments of Y' given the next state."""
        near = cache(lambda m: table[m][self.chain.near])
        return cache(lambda m: sum(f * (self.weight[j] @ near(later)) for (j, later), f in self.terms(m).items()))

    def projected(self) -> Callable[[Monomial], np.ndarray]:
        """Return m → E[X^m W' W'ᵀ | s, a] z(s, a), [S + 1, A, D]."""
        chain = self.chain

        def product(matrix: np.ndarray) -> np.ndarray:  # symmetric, so that rows serve as columns
            rows = matrix if chain.support is None else np.take_along_axis(matrix, chain.support[:, :, None], axis=1)
            return chain.entries @ rows

        near = cache(lambda m: np.stack([product(self.later.matrix[m][to]) for to in chain.near.T], 2))

        def given(m: Monomial) -> np.ndarray:
            return sum(f * (self.weight[j][:, :, None] @ near(later))[:, :, 0] for (j, later), f in self.terms(m).items())

        return cache(given)

    def mixed(self, monomials: list[Monomial], factor: float) -> Table:
        """Return factor · E[X^m W' W'ᵀ | s], [S + 1, D, D]."""
        n, k = self.chain.near.shape
        place = {m: i for i, m in enumerate(monomials)}
        rows, columns, entries = [], [], []
        for i, m in enumerate(monomials):
            for (j, later), f in self.terms(m).items():
                rows.append(np.repeat(np.arange(n), k) + i * n)
                columns.append(self.chain.near.ravel() + place[later] * n)
                entries.append(factor * f * np.einsum("sa,sak->sk", self.chain.pi, self.weight[j]).ravel())
        where = np.concatenate(rows), np.concatenate(columns)
        mixing = scipy.sparse.csr_array((np.concatenate(entries), where), shape=(n * len(place), n * len(place)))
        stacked = np.stack([self.later.matrix[m] for m in monomials])
        out = mixing @ stacked.reshape(len(place) * n, -1)
        return dict(zip(monomials, out.reshape(stacked.shape), strict=True))


def _scored(step: _Step, monomials: list[list[Monomial]], kappa: float) -> _Moments:
    """Return the moments of R = z Φ + κ W' in place of W, given the state."""
    chain, later = step.chain, step.later
    z, pi, top = chain.scores, chain.pi[:, :, None], chain.top
    norm = (z**2).sum(-1, keepdims=True)
    one, vector, square = step.ahead(later.one), step.ahead(later.vector), step.ahead(later.square)
    cubic, quartic, projected = step.ahead(later.cubic), step.ahead(later.quartic), step.projected()

    def phi(f: Callable[[Monomial], np.ndarray], m: Monomial, power: int) -> np.ndarray:
        """Return E[X^m Φ^power Y' | s, a] for f: m → E[X^m Y' | s, a]."""
        if chain.recursion.total:
            return f(m)
        powers = range(power + 1)
        return sum(comb(power, i) * (-step.baseline) ** (power - i) * f(m + (top,) * i) for i in powers)

    def along(x: np.ndarray) -> np.ndarray:
        return (z * x).sum(-1, keepdims=True)

    def mean(x: np.ndarray) -> np.ndarray:
        return (pi * x).sum(1)

    out = _Moments({m: mean(one(m)) for m in monomials[0]}, {}, {}, {}, {})
    for m in monomials[1]:
        out.vector[m] = mean(z * phi(one, m, 1) + kappa * vector(m))
    out.matrix = step.mixed(monomials[2], kappa**2)
    own, rows = (pi * chain.entries).transpose(0, 2, 1), np.arange(len(z))[:, None]
    for m, matrix in out.matrix.items():
        half = own @ (z * phi(one, m, 2) / 2 + kappa * phi(vector, m, 1))
        if chain.support is None:
            matrix += half + half.transpose(0, 2, 1)
        else:
            matrix[rows, chain.support] += half
            matrix[rows, :, chain.support] += half
    for m in monomials[3]:
        beside = phi(vector, m, 2)
        out.cubic[m] = mean(
            z * (norm * phi(one, m, 3) + 2 * kappa * along(beside) + kappa**2 * phi(square, m, 1))
            + kappa * norm * beside
            + 2 * kappa**2 * phi(projected, m, 1)
            + kappa**3 * cubic(m)
        )
    for m in monomials[4]:
        out.quartic[m] = mean(
            norm**2 * phi(one, m, 4)
            + 4 * kappa * norm * along(phi(vector, m, 3))
            + 2 * kappa**2 * (norm * phi(square, m, 2) + 2 * along(phi(projected, m, 2)))
            + 4 * kappa**3 * along(phi(cubic, m, 1))
            + kappa**4 * quartic(m)
        )
    return out


def _shift(moments: _Moments, u: np.ndarray) -> None:
    """Put R + u in place of R, for u [S + 1, D]."""
    norm = (u**2).sum(1, keepdims=True)

    def along(x: np.ndarray) -> np.ndarray:
        return (u * x).sum(1, keepdims=True)

    square = moments.square
    for m in moments.quartic:
        one, vector, near = moments.one[m], moments.vector[m], np.einsum("sde,se->sd", moments.matrix[m], u)
        moments.quartic[m] += 4 * along(near) + norm**2 * one + 4 * along(moments.cubic[m])
        moments.quartic[m] += 2 * norm * square[m] + 4 * norm * along(vector)
    for m in moments.cubic:
        one, vector, near = moments.one[m], moments.vector[m], np.einsum("sde,se->sd", moments.matrix[m], u)
        moments.cubic[m] += u * (square[m] + 2 * along(vector) + norm * one) + 2 * near + norm * vector
    for m in moments.matrix:
        half = moments.vector[m] + u * moments.one[m] / 2
        moments.matrix[m] += np.stack([u, half], 2) @ np.stack([half, u], 1)
    for m in moments.vector:
        moments.vector[m] = moments.vector[m] + u * moments.one[m]
