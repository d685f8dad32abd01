"""Scores z(s, a) of a policy in every state of a finite MDP, its exact Fisher matrix, and the pseudo-inverse of that."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev

from varlab.envs.finite import FiniteMDP
from varlab.policies.base import log_prob, parameters
from varlab.policies.networks import SoftmaxTable
from varlab.values.dynamic_programming import occupancy, policy_table


def score_table(mdp: FiniteMDP, policy: nn.Module) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Evaluate a policy's probabilities and scores on every state and action.

    Args:
        mdp: the finite MDP.
        policy: categorical on its states, float64.

    Returns:
        π [S, A], the entries of z(s, a) on the state's support [S, A, D], and which parameters they are [S, D], None if D = P.
    """
    theta = {name: p.detach() for name, p in parameters(policy).items()}
    with torch.no_grad():
        pi = policy_table(policy, mdp).cpu().numpy()
    if type(policy) is SoftmaxTable and len(theta) == 1:
        s, a = pi.shape
        return pi, np.eye(a)[None] - pi[:, None, :], np.arange(s * a).reshape(s, a)
    seen = mdp.seen.to(next(iter(theta.values())).device)
    actions = torch.arange(mdp.num_actions, device=seen.device)

    def log_pi(t: dict[str, torch.Tensor]) -> torch.Tensor:
        distribution = functional_call(policy, t, (seen,), tie_weights=True)
        return torch.stack([log_prob(distribution, a.expand(len(seen))) for a in actions], 1)

    jacobian = jacrev(log_pi)(theta)
    return pi, torch.cat([j.reshape(*pi.shape, -1) for j in jacobian.values()], 2).double().cpu().numpy(), None


def visits(mdp: FiniteMDP, pi: np.ndarray, horizon: int, gamma: float) -> np.ndarray:
    """Return μ(s) = Σ_{t<H} γ^t d_t(s), [S]."""
    d = occupancy(mdp, torch.from_numpy(pi), horizon).numpy()
    return gamma ** np.arange(horizon) @ d


def inverse_fisher(mdp: FiniteMDP, policy: nn.Module, horizon: int, gamma: float, rcond: float) -> np.ndarray:
    """Return F⁺, the pseudo-inverse of F = Σ_{t<H} γ^t Σ_s d_t(s) E_a[z(s, a) z(s, a)ᵀ].

    Eigenvalues of at most ``rcond`` times the largest count as 0. A softmax table has one such direction in every state (all
    logits raised alike), and all of those of a state that is never reached; its F has one block for each state, and is inverted
    block by block. Source: A Natural Policy Gradient (Kakade, 2001).

    Args:
        mdp: the finite MDP.
        policy: categorical on its states, float64.
        horizon: H.
        gamma: weight γ^t of step t.
        rcond: relative size below which an eigenvalue counts as 0.

    Returns:
        [P, P].
    """
    pi, z, support = score_table(mdp, policy)
    weight = visits(mdp, pi, horizon, gamma)[:, None] * pi
    if support is None:
        flat = z.reshape(pi.size, -1)
        return _pseudo_inverse((flat.T * weight.ravel()) @ flat, rcond)
    blocks = _pseudo_inverse(np.einsum("sa,sai,saj->sij", weight, z, z), rcond)
    out = np.zeros((support.size, support.size))
    out[support[:, :, None], support[:, None, :]] = blocks
    return out


def _pseudo_inverse(symmetric: np.ndarray, rcond: float) -> np.ndarray:
    """Return the pseudo-inverse of symmetric matrices [..., D, D] that are blocks of one."""
    values, vectors = np.linalg.eigh(symmetric)
    kept = values > rcond * values.max(initial=0.0)
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    return np.einsum("...ik,...k,...jk->...ij", vectors, inverse, vectors)
