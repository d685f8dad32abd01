"""Exact mean and per-parameter variance of g = Σ_t w_t z_t Φ_t by backward recursion on joint moments.

Two kinds of estimator cover the field's Φ without randomness of their own. In the first, Φ_t = X_t − b_t(s_t) with

    X_t = x_t(s_t, a_t, outcome) + c X_{t+1}    (or its window of k terms, X^k = x + c X'^{k−1}, X^0 = 0),

and W_t = z_t Φ_t + κ W_{t+1} is the gradient from t on (κ = γ weighted, else 1). Given the next state the future is
independent of the present, so that for each state E X, E X², E W, E XW, E W² follow from those at t + 1. In the second,
total_return, g = Z R with Z = Σ z_t, and the moments E Zⁱ Gʲ, i, j ≤ 2, close.

The idea of moment recursions for returns: The Variance of Discounted Markov Decision Processes (Sobel, 1982).
"""

from __future__ import annotations

import numpy as np

from varlab.estimators.recursion import Recursion
from varlab.oracles.world import World

Moments = tuple[np.ndarray, np.ndarray]


def weighted_sum(world: World, recursion: Recursion, kappa: float) -> Moments:
    """Return E g and E g² (elementwise), each [P], of g = Σ_t κ^t z_t (X_t − b_t).

    Args:
        world: dynamics, policy, values.
        recursion: x_t, c, window and b_t.
        kappa: γ with discount weighting, else 1.

    Returns:
        First and second moment of every entry of g.
    """
    c, w = recursion.carry, world
    # Copies of X: one that feeds on itself, or X^1 … X^k of which X^j feeds on X^{j−1} and X^0 = 0.
    copies = 1 if recursion.window is None else recursion.window
    before = [0] if recursion.window is None else [None, *range(copies - 1)]
    num_states, p = w.pi.shape[0], w.num_parameters
    x1 = np.zeros((copies, num_states))
    x2 = np.zeros((copies, copies, num_states))
    w1, w2 = np.zeros((num_states, p)), np.zeros((num_states, p))
    xw = [np.zeros((num_states, p)) for _ in range(copies)]
    chosen = w.pi[:, :, None] * w.going_on

    def previous(moment: np.ndarray | list[np.ndarray], j: int) -> np.ndarray | None:
        return None if before[j] is None else moment[before[j]]

    for t in range(w.cut - 1, -1, -1):
        x = recursion.local(t)
        b = np.zeros(num_states) if recursion.subtract is None else recursion.subtract(t)
        by_action = np.empty((copies, num_states, w.pi.shape[1]))
        products = np.empty((copies, copies, num_states, w.pi.shape[1]))
        for i in range(copies):
            later_i = previous(x1, i)
            by_action[i] = (w.probability * x).sum(-1)
            if later_i is not None:
                by_action[i] += c * w.ahead_by_action(w.going_on, later_i)
            for j in range(copies):
                later_j = previous(x1, j)
                term = (w.probability * x * x).sum(-1)
                for later in (later_i, later_j):
                    if later is not None:
                        term = term + c * w.ahead_by_action(w.going_on * x, later)
                if before[i] is not None and before[j] is not None:
                    term = term + c * c * w.ahead_by_action(w.going_on, x2[before[i], before[j]])
                products[i, j] = term
        last = copies - 1  # Φ uses the longest copy
        phi1 = by_action[last] - b[:, None]
        phi2 = products[last, last] - 2 * b[:, None] * by_action[last] + (b**2)[:, None]
        local_w = w.ahead(chosen * x, w1)
        terms = [(w.going_on * (x - b[:, None, None]), w1)]
        if before[last] is not None:
            terms.append((c * w.going_on, xw[before[last]]))
        new_w2 = w.scored(phi2, 2) + 2 * kappa * w.scored_ahead(terms) + kappa**2 * w.ahead(chosen, w2)
        new_xw = []
        for j in range(copies):
            later = previous(xw, j)
            ahead = local_w if later is None else local_w + c * w.ahead(chosen, later)
            new_xw.append(w.scored(products[j, last] - b[:, None] * by_action[j]) + kappa * ahead)
        w1 = w.scored(phi1) + kappa * w.ahead(chosen, w1)
        w2, xw = new_w2, new_xw
        x1 = (w.pi * by_action).sum(-1)
        x2 = (w.pi * products).sum(-1)
    initial = w.mdp.initial.numpy()
    return initial @ w1, initial @ w2


def total_return(world: World) -> Moments:
    """Return E g and E g², each [P], of g = (Σ_t z_t) R_γ.

    Args:
        world: dynamics, policy, and values where a cut needs them.

    Returns:
        First and second moment of every entry of g.
    """
    w, c = world, world.gamma
    shape = (w.pi.shape[0], w.num_parameters)
    g1, g2 = np.zeros(shape[0]), np.zeros(shape[0])
    # m[i][j] = E[Zⁱ Gʲ | s]; E[Z | s] = 0.
    m11, m12, m20, m21, m22 = (np.zeros(shape) for _ in range(5))
    chosen = w.pi[:, :, None] * w.going_on
    for t in range(w.cut - 1, -1, -1):
        x = w.reward(t)
        a1 = (w.probability * x).sum(-1) + c * w.ahead_by_action(w.going_on, g1)
        a2 = (w.probability * x * x).sum(-1) + 2 * c * w.ahead_by_action(w.going_on * x, g1)
        a2 = a2 + c * c * w.ahead_by_action(w.going_on, g2)
        new22 = w.scored(a2, 2) + 2 * w.scored_ahead([(2 * c * w.going_on * x, m11), (c * c * w.going_on, m12)])
        new22 += w.ahead(chosen * x * x, m20) + 2 * c * w.ahead(chosen * x, m21) + c * c * w.ahead(chosen, m22)
        new21 = w.scored(a1, 2) + 2 * w.scored_ahead([(c * w.going_on, m11)])
        new21 += w.ahead(chosen * x, m20) + c * w.ahead(chosen, m21)
        new12 = w.scored(a2) + 2 * c * w.ahead(chosen * x, m11) + c * c * w.ahead(chosen, m12)
        m11 = w.scored(a1) + c * w.ahead(chosen, m11)
        m20 = w.scored(np.ones_like(a1), 2) + w.ahead(chosen, m20)
        m12, m21, m22 = new12, new21, new22
        g1, g2 = (w.pi * a1).sum(-1), (w.pi * a2).sum(-1)
    initial = w.mdp.initial.numpy()
    return initial @ m11, initial @ m22
