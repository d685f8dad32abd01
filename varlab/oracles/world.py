"""A finite MDP together with a policy's scores and values, as the arrays that exact recursions run on.

Scores of a softmax table touch only the row of their own state; ``support`` keeps that, so that the Taxi world with its 3,000
parameters stays cheap. Any other policy has the dense support of all parameters.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import nn

from varlab.envs.finite import FiniteMDP
from varlab.oracles.score_moments import ScoreMoments, score_moments
from varlab.policies.base import parameters
from varlab.values.dynamic_programming import evaluate, occupancy
from varlab.values.fisher import score_table


@dataclass(frozen=True)
class World:
    """What the exact moments of an estimator depend on; all arrays float64.

    Attributes:
        mdp: the finite MDP.
        pi: [S, A] action probabilities.
        scores: [S, A, D] entries of z(s, a) = ∇ log π(a | s) on the state's support.
        support: [S, D] which parameters those entries are, or None if D = P.
        num_parameters: P.
        v: [H + 1, S] values that the estimator looks up, right or wrong, or None.
        q: [H, S, A] action values, or None.
        gamma: γ.
        horizon: H.
        cut: L ≤ H.
        at_cut: terminal, bootstrap or wrong_state.
        discount_weighting: whether step t is weighted by γ^t, for baselines of least variance.
    """

    mdp: FiniteMDP
    pi: np.ndarray
    scores: np.ndarray
    support: np.ndarray | None
    num_parameters: int
    v: np.ndarray | None
    q: np.ndarray | None
    gamma: float
    horizon: int
    cut: int
    at_cut: str
    discount_weighting: bool = True

    @cached_property
    def probability(self) -> np.ndarray:
        """[S, A, O] p_o of every outcome."""
        return self.mdp.probability.numpy()

    @cached_property
    def going_on(self) -> np.ndarray:
        """[S, A, O] p_o (1 − end_o)."""
        return self.probability * ~self.mdp.terminated.numpy()

    @cached_property
    def next_state(self) -> np.ndarray:
        """[S, A, O] s'."""
        return self.mdp.next_state.numpy()

    def reward(self, t: int) -> np.ndarray:
        """[S, A, O] r_t, with γ times what the rule puts after a cut added to the last step."""
        r = self.mdp.reward.numpy()
        if t < self.cut - 1 or self.cut == self.horizon or self.at_cut == "terminal":
            return r
        end = self.v[self.cut]
        after = end[self.next_state] if self.at_cut == "bootstrap" else end[:, None, None]
        return r + self.gamma * np.where(self.mdp.terminated.numpy(), 0.0, after)

    def td_residual(self, t: int) -> np.ndarray:
        """[S, A, O] δ_t = r_t + γ V_{t+1}(s') − V_t(s); nothing follows termination or the last step."""
        going = ~self.mdp.terminated.numpy() & (t + 1 < self.cut)
        return self.reward(t) + self.gamma * np.where(going, self.v[t + 1][self.next_state], 0.0) - self.v[t][:, None, None]

    @property
    def num_states(self) -> int:
        """S."""
        return self.pi.shape[0]

    @cached_property
    def mean_reward_to_go_at(self) -> np.ndarray:
        """[H] E[G_t | alive at t] for the policy itself, 0 where nobody is alive."""
        return np.divide(*self._reward_to_go, out=np.zeros(self.horizon), where=self._reward_to_go[1] > 1e-300)

    @cached_property
    def mean_reward_to_go(self) -> float:
        """E Σ_t G_t / E T: the mean of G_t over steps."""
        total, alive = self._reward_to_go
        return float(total.sum() / alive.sum())

    @cached_property
    def _reward_to_go(self) -> tuple[np.ndarray, np.ndarray]:
        """Σ_s d_t(s) V_t(s) and Σ_s d_t(s), each [H], with the true V."""
        pi = torch.from_numpy(self.pi)
        v, _ = evaluate(self.mdp, pi, self.gamma, self.horizon)
        return (self.visits * v[:-1].numpy()).sum(1), self.visits.sum(1)

    def score_moments(self, base: str) -> ScoreMoments:
        """Return what baselines of least variance subtracted from ``base`` need, computed once."""
        if base not in self._score_moments:
            self._score_moments[base] = score_moments(self, base)
        return self._score_moments[base]

    @cached_property
    def _score_moments(self) -> dict[str, ScoreMoments]:
        return {}

    @cached_property
    def chosen(self) -> np.ndarray:
        """[S, A, O] π(a | s) p_o (1 − end_o)."""
        return self.pi[:, :, None] * self.going_on

    @cached_property
    def visits(self) -> np.ndarray:
        """[H, S] probability of being alive in s at time t."""
        return occupancy(self.mdp, torch.from_numpy(self.pi), self.horizon).numpy()

    def ahead_by_action(self, weight: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """Return Σ_o weight[s, a, o] · moment[..., s'] for scalar moments [..., S]: [..., S, A]."""
        return np.einsum("sao,...sao->...sa", weight, moment[..., self.next_state])

    @cached_property
    def by_state(self) -> Successors:
        """Turns weights [S, A, O], 0 where the episode ends, into the matrix [S, S'] of their sums over actions."""
        return Successors(np.arange(self.num_states)[:, None, None], self.next_state, self.going_on > 0, self.num_states)

    @cached_property
    def by_pair(self) -> Successors:
        """Turns weights [S, A, O], 0 where the episode ends, into the matrix [S·A, S']."""
        pair = np.arange(self.pi.size).reshape(*self.pi.shape, 1)
        return Successors(pair, self.next_state, self.going_on > 0, self.num_states)


class Successors:
    """Which next states follow each row: the sparse structure, found once, that any weights of outcomes fill.

    Outcomes of one row that lead to the same state are added up.
    """

    def __init__(self, row: np.ndarray, next_state: np.ndarray, kept: np.ndarray, num_states: int) -> None:
        """Find the structure.

        Args:
            row: row of each outcome, from 0 on; broadcasts to [S, A, O].
            next_state: [S, A, O] column of each outcome.
            kept: [S, A, O] outcomes whose weight may differ from 0.
            num_states: columns.
        """
        self.kept = np.flatnonzero(kept)
        key = (row * num_states + next_state).ravel()
        cells, self.cell = np.unique(key[self.kept], return_inverse=True)
        num_rows = int(row.max()) + 1
        ends = np.searchsorted(cells, np.arange(num_rows + 1) * num_states)
        self.matrix = scipy.sparse.csr_array((np.zeros(len(cells)), cells % num_states, ends), shape=(num_rows, num_states))

    def __call__(self, weight: np.ndarray) -> scipy.sparse.csr_array:
        """Return the matrix of weights [S, A, O]."""
        out = copy.copy(self.matrix)  # shares the structure
        out.data = np.bincount(self.cell, weight.ravel()[self.kept], minlength=len(out.data))
        return out


def build(
    mdp: FiniteMDP,
    policy: nn.Module,
    v: np.ndarray | None,
    q: np.ndarray | None,
    gamma: float,
    horizon: int,
    cut: int | None = None,
    at_cut: str = "bootstrap",
    discount_weighting: bool = True,
) -> World:
    """Evaluate a policy's probabilities and scores on every state and action.

    Args:
        mdp: the finite MDP.
        policy: categorical on its states, float64.
        v: [H + 1, S] or None.
        q: [H, S, A] or None.
        gamma: γ.
        horizon: H.
        cut: L; H if None.
        at_cut: rule at the cut.
        discount_weighting: whether step t is weighted by γ^t.

    Returns:
        The world.
    """
    pi, scores, support = score_table(mdp, policy)
    num_parameters = sum(p.numel() for p in parameters(policy).values())
    cut = horizon if cut is None else cut
    return World(mdp, pi, scores, support, num_parameters, v, q, gamma, horizon, cut, at_cut, discount_weighting)
