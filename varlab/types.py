"""Frozen records that pass between rooms; the capabilities a world may have come from :mod:`varlab.capabilities`.

Shape letters used everywhere: N trajectories, T time steps (padded), M = Σ T_i steps (flat), K choices of Φ,
P policy parameters, B blocks, S states, A actions, O outcomes of one state-action pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from varlab import checks
from varlab.capabilities import Cloneable, Simulator, Snapshots

__all__ = ["Chunk", "Cloneable", "Moments", "Nodes", "Reference", "Simulator", "Snapshots", "Trajectories", "Values"]


@dataclass(frozen=True)
class Nodes:
    """J further actions at each of M steps, chosen by a rule of :mod:`varlab.estimators.nodes`.

    Attributes:
        action: [M, J, ...] a_tj.
        weight: [M, J] p_tj with Σ_j p_tj f(s_t, a_tj) = E_a f(s_t, a); of nodes that change one coordinate of a_t at a time, the
            sum over the nodes of coordinate d is the mean over that coordinate alone.
        taken: [M, J] float64 ℓ_tj with f(s_t, a_t) = Σ_j ℓ_tj f(s_t, a_tj): 1 at the action taken if there are finitely many,
            else interpolation by the polynomial through the nodes; None where the nodes do not allow it.
        mean: [M, D] mean action, or None for discrete actions.
        rule: the rule; with J it says which actions they are.
    """

    action: Tensor
    weight: Tensor
    taken: Tensor | None = None
    mean: Tensor | None = None
    rule: str = "product"

    def to(self, device: torch.device | str) -> Nodes:
        """Return the same record with every tensor on ``device``."""
        moved = {k: x.to(device) for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Trajectories:
    """N episodes, stored flat: the steps of episode i are rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        obs: [M, ...] observation o_t seen before action a_t.
        action: [M] or [M, action dimension].
        reward: [M] float64, r_t paid for step t.
        offsets: [N + 1] int64, first row of each episode; ``offsets[0] = 0`` and ``offsets[N] = M``.
        terminated: [N] bool, the decision process ended.
        truncated: [N] bool, t reached the end of sampling (``cut`` or ``horizon``) with the process still alive.
        last_obs: [N, ...] observation after the last step, o_T.
        horizon: H, the length that ends the objective.
        state: [M] int64 index of the state in a finite MDP, else None.
        last_state: [N] int64, or None.
        env: the name used in messages.
        nodes: further actions at every step, where an estimator asks for them, else None.
        spent: [N] int64, environment steps that each episode cost where one step of it is many (an episode of an inner world),
            else None: as many as its rows.
        snapshots: states of the world to go on from, where they were saved, else None.
        seed: of the random numbers they were drawn with; branches take theirs from it. None if not drawn.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    offsets: Tensor
    terminated: Tensor
    truncated: Tensor
    last_obs: Tensor
    horizon: int
    state: Tensor | None = None
    last_state: Tensor | None = None
    env: str = "environment"
    nodes: Nodes | None = None
    spent: Tensor | None = None
    snapshots: Snapshots | None = None
    seed: np.random.SeedSequence | None = None

    def __len__(self) -> int:
        """Return the number of trajectories N."""
        return self.offsets.shape[0] - 1

    @property
    def steps(self) -> int:
        """M, the number of rows."""
        return self.obs.shape[0]

    @property
    def cost(self) -> int:
        """Environment steps spent: M, unless a step of these episodes is many of an inner world."""
        return self.steps if self.spent is None else int(self.spent.sum())

    @cached_property
    def length(self) -> Tensor:
        """[N] int64, the number of steps T_i of each episode."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def time(self) -> Tensor:
        """[M] int64, the time t of each flat row."""
        return torch.arange(self.steps, device=self.offsets.device) - self.offsets[:-1].repeat_interleave(self.length)

    @cached_property
    def episode(self) -> Tensor:
        """[M] int64, the episode of each flat row."""
        return torch.arange(len(self), device=self.offsets.device).repeat_interleave(self.length)

    @cached_property
    def last_row(self) -> Tensor:
        """[N] int64, the flat row of each episode's last step."""
        return self.offsets[1:] - 1

    def padded(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Spread flat rows x [M, ...] to [N, T, ...] with T the longest episode, ``fill`` after each end."""
        out = x.new_full((len(self), int(self.length.max()), *x.shape[1:]), fill)
        out[self.episode, self.time] = x
        return out

    def flat(self, x: Tensor) -> Tensor:
        """Undo :meth:`padded`: [N, T, ...] to flat rows [M, ...]."""
        return x[self.episode, self.time]

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Split into padded groups of at most ``size`` episodes of similar length (longest first).

        Args:
            size: episodes in a group.

        Yields:
            Chunk: index [C] into the episodes and rows [C, T] into the flat arrays; rows after an episode's end repeat
            its last row, with mask False.
        """
        for index in torch.argsort(self.length, descending=True, stable=True).split(size):
            yield Chunk.of(self.offsets, index)

    @staticmethod
    def join(made: Sequence[Trajectories]) -> Trajectories:
        """Put several records of one environment end to end."""
        if len(made) == 1:
            return made[0]
        first = made[0]

        def cat(name: str) -> Tensor | None:
            return None if getattr(first, name) is None else torch.cat([getattr(t, name) for t in made])

        names = ("obs", "action", "reward", "terminated", "truncated", "last_obs", "state", "last_state", "spent")
        length = torch.cat([t.length for t in made])
        offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
        saved = None if first.snapshots is None else Snapshots.join([t.snapshots for t in made])
        return replace(first, offsets=offsets, nodes=None, snapshots=saved, **{name: cat(name) for name in names})

    def to(self, device: torch.device | str) -> Trajectories:
        """Return the same record with every tensor on ``device``."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor) and k in self.__dataclass_fields__}
        nodes, saved = self.nodes and self.nodes.to(device), self.snapshots and self.snapshots.to(device)
        return replace(self, nodes=nodes, snapshots=saved, **moved)


@dataclass(frozen=True)
class Chunk:
    """A length-sorted group of C episodes: ``index`` [C], ``rows`` [C, T] into flat arrays, ``mask`` [C, T] bool."""

    index: Tensor
    rows: Tensor
    mask: Tensor

    @classmethod
    def of(cls, offsets: Tensor, index: Tensor, longest: int | None = None) -> Chunk:
        """Pad the flat rows offsets[i]:offsets[i + 1] of every i in ``index``; rows after an end repeat the last one.

        Args:
            offsets: [N + 1] first row of every episode.
            index: [C] episodes.
            longest: T where it is known: to read it off the offsets is to wait for an accelerator.

        Returns:
            The group.
        """
        first, length = offsets[index, None], (offsets[index + 1] - offsets[index])[:, None]
        t = torch.arange(int(length.max()) if longest is None else longest, device=length.device)
        return cls(index=index, rows=first + torch.minimum(t, length - 1), mask=t < length)


@dataclass(frozen=True)
class Values:
    """State and action values at the visited steps of one Trajectories.

    Attributes:
        v: [M] float64, V_t(s_t), or None where not asked for.
        v_last: [N] float64, V_T(s_T) at the observation after the last step, before any rule of termination or cut.
        v_stale: [N] float64, V_T(s_{T−1}): the value looked up in the wrong state, for ``at_cut=wrong_state``.
        q: [M] float64, Q_t(s_t, a_t), or None.
        q_nodes: [M, J] float64, Q_t(s_t, a_tj) at the trajectories' nodes, or None.
        q_slope: [M, D] float64, ∂Q_t(s_t, a)/∂a at the mean action, or None.
        v_se: [M] float64, standard error of v given s_t where v is a mean of samples (NaN of a single one), else None.
        q_se: [M] float64, standard error of q given s_t and a_t, likewise.
        source: ``exact``, ``critic:<digest>``, ``cloning(m=10)`` or a user's name.
        steps: environment steps spent to obtain them.
    """

    v: Tensor | None = None
    v_last: Tensor | None = None
    v_stale: Tensor | None = None
    q: Tensor | None = None
    q_nodes: Tensor | None = None
    q_slope: Tensor | None = None
    v_se: Tensor | None = None
    q_se: Tensor | None = None
    source: str = "none"
    steps: int = 0


@dataclass(frozen=True)
class Moments:
    """Block moments of per-trajectory gradients under K choices of Φ; all float64.

    Attributes:
        block_id: [B] int64.
        count: [B] int64, trajectories in each block.
        mean: [B, K, P] mean gradient of each block.
        trace_m2: [B, K] Σ_i ‖g_i − block mean‖².
        m2: [B, K, P] Σ_i (g_i − block mean)², or None when only traces were kept.
        cross: [B, K] Σ_i ⟨g_i − mean, g'_i − mean'⟩ with g' the comparator (choice 0 of ``names``).
        m4: [B, K] Σ_i ‖g_i − c_Φ‖⁴ with c_Φ the pilot mean; m2c: [B, K] Σ_i ‖g_i − c_Φ‖².
        steps: [B] int64 environment steps.
        names: the K choices.
        comparator: index of the comparator among the K.
        unit: trajectories of one unit: "each g_i" above is the gradient of a unit, the mean over its trajectories.
        charged: [B, K] environment steps that branches of each choice's values took in each block, or None where unknown; what is
            spent once, such as a critic's data, is not among them.
        low: [B, K, P] float32, what float64 left out of ``mean``: mean + low keeps the digits of the spread where a mean is
            many spreads from 0. None: nothing.
    """

    block_id: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    trace_m2: np.ndarray
    m2: np.ndarray | None
    cross: np.ndarray
    m4: np.ndarray
    m2c: np.ndarray
    steps: np.ndarray
    names: tuple[str, ...]
    comparator: int = 0
    low: np.ndarray | None = None
    unit: int = 1
    charged: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Trajectories in all blocks."""
        return int(self.count.sum())

    @property
    def units(self) -> np.ndarray:
        """[B] units in each block."""
        return self.count // self.unit

    def merge(self, other: Moments) -> Moments:
        """Join the blocks of two records by id, in id order.

        Joining is exact and associative: no number is pooled here.

        Args:
            other: blocks with other ids.

        Returns:
            All blocks.

        Raises:
            InputError: if a block id occurs in both, or the choices differ.
        """
        if self.names != other.names or self.comparator != other.comparator or self.unit != other.unit:
            raise checks.InputError(
                f"Moments of the same choices in the same order were expected, but {list(self.names)} in units of {self.unit} "
                f"met {list(other.names)} in units of {other.unit}; measure both with one list of Φ and one size of groups."
            )
        double = np.intersect1d(self.block_id, other.block_id)
        if double.size:
            raise checks.InputError(
                f"Blocks with distinct ids were expected, but ids {double[:5].tolist()} occur in both records; "
                "give each shard its own range of blocks."
            )
        block_id = np.concatenate([self.block_id, other.block_id])
        order = np.argsort(block_id, kind="stable")

        def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return np.concatenate([a, b])[order]

        def join_if_both(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
            return None if a is None or b is None else join(a, b)

        always = ("count", "mean", "trace_m2", "cross", "m4", "m2c", "steps")
        return replace(
            self,
            block_id=block_id[order],
            **{k: join(getattr(self, k), getattr(other, k)) for k in always},
            **{k: join_if_both(getattr(self, k), getattr(other, k)) for k in ("m2", "low", "charged")},
        )


@dataclass(frozen=True)
class Reference:
    """∇J and J that a bias refers to.

    Attributes:
        grad: [P] float64, pooled mean.
        block_mean: [B, P] float64 of equal-weight blocks, or None if exact.
        block_count: [B] int64, or None.
        j: the expected return J of ``objective``.
        kind: ``exact`` or the Φ that sampled it.
        n: trajectories (0 if exact).
        objective: ``J_1`` or ``J_gamma``.
        digest: content digest of the settings that made it.
        steps: environment steps spent.
    """

    grad: np.ndarray
    block_mean: np.ndarray | None
    block_count: np.ndarray | None
    j: float
    kind: str
    n: int
    objective: str
    digest: str = ""
    steps: int = 0

    @property
    def exact(self) -> bool:
        """Whether the gradient carries no sampling error."""
        return self.block_mean is None
