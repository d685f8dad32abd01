"""Every estimator as a sum of scores at chosen pairs of observation and action: the rows that measurements are made of.

The gradient of unit i under choice k is

    g_ik = (1/G) Σ_{rows r of unit i} z(obs_r, action_r) φ_rk,

with rows for the steps taken (φ = w_t Φ_t) and, where an estimator asks for them, for the nodes of each step
(φ = w_t p_tj ψ_tj; :mod:`varlab.estimators.nodes`) and for every state and action of a finite world. A unit is G consecutive
trajectories, most often one. What an estimator does parameter by parameter is linear in such sums too: g + c ∘ s with a second
sum s, or A g with a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks, rng
from varlab.estimators.base import Batch, Estimator, weights
from varlab.estimators.nodes import NodeEstimator, StateEstimator, node_weight, step_weight, with_nodes
from varlab.scores.base import CACHE_BYTES, BatchScores, ScoreMap, slices
from varlab.types import Chunk, Trajectories

#: Reads values along trajectories: (trajectories, names asked for) → what a Φ reads.
Reader = Callable[[Trajectories, frozenset[str]], Batch]


@dataclass(frozen=True)
class Terms:
    """J rows at each of M steps, weighted under k of the K choices.

    Attributes:
        offsets: [U + 1] first step of each unit.
        obs: [M, ...].
        action: [M, J] or [M, J, action dimension].
        weights: [M, J, k] float64 φ.
        columns: which of the K choices have weights here.
        coefficients: [k, P] by which each gradient of these rows is multiplied, or None for 1.
    """

    offsets: Tensor
    obs: Tensor
    action: Tensor
    weights: Tensor
    columns: list[int]
    coefficients: Tensor | None = None

    @classmethod
    def of_steps(cls, traj: Trajectories, weights: Tensor, unit: int = 1) -> Terms:
        """Return the steps taken with weights w_t Φ_t [M, K]; ``unit`` is G."""
        columns = list(range(weights.shape[1]))
        return cls(unit_offsets(traj, unit), traj.obs, traj.action.unsqueeze(1), _mean(weights, unit).unsqueeze(1), columns)

    @classmethod
    def of_states(cls, seen: Tensor, weights: Tensor, columns: list[int], unit: int = 1) -> Terms:
        """Return every state and action of a finite world once for each unit.

        Args:
            seen: [S, ...] observation in each state.
            weights: [N, S, A, k] of the trajectories; those of a unit are averaged.
            columns: which of the K choices they are of.
            unit: G.

        Returns:
            Terms of S steps a unit.
        """
        weights = weights.unflatten(0, (-1, unit)).mean(1)
        units, states, actions = weights.shape[:3]
        action = torch.arange(actions, device=weights.device).expand(units * states, actions)
        offsets = states * torch.arange(units + 1, device=weights.device)
        return cls(offsets, seen.repeat(units, *[1] * (seen.dim() - 1)), action, weights.flatten(0, 1), columns)

    def chunks(self, size: int, together: int = 1, rows: int | None = None) -> Iterator[Chunk]:
        """Split into padded groups of units of similar length, longest first.

        Args:
            size: most units in a group.
            together: consecutive units that stay neighbours; they are sorted by the longest, because neighbours that were
                chosen by their lengths would not be independent.
            rows: most padded steps in a group, unless it is as small as it can be; None: any.

        Yields:
            The groups.
        """
        for _, chunk in self.named_chunks(size, together, rows):
            yield chunk

    def named_chunks(self, size: int, together: int, rows: int | None) -> Iterator[tuple[list[int], Chunk]]:
        """Give what :meth:`chunks` does, with the units of each as numbers that are known without asking the device."""
        longest, order = self.offsets.diff().view(-1, together).amax(1).sort(descending=True, stable=True)
        units = together * order[:, None] + torch.arange(together, device=order.device)
        longest, numbers, i = longest.tolist(), units.tolist(), 0
        while i < len(longest):
            most = size if rows is None else min(size, rows // longest[i])
            count = max(1, most // together)
            named = [number for pair in numbers[i : i + count] for number in pair]
            yield named, Chunk.of(self.offsets, units[i : i + count].flatten(), longest[i])
            i += count

    def at(self, scores: ScoreMap, chunk: Chunk, dtype: torch.dtype) -> tuple[BatchScores, Tensor]:
        """Return the scores of a chunk's rows and their φ [C, k, T J], 0 after the end of a unit."""
        obs, action = self.obs[chunk.rows], self.action[chunk.rows]
        obs = obs.unsqueeze(2).expand(*action.shape[:3], *obs.shape[2:]).flatten(1, 2)
        phi = (self.weights[chunk.rows] * chunk.mask[..., None, None]).flatten(1, 2)
        return scores.at(obs, action.flatten(1, 2)), phi.transpose(1, 2).to(dtype).contiguous()


class JoinedScores(BatchScores):
    """Scores of a chunk's steps and of its nodes; to whoever adds up gradients it looks like the scores of the steps."""

    def __init__(self, steps: BatchScores, further: Sequence[tuple[BatchScores, Tensor, Terms]]) -> None:
        """Join the scores of the steps with (scores, φ, their terms) of further rows; each has buffers of its own."""
        self.steps, self.further, self.num_parameters = steps, further, steps.num_parameters

    def tiles(self, phi: Tensor, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give gradients [c, K, p] tile by tile, for φ [C, K, T] of the steps."""
        for rows in _few(phi, self.num_parameters, multiple):
            more = [scores.rows(rows).blocks(psi[rows]) for scores, psi, _ in self.further]
            for (index, g), *extras in zip(self.steps.rows(rows).blocks(phi[rows]), *more, strict=True):
                for (_, extra), (_, _, t) in zip(extras, self.further, strict=True):
                    g[:, t.columns] += extra if t.coefficients is None else extra * t.coefficients[:, index].to(extra.dtype)
                yield rows, index, g

    def rows(self, index: slice) -> JoinedScores:
        """Return the scores of some of the units."""
        return JoinedScores(self.steps.rows(index), [(scores.rows(index), psi[index], t) for scores, psi, t in self.further])


class TransformedScores(BatchScores):
    """Scores whose gradients are multiplied by a matrix under some choices, A g."""

    def __init__(self, scores: BatchScores, matrices: Mapping[int, Tensor]) -> None:
        """Wrap scores with choice → A [P, P]."""
        self.scores, self.matrices, self.num_parameters = scores, matrices, scores.num_parameters

    def tiles(self, phi: Tensor, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give the gradients [c, K, P] of all parameters at once: each entry of A g needs the whole of g."""
        index = torch.arange(self.num_parameters, device=phi.device)
        for rows in _few(phi, self.num_parameters, multiple):
            out = self.scores.rows(rows).apply(phi[rows])
            for k, matrix in self.matrices.items():
                out[:, k] = out[:, k] @ matrix.T.to(out.dtype)
            yield rows, index, out

    def rows(self, index: slice) -> TransformedScores:
        """Return the scores of some of the units."""
        return TransformedScores(self.scores.rows(index), self.matrices)


def _few(phi: Tensor, parameters: int, multiple: int) -> Iterator[slice]:
    """Cut C units into runs whose gradients stay in the caches."""
    return slices(len(phi), CACHE_BYTES // (phi.element_size() * phi.shape[1] * parameters), multiple)


def assemble(
    phi: Sequence[Estimator], traj: Trajectories, policy: nn.Module, read: Reader, discount_weighting: bool, unit: int = 1
) -> list[Terms]:
    """Return the rows of K estimators: first the steps, then those nodes that some of them ask for.

    Args:
        phi: the K choices.
        traj: N trajectories.
        policy: gives the nodes.
        read: called once for the plain choices and once for each kind of nodes, with what they ask for.
        discount_weighting: w_t = γ^t if true, 1 if false.
        unit: G trajectories per unit; N must be a multiple.

    Returns:
        Terms whose units are the same.
    """
    groups: dict[tuple[str, int] | None, list[int]] = {}
    for k, e in enumerate(phi):
        groups.setdefault(e.key if isinstance(e, NodeEstimator) else None, []).append(k)
    steps, at_states, further = {}, {}, []
    for key, columns in groups.items():
        asks = frozenset().union(*(phi[k].asks for k in columns))
        batch = read(traj if key is None else with_nodes(policy, traj, key[1], key[0]), asks)
        steps |= dict(zip(columns, weights([phi[k] for k in columns], batch, discount_weighting), strict=True))
        at_states |= {
            k: phi[k].state_phi(batch, step_weight(phi[k], batch, discount_weighting))
            for k in columns
            if isinstance(phi[k], StateEstimator)
        }
        if key is not None:
            psi = torch.stack([node_weight(phi[k], batch, discount_weighting) for k in columns], 2)
            further.append(Terms(unit_offsets(traj, unit), traj.obs, batch.traj.nodes.action, _mean(psi, unit), columns))
    if at_states:
        columns = list(at_states)
        further.append(Terms.of_states(phi[columns[0]].states, torch.stack(list(at_states.values()), 3), columns, unit))
    scaled = [k for k, e in enumerate(phi) if e.coefficients is not None]
    if scaled:
        batch = read(traj, frozenset().union(*(phi[k].asks for k in scaled)))
        second = Terms.of_steps(traj, torch.stack([phi[k].companion(batch) for k in scaled], 1), unit)
        further.append(replace(second, columns=scaled, coefficients=torch.stack([phi[k].coefficients for k in scaled])))
    return [Terms.of_steps(traj, torch.stack([steps[k] for k in range(len(phi))], 1), unit), *further]


def matrices(phi: Sequence[Estimator]) -> dict[int, Tensor]:
    """Return choice → A for those whose gradient is A g."""
    return {k: e.matrix for k, e in enumerate(phi) if e.matrix is not None}


def groups(
    terms: Sequence[Terms], size: int, together: int = 1, rows: int | None = None
) -> Iterator[tuple[Chunk, ...]]:
    """Split the units into padded groups of similar length, the same units in all terms.

    Args:
        terms: of the steps, then of nodes.
        size: most units in a group.
        together: consecutive units that stay neighbours.
        rows: most rows in a group, of steps and nodes together, unless it is as small as it can be.

    Yields:
        For each group its rows of every term.
    """
    of_step = sum(t.action.shape[1] for t in terms)
    lengths = [t.offsets.diff().tolist() for t in terms[1:]]  # units are the same in all terms, their steps need not be
    for units, chunk in terms[0].named_chunks(size, together, rows and rows // of_step):
        more = [max(length[i] for i in units) for length in lengths]
        yield chunk, *(Chunk.of(t.offsets, chunk.index, longest) for t, longest in zip(terms[1:], more, strict=True))


def scores_of(
    terms: Sequence[Terms],
    maps: Sequence[ScoreMap],
    group: Sequence[Chunk],
    dtype: torch.dtype,
    transform: Mapping[int, Tensor] | None = None,
) -> tuple[BatchScores, Tensor]:
    """Return the scores of a group of units and φ [C, K, T] of their steps.

    Args:
        terms: of the steps, then of nodes.
        maps: a score map for each, which share no buffers.
        group: of :func:`groups`.
        dtype: of the gradients.
        transform: :func:`matrices` of the choices.

    Returns:
        Scores and φ.
    """
    (scores, phi), *further = (t.at(m, c, dtype) for t, m, c in zip(terms, maps, group, strict=True))
    joined = [(*f, t) for f, t in zip(further, terms[1:], strict=True)]
    scores = JoinedScores(scores, joined) if joined else scores
    return TransformedScores(scores, transform) if transform else scores, phi


def chunks(
    terms: Sequence[Terms],
    maps: Sequence[ScoreMap],
    size: int,
    dtype: torch.dtype,
    transform: Mapping[int, Tensor] | None = None,
) -> Iterator[tuple[Tensor, BatchScores, Tensor]]:
    """Go through the units in padded groups of similar length, one after the other.

    Args:
        terms: of the steps, then of nodes.
        maps: a score map for each, which share no buffers.
        size: most units in a group.
        dtype: of the gradients.
        transform: :func:`matrices` of the choices.

    Yields:
        (index [C] of the units, their scores, φ [C, K, T] of the steps).
    """
    for group in groups(terms, size):
        yield group[0].index, *scores_of(terms, maps, group, dtype, transform)


def summed(
    terms: Sequence[Terms], scores: ScoreMap, dtype: torch.dtype, rows: int, transform: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Return Σ_i g_i [K, P] float64.

    Args:
        terms: of the steps, then of nodes.
        scores: score map.
        dtype: of the gradients.
        rows: most rows in one pass, unless one unit has more.
        transform: :func:`matrices` of the choices.

    Returns:
        The sum over units.
    """
    weights = terms[0].weights
    out = torch.zeros(weights.shape[2], scores.num_parameters, dtype=torch.float64, device=weights.device)
    for t in terms:
        for chunk in t.chunks(len(t.offsets), rows=rows // t.action.shape[1]):
            batch, phi = t.at(scores, chunk, dtype)
            total = batch.apply_sum(phi).double()
            out[t.columns] += total if t.coefficients is None else total * t.coefficients.double()
    for k, matrix in (transform or {}).items():
        out[k] = matrix.double() @ out[k]
    return out


def pieces(traj: Trajectories, steps: int, unit: int = 1) -> list[tuple[int, Trajectories]]:
    """Cut into runs of whole units of about ``steps`` steps, so that what is made at every node stays small.

    Args:
        traj: N trajectories.
        steps: a piece exceeds them by less than one unit.
        unit: G trajectories per unit.

    Returns:
        (first unit, trajectories) of each piece, in order.
    """
    _, counts = torch.unique_consecutive(unit_offsets(traj, unit)[:-1] // max(1, steps), return_counts=True)
    ends = counts.cumsum(0).tolist()
    return [(i, _run(traj, i * unit, j * unit)) for i, j in zip([0, *ends[:-1]], ends, strict=True)]


def unit_offsets(traj: Trajectories, unit: int) -> Tensor:
    """Return the first step of each unit of G trajectories, [N / G + 1].

    Raises:
        InputError: if the trajectories do not fill whole units.
    """
    if len(traj) % unit:
        raise checks.InputError(
            f"Whole units of {unit} trajectories were expected, but {len(traj)} trajectories of {traj.env} came; give a multiple."
        )
    return traj.offsets[::unit]


def _mean(weights: Tensor, unit: int) -> Tensor:
    return weights if unit == 1 else weights / unit


def _run(traj: Trajectories, i: int, j: int) -> Trajectories:
    """Return trajectories i to j − 1."""
    a, b = int(traj.offsets[i]), int(traj.offsets[j])
    rows = {name: x[a:b] for name in ("obs", "action", "reward", "state") if (x := getattr(traj, name)) is not None}
    ends = ("terminated", "truncated", "last_obs", "last_state", "spent")
    rows |= {name: x[i:j] for name in ends if (x := getattr(traj, name)) is not None}
    # Branches from a piece have random numbers of their own, those from a whole part have the part's.
    whole = traj.seed is None or j - i == len(traj)
    seed = traj.seed if whole else rng.descend(traj.seed, i)
    saved = traj.snapshots and traj.snapshots.run(slice(a, b), slice(i, j))
    return replace(traj, offsets=traj.offsets[i : j + 1] - a, nodes=None, snapshots=saved, seed=seed, **rows)
