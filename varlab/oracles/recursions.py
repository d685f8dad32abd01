"""Exact mean and per-parameter variance of a sum of scores weighted by Φ, by backward recursion on joint moments.

Two kinds of estimator cover the field's Φ without randomness of their own. In the first, Φ_t = X_t − b_t(s_t, a_t) with

    X_t = x_t(s_t, a_t, outcome) + c X_{t+1}    (or its window of k terms, X^k = x + c X'^{k−1}, X^0 = 0),

and W_t = z_t Φ_t + u_t + κ W_{t+1} is the gradient from t on (κ = γ weighted, else 1), where u_t = Σ_a π(a | s_t) z(s_t, a)
ψ_t(s_t, a) is what averages over actions, if anything does. Given the next state the future is independent of the present, so
that for each state E X, E X², E W and E XW follow from those at t + 1, and

    E g² = Σ_t κ^{2t} E[z_t² Φ_t² + 2 κ z_t Φ_t W_{t+1} + 2 u_t E[W_t | s_t] − u_t²]

needs beside them only the probability of every state at every time. In the second, such as total_return, g = Z (X_0 − b_0)
with Z = Σ_t z_t: what X_0 − b_0 has collected before t goes forward, the moments of X_t and of Z from t on backward.

The idea of moment recursions for returns: The Variance of Discounted Markov Decision Processes (Sobel, 1982).
"""

from __future__ import annotations

import numpy as np

from varlab.estimators.recursion import Recursion
from varlab.oracles.coordinates import Step, choose, pairs_of_steps
from varlab.oracles.world import World

Moments = tuple[np.ndarray, np.ndarray]


def weighted_sum(world: World, recursion: Recursion, kappa: float) -> Moments:
    """Return E g and E g² (elementwise), each [P], of g = Σ_t κ^t (z_t (X_t − b_t) + u_t).

    Args:
        world: dynamics, policy, values.
        recursion: x_t, c, window, b_t and ψ_t.
        kappa: γ with discount weighting, else 1.

    Returns:
        First and second moment of every entry of g.
    """
    w, c = world, recursion.carry
    # X^1 … X^n, each fed by the one before it; without a window a single X feeds on itself.
    window = 1 if c == 0.0 else recursion.window
    if window is not None and window >= w.cut:
        window = None
    n = window or 1
    x1, x2 = np.zeros((n, w.num_states)), np.zeros((n, n, w.num_states))
    first, square, steps = np.zeros_like(w.pi), np.zeros_like(w.pi), []
    onward, discounted = kappa * w.chosen, kappa * c * w.chosen
    for t in range(w.cut - 1, -1, -1):
        x, b = recursion.local(t), recursion.baseline(t)
        # Moments of every X given state and action, [n, S, A] and [n, n, S, A].
        ahead1, ahead2 = (x1, x2) if window is None else (_shift(x1, 1), _shift(x2, 2))
        mixed = c * w.ahead_by_action(w.going_on * x, ahead1)
        given1 = (w.probability * x).sum(-1) + c * w.ahead_by_action(w.going_on, ahead1)
        given2 = (w.probability * x * x).sum(-1) + mixed[:, None] + mixed[None]
        given2 += c * c * w.ahead_by_action(w.going_on, ahead2)
        x1, x2 = (w.pi * given1).sum(-1), (w.pi * given2).sum(-1)
        # Φ is the last X less b: its moments, and those of its products with every X.
        phi1, x_phi = given1[-1] - b, given2[:, -1] - b * given1
        phi2 = x_phi[-1] - b * phi1
        visits = w.visits[t][:, None] * w.pi
        first += kappa**t * visits * phi1
        square += kappa ** (2 * t) * visits * phi2
        # Moments of W (0) and of those X that feed on W (1, 2, …).
        pair = 2 * kappa ** (2 * t + 1) * visits[:, :, None] * w.going_on
        flow, pairs = {(0, 0): onward}, {0: pair * (x - b[:, :, None])}
        fed = 1 if window is None else n - 1
        if fed:
            pairs[fed] = c * pair
            joint = onward * x
            flow |= {(i, 0): joint for i in range(1, fed + 1)}
            flow |= {(1, 1): discounted} if window is None else {(i, i - 1): discounted for i in range(2, fed + 1)}
        averaged = None
        if recursion.expected is not None:
            psi = recursion.expected(t)
            first += kappa**t * visits * psi
            x_phi = x_phi + x1[:, :, None] * psi  # given the state, X and what averages over its actions are independent
            averaged = psi, 2 * kappa ** (2 * t) * visits * psi
        steps.append(Step(flow, np.concatenate([phi1[None], x_phi[:fed]]), pairs, averaged))
    coordinates = choose(w)
    pairs_of_steps(w, coordinates, steps)
    return coordinates.first(first), coordinates.second(square)


def _shift(moment: np.ndarray, axes: int) -> np.ndarray:
    """Put X^0 = 0 before X^1 … X^{n−1} on the first ``axes`` axes."""
    out = np.zeros_like(moment)
    out[(slice(1, None),) * axes] = moment[(slice(None, -1),) * axes]
    return out


def total_sum(world: World, recursion: Recursion) -> Moments:
    """Return E g and E g², each [P], of g = (Σ_t z_t) (X_0 − b_0(s_0)), such as total_return with X_0 = R_γ.

    Args:
        world: dynamics, policy, and values where a cut needs them.
        recursion: x_t, c and b_0; no window.

    Returns:
        First and second moment of every entry of g.
    """
    w, c = world, recursion.carry
    x1, x2 = np.zeros(w.num_states), np.zeros(w.num_states)
    first, square, steps = np.zeros_like(w.pi), np.zeros_like(w.pi), []
    onward, squared, past = c * w.chosen, c * c * w.chosen, _collected(w, recursion)
    for t in range(w.cut - 1, -1, -1):
        x = recursion.local(t)
        given1 = (w.probability * x).sum(-1) + c * w.ahead_by_action(w.going_on, x1)
        given2 = (w.probability * x * x).sum(-1) + 2 * c * w.ahead_by_action(w.going_on * x, x1)
        given2 += c * c * w.ahead_by_action(w.going_on, x2)
        x1, x2 = (w.pi * given1).sum(-1), (w.pi * given2).sum(-1)
        # X_0 − b_0 = Y + c^t X_t with Y collected before t; E Z = 0 from any state on.
        zero, one, two = past[t][:, :, None]
        first += c**t * w.visits[t][:, None] * w.pi * given1
        square += w.pi * (two + 2 * one * given1 + zero * given2)
        # Moments of Z X (0) and Z X² (1).
        pair = 2 * c * w.pi[:, :, None] * w.going_on
        pairs = {0: 2 * pair * (zero[:, :, None] * x + one[:, :, None]), 1: c * pair * zero[:, :, None]}
        flow = {(0, 0): onward, (1, 0): 2 * onward * x, (1, 1): squared}
        steps.append(Step(flow, np.stack([given1, given2]), pairs))
    coordinates = choose(w)
    pairs_of_steps(w, coordinates, steps)
    return coordinates.first(first), coordinates.second(square)


def _collected(world: World, recursion: Recursion) -> np.ndarray:
    """Return E[c^{2t} 1], E[c^t Y 1] and E[Y² 1], [L, 3, S], of Y = Σ_{u<t} c^u x_u − b_0, 1 meaning alive in s at t."""
    w, c = world, recursion.carry
    out = np.zeros((w.cut, 3, w.num_states))
    b = recursion.baseline(0)[:, 0]
    out[0] = w.mdp.initial.numpy() * np.stack(np.broadcast_arrays(1.0, -b, b**2))
    for t in range(w.cut - 1):
        x = recursion.local(t)
        zero, one, two = (m[:, None, None] for m in out[t])
        for m, weight in enumerate((c * c * zero, c * (one + x * zero), two + 2 * x * one + x * x * zero)):
            out[t + 1, m] = np.bincount(w.next_state.ravel(), (w.chosen * weight).ravel(), minlength=w.num_states)
    return out
