"""A finite MDP together with a policy's scores and values, as the arrays that exact recursions run on.

Scores of a softmax table touch only the row of their own state; ``support`` keeps that, so that the Taxi world with its 3,000
parameters stays cheap. Any other policy has the dense support of all parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch.func import functional_call, jacrev

from varlab.envs.finite import FiniteMDP
from varlab.policies.base import parameters
from varlab.policies.networks import SoftmaxTable
from varlab.values.dynamic_programming import evaluate, occupancy, policy_table


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
        d = occupancy(self.mdp, pi, self.horizon)
        return (d * v[:-1]).sum(1).numpy(), d.sum(1).numpy()

    # Expectations over action and outcome.

    def ahead(self, weight: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """Return Σ_{a,o} weight[s, a, o] · moment[s'], [S, …].

        Args:
            weight: [S, A, O].
            moment: [S] or [S, P].

        Returns:
            [S] or [S, P].
        """
        s, a, o = weight.shape
        index = np.arange(0, s * a * o + 1, a * o)
        matrix = scipy.sparse.csr_array((weight.ravel(), self.next_state.ravel(), index), shape=(s, s))
        return matrix @ moment

    def ahead_by_action(self, weight: np.ndarray, moment: np.ndarray) -> np.ndarray:
        """Return Σ_o weight[s, a, o] · moment[s'] for scalar moments [S]: [S, A]."""
        return (weight * moment[self.next_state]).sum(-1)

    def scored(self, weight: np.ndarray, power: int = 1) -> np.ndarray:
        """Return Σ_a π(a | s) z(s, a)^power weight[s, a], [S, P]."""
        part = np.einsum("sa,sad->sd", self.pi * weight, self.scores**power)
        return self._spread(part)

    def scored_ahead(self, terms: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return Σ_a π(a | s) z(s, a) Σ_o Σ_terms weight[s, a, o] · moment[s'], [S, P].

        Args:
            terms: pairs of weight [S, A, O] and moment [S, P].

        Returns:
            [S, P].
        """
        out = np.zeros(self.scores.shape[::2])
        for a in range(self.pi.shape[1]):
            if self.support is None:
                total = sum(self._one_action(weight[:, a], a) @ moment for weight, moment in terms)
            else:
                total = 0.0
                for weight, moment in terms:
                    near = moment[self.next_state[:, a][:, :, None], self.support[:, None, :]]  # [S, O, D]
                    total = total + np.einsum("so,sod->sd", weight[:, a], near)
            out += self.pi[:, a, None] * self.scores[:, a] * total
        return self._spread(out)

    def _one_action(self, weight: np.ndarray, a: int) -> scipy.sparse.csr_array:
        s, o = weight.shape
        index = np.arange(0, s * o + 1, o)
        return scipy.sparse.csr_array((weight.ravel(), self.next_state[:, a].ravel(), index), shape=(s, s))

    def _spread(self, part: np.ndarray) -> np.ndarray:
        """Put [S, D] entries on the support into [S, P]."""
        if self.support is None:
            return part
        out = np.zeros((part.shape[0], self.num_parameters))
        np.put_along_axis(out, self.support, part, axis=1)
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

    Returns:
        The world.
    """
    theta = {name: p.detach() for name, p in parameters(policy).items()}
    with torch.no_grad():
        pi = policy_table(policy, mdp).cpu().numpy()
    num_parameters = sum(p.numel() for p in theta.values())
    support = None
    if type(policy) is SoftmaxTable and len(theta) == 1:
        s, a = pi.shape
        scores = np.eye(a)[None] - pi[:, None, :]
        support = np.arange(s * a).reshape(s, a)
    else:
        seen = mdp.seen.to(next(iter(theta.values())).device)
        jacobian = jacrev(lambda t: functional_call(policy, t, (seen,), tie_weights=True).logits)(theta)
        scores = torch.cat([j.flatten(2) for j in jacobian.values()], 2).double().cpu().numpy()
    return World(mdp, pi, scores, support, num_parameters, v, q, gamma, horizon, horizon if cut is None else cut, at_cut)
