"""A finite model's action values together with their derivatives in θ, as coefficients of scores.

Differentiating Q_t(s, a) = r(s, a) + γ Σ p V_{t+1}(s') and V_t(s) = Σ_a π(a | s) Q_t(s, a) in θ,

    ∇Q_t(s, a) = γ Σ p ∇V_{t+1}(s'),    ∇V_t(s) = Σ_a π(a | s) (z(s, a) Q_t(s, a) + ∇Q_t(s, a)),    ∇V_H = 0,

so that ∇Q_t(s, a) = Σ_{s', a'} C_t[(s, a), (s', a')] z(s', a') with numbers C that need no score. Source: From Importance
Sampling to Doubly Robust Policy Gradient (Huang and Jiang, 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from varlab.envs.finite import FiniteMDP
from varlab.values.dynamic_programming import evaluate


@dataclass(frozen=True)
class ModelGradients:
    """Action values of a model and their derivatives; float64.

    Attributes:
        q: [H, S, A] Q_t(s, a).
        coefficients: [H, S, A, S·A] C_t.
    """

    q: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, mdp: FiniteMDP, pi: Tensor, gamma: float, horizon: int) -> ModelGradients:
        """Run both recursions backwards.

        Args:
            mdp: the model.
            pi: [S, A] action probabilities.
            gamma: γ.
            horizon: H.

        Returns:
            The values and coefficients.
        """
        _, q = evaluate(mdp, pi, gamma, horizon)
        (states, actions), pairs = pi.shape, pi.numel()
        onward = mdp.transition.to(pi.device).flatten(0, 1)  # [S·A, S'], episodes that end left out
        own = torch.eye(states, dtype=pi.dtype, device=pi.device)[:, :, None]  # [S, S', 1]
        of_v = pi.new_zeros(states, pairs)
        made = []
        for t in range(horizon - 1, -1, -1):
            of_q = (gamma * onward @ of_v).unflatten(0, (states, actions))
            of_v = (own * (pi * q[t])).flatten(1) + (pi.unsqueeze(2) * of_q).sum(1)
            made.append(of_q)
        return cls(q, torch.stack(made[::-1]))
