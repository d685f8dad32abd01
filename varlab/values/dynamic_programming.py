"""Exact values, J and ∇J of a finite MDP by backward recursion over the horizon.

    V_H = 0,   Q_t(s, a) = Σ_o p_o [r_o + γ (1 − end_o) V_{t+1}(s'_o)],   V_t(s) = Σ_a π(a | s) Q_t(s, a),
    J = Σ_s ρ_0(s) V_0(s),   ∇J = Σ_t γ^t Σ_s d_t(s) Σ_a ∇π(a | s) Q_t(s, a),

with d_t(s) the probability of being alive in s at time t. Source: Reinforcement Learning: An Introduction (Sutton and Barto,
2018); policy gradient theorem (Sutton, McAllester, Singh, Mansour, 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.finite import FiniteMDP
from varlab.policies.base import parameters
from varlab.types import Trajectories, Values

#: Values and action values that are kept, at most: 8 GiB.
MOST_NUMBERS = 2**30


def policy_table(policy: nn.Module, mdp: FiniteMDP) -> Tensor:
    """Return π(a | s) [S, A] in float64, differentiable in θ.

    Raises:
        InputError: if the policy's distribution has no ``probs`` of that shape.
    """
    probs = getattr(policy(mdp.seen.to(next(policy.parameters()).device)), "probs", None)
    if probs is None or tuple(probs.shape) != (mdp.num_states, mdp.num_actions):
        raise checks.InputError(
            f"A categorical policy over {mdp.num_actions} actions in {mdp.num_states} states was expected for exact values, "
            f"but its distribution has probs of shape {None if probs is None else tuple(probs.shape)}; give one logit per action."
        )
    return probs.double()


def check_size(mdp: FiniteMDP, horizon: int) -> None:
    """Check that values at every step up to the horizon are no more numbers than :data:`MOST_NUMBERS`.

    Raises:
        InputError: if they are more.
    """
    if horizon * mdp.num_states * (mdp.num_actions + 1) > MOST_NUMBERS:
        raise checks.InputError(
            f"A horizon whose exact values fit into memory was expected, but H = {horizon} with {mdp.num_states} states and "
            f"{mdp.num_actions} actions takes more than {MOST_NUMBERS:.0e} numbers; lower horizon, or use values=critic and "
            "reference=sampled."
        )


def evaluate(mdp: FiniteMDP, pi: Tensor, gamma: float, horizon: int) -> tuple[Tensor, Tensor]:
    """Return time-indexed values of a policy.

    Args:
        mdp: the process.
        pi: [S, A] action probabilities; gradients flow through them.
        gamma: discount γ.
        horizon: H.

    Returns:
        v [H + 1, S] with v[H] = 0, and q [H, S, A].

    Raises:
        InputError: if these are too many numbers.
    """  # noqa: DOC502
    check_size(mdp, horizon)
    going_on = torch.where(mdp.terminated, 0.0, mdp.probability).to(pi.device)
    next_state, paid = mdp.next_state.to(pi.device), mdp.expected_reward.to(pi.device)
    v, q = [pi.new_zeros(mdp.num_states)], []
    for _ in range(horizon):
        q.append(paid + gamma * (going_on * v[-1][next_state]).sum(-1))
        v.append((pi * q[-1]).sum(-1))
    return torch.stack(v[::-1]), torch.stack(q[::-1])


def occupancy(mdp: FiniteMDP, pi: Tensor, horizon: int) -> Tensor:
    """Return d [H, S]: the probability of being alive in state s at time t."""
    flow = torch.einsum("sa,sax->sx", pi, mdp.transition.to(pi.device))
    d = [mdp.initial.to(pi.device)]
    for _ in range(horizon - 1):
        d.append(d[-1] @ flow)
    return torch.stack(d)


def expected_return(mdp: FiniteMDP, policy: nn.Module, gamma: float, horizon: int) -> Tensor:
    """Return J_γ = E Σ_{t<H} γ^t r_t, differentiable in θ through the recursion."""
    v, _ = evaluate(mdp, policy_table(policy, mdp), gamma, horizon)
    return mdp.initial.to(v.device) @ v[0]


def gradient(mdp: FiniteMDP, policy: nn.Module, gamma: float, horizon: int) -> tuple[Tensor, float]:
    """Return the exact policy gradient by the policy gradient theorem.

    Args:
        mdp: the process.
        policy: any policy with action probabilities on the finite states.
        gamma: discount γ, also the weight γ^t of step t.
        horizon: H.

    Returns:
        ∇J_γ [P] float64 and J_γ.
    """
    pi = policy_table(policy, mdp)
    fixed = pi.detach()
    v, q = evaluate(mdp, fixed, gamma, horizon)
    d = occupancy(mdp, fixed, horizon)
    weight = gamma ** torch.arange(horizon, dtype=torch.float64, device=pi.device)
    # One cotangent on the table of probabilities carries all time steps, so one backward pass serves any network.
    cotangent = torch.einsum("t,ts,tsa->sa", weight, d, q)
    # A parameter that the probabilities do not use, such as a value head inside the policy, has gradient 0.
    grads = torch.autograd.grad((cotangent * pi).sum(), list(parameters(policy).values()), materialize_grads=True)
    return torch.cat([g.reshape(-1) for g in grads]).double(), float(mdp.initial.to(v.device) @ v[0])


@dataclass(frozen=True)
class ExactValues:
    """Time-indexed values by dynamic programming.

    Attributes:
        v: [H + 1, S] float64.
        q: [H, S, A] float64.
    """

    v: Tensor
    q: Tensor
    source: str = "exact"
    steps: int = 0

    @classmethod
    def of(cls, mdp: FiniteMDP, policy: nn.Module, gamma: float, horizon: int) -> ExactValues:
        """Evaluate ``policy``."""
        with torch.no_grad():
            return cls(*evaluate(mdp, policy_table(policy, mdp), gamma, horizon))

    def to(self, device: torch.device) -> ExactValues:
        """Return the same values on ``device``."""
        return replace(self, v=self.v.to(device), q=self.q.to(device))

    def table(self, mdp: FiniteMDP, horizon: int) -> tuple[Tensor, Tensor]:
        """Return V [H + 1, S] and Q [H, S, A]."""
        return self.v, self.q

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Look the values up at the visited states and times.

        Args:
            traj: trajectories of the same finite MDP.
            need: which of ``v``, ``q`` and ``q_nodes`` are wanted.

        Returns:
            Values at every step.
        """
        return Values(
            v=self.v[traj.time, traj.state] if "v" in need else None,
            v_last=self.v[traj.length, traj.last_state] if "v" in need else None,
            v_stale=self.v[traj.length, traj.state[traj.last_row]] if "v" in need else None,
            q=self.q[traj.time, traj.state, traj.action] if "q" in need else None,
            q_nodes=self.q[traj.time[:, None], traj.state[:, None], traj.nodes.action] if "q_nodes" in need else None,
            source=self.source,
        )
