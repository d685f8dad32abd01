"""Exact E[w_t² ‖z_t‖² 1{s_t = s}] and E[w_t ⟨z_t, g_0⟩ 1{s_t = s}]: what the variance of g = g_0 − Σ_t w_t b_t(s_t) z_t needs.

g_0 is Σ_u κ^u z_u G_u (w_t = κ^t), or Σ_u z_u R_γ (w_t = 1). The products of z_t with the terms of g_0 fall into three parts. The
terms u > t are the gradient of what is to come: W_t(s) = E[Σ_{u ≥ t} κ^{u−t} z_u G_u | s_t = s] follows from W_{t+1}. Of a term
u < t only what is earned from t on remains, γ^{t−u} G_t, as E[z_t | s_t] = 0, and F_t, E[Σ_{u<t} κ^u γ^{t−u} z_u 1{s_t = s}],
goes forward. For the total return both hold with κ = γ, and the term u = t has what was earned before t beside γ^t G_t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    from varlab.estimators.recursion import Recursion
    from varlab.oracles.world import World


@dataclass(frozen=True)
class ScoreMoments:
    """Moments of a world for one base, float64; w_t is the weight of the base's steps.

    Attributes:
        norm: [H, S] E[w_t² ‖z_t‖² 1{s_t = s}], 0 from the cut on.
        product: [H, S] E[w_t ⟨z_t, g_0⟩ 1{s_t = s}].
        own: [H, S] E[w_t² ‖z_t‖² G_t 1{s_t = s}].
        norm_by_parameter: [P] Σ_t E[h_t(s_t)² w_t² z_tp²], h = 1 if not given.
        product_by_parameter: [P] Σ_t E[h_t(s_t) w_t z_tp g_0p].
    """

    norm: np.ndarray
    product: np.ndarray
    own: np.ndarray
    norm_by_parameter: np.ndarray
    product_by_parameter: np.ndarray

    @property
    def best_by_parameter(self) -> np.ndarray:
        """[P] E[S_p g_0p] / E[S_p²] with S = Σ_t w_t z_t: where h = 1, the best b for each parameter; 0 for one that is still."""
        a = self.norm_by_parameter
        return np.divide(self.product_by_parameter, a, out=np.zeros_like(a), where=a > 0)


class _Entries:
    """Moments [S, P], and the D entries of each state's own score within them."""

    def __init__(self, world: World) -> None:
        """Find the support of the scores."""
        self.world = world
        s, a, d = world.scores.shape
        self.rows = np.arange(s)[:, None]
        self.support = np.arange(d)[None] if world.support is None else world.support
        z = world.scores.reshape(s * a, d)
        if world.support is not None:
            columns, ends = np.repeat(self.support, a, axis=0), np.arange(s * a + 1) * d
            z = scipy.sparse.csr_array((z.ravel(), columns.ravel(), ends), shape=(s * a, world.num_parameters))
        self.z = z

    def zeros(self) -> np.ndarray:
        """Return a moment of zeros [S, P]."""
        return np.zeros((self.world.num_states, self.world.num_parameters))

    def own(self, moment: np.ndarray) -> np.ndarray:
        """Return the entries of each state's own score, [S, D]."""
        return moment[self.rows, self.support]

    def add_own(self, moment: np.ndarray, x: np.ndarray) -> None:
        """Add x [S, D] to them."""
        moment[self.rows, self.support] += x

    def ahead(self, moment: np.ndarray) -> np.ndarray:
        """Return Σ_o p_o (1 − end_o) moment[s'] at the entries of the score of s, [S, A, D]."""
        w = self.world
        if w.support is None:
            return (w.by_pair(w.going_on) @ moment).reshape(w.scores.shape)
        near = moment[w.next_state[..., None], self.support[:, None, None, :]]
        return np.einsum("sao,saod->sad", w.going_on, near)

    def arriving(self, weight: np.ndarray) -> np.ndarray:
        """Return Σ_{s,a,o} weight[s, a, o] z(s, a) 1{s'_o = s'}, [S', P]."""
        out = self.world.by_pair(weight).T @ self.z
        return out.toarray() if scipy.sparse.issparse(out) else out

    def total(self, x: np.ndarray) -> np.ndarray:
        """Return Σ_s of x [S, D] by parameter, [P]."""
        if self.world.support is None:
            return x.sum(0)
        return np.bincount(self.support.ravel(), x.ravel(), minlength=self.world.num_parameters)


def score_moments(world: World, base: str, h: Callable[[int], np.ndarray] | None = None) -> ScoreMoments:
    """Return the moments of a world by one recursion backward and one forward.

    Args:
        world: dynamics and policy.
        base: reward_to_go or total_return.
        h: t → [S] for the moments by parameter; 1 if None.

    Returns:
        The moments.
    """
    w, gamma, total = world, world.gamma, base == "total_return"
    kappa = gamma if total or w.discount_weighting else 1.0
    step = 1.0 if total else kappa
    entries, z, z2 = _Entries(w), w.scores, w.scores**2
    shape = (w.horizon, w.num_states)
    norm, product, own = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    square_p, product_p = np.zeros((2, w.num_parameters))

    def add(t: int, x: np.ndarray) -> None:
        product[t] += x.sum(1)
        product_p[:] += entries.total(x if h is None else h(t)[:, None] * x)

    q, before = _rewards_ahead(w), _rewards_before(w) if total else np.zeros(shape)
    gained = [np.einsum("sa,sad->sd", w.pi * q[t], z) for t in range(w.cut)]  # E[z_t G_t | s_t]
    spread, onward = np.einsum("sa,sad->sd", w.pi, z2), w.by_state(w.chosen)
    future = entries.zeros()  # W_{t+1}
    for t in range(w.cut - 1, -1, -1):
        weight, visits = step**t, w.visits[t][:, None]
        earned = visits * np.einsum("sa,sad->sd", w.pi * q[t], z2)
        later = visits * np.einsum("sa,sad,sad->sd", w.pi, z, entries.ahead(future))
        add(t, weight * (kappa**t * (earned + kappa * later) + before[t][:, None] * spread))
        own[t], norm[t] = weight**2 * earned.sum(1), weight**2 * (visits * spread).sum(1)
        square_p += entries.total(weight**2 * visits * spread * (1.0 if h is None else h(t)[:, None] ** 2))
        future = kappa * (onward @ future)
        entries.add_own(future, gained[t])
    past = entries.zeros()  # F_t
    for t in range(w.cut):
        add(t, step**t * entries.own(past) * gained[t])
        past = gamma * (onward.T @ past + kappa**t * entries.arriving(w.visits[t][:, None, None] * w.chosen))
    return ScoreMoments(norm, product, own, square_p, product_p)


def _rewards_ahead(world: World) -> np.ndarray:
    """E[G_t | s_t = s, a_t = a], [L, S, A], with what the rule puts after a cut."""
    w, ahead = world, np.zeros(world.num_states)
    out = np.zeros((w.cut, *w.pi.shape))
    for t in range(w.cut - 1, -1, -1):
        out[t] = (w.probability * w.reward(t)).sum(-1) + w.gamma * w.ahead_by_action(w.going_on, ahead)
        ahead = (w.pi * out[t]).sum(-1)
    return out


def _rewards_before(world: World) -> np.ndarray:
    """E[Σ_{u<t} γ^u r_u 1{s_t = s}], [H, S]."""
    w = world
    out = np.zeros((w.horizon, w.num_states))
    for t in range(w.cut - 1):
        earned = w.chosen * (out[t][:, None, None] + w.gamma**t * w.visits[t][:, None, None] * w.reward(t))
        out[t + 1] = np.bincount(w.next_state.ravel(), earned.ravel(), minlength=w.num_states)
    return out


def less_baseline(world: World, recursion: Recursion, second: np.ndarray) -> np.ndarray:
    """Return E g² by parameter of g = g_0 − Σ_t b_t(s_t) z_t or g_0 − b ∘ Σ_t w_t z_t.

    Args:
        world: dynamics and policy.
        recursion: of g_0, with ``later`` or ``by_parameter``.
        second: [P] E g_0².

    Returns:
        [P] E g².
    """
    base = "total_return" if recursion.total else "reward_to_go"
    found, b = score_moments(world, base, recursion.later), recursion.by_parameter
    b = np.ones_like(second) if b is None else b
    return second - 2 * b * found.product_by_parameter + b**2 * found.norm_by_parameter
