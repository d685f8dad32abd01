"""Exact variance components of g = Σ_t w_t z_t Φ_t on a finite MDP: state, action, trajectory, and covariances across time.

By the law of total variance, for the term of one time step, g_t = w_t z_t Φ_t (or w_t (z_t Φ_t + u_t) where an estimator
averages over actions: u_t = Σ_a π(a | s_t) z(s_t, a) ψ_t(s_t, a)),

    tr Cov g_t = tr Var_s E[g_t | s_t] + E_s tr Var_a E[g_t | s_t, a_t] + E_{s,a} tr Var[g_t | s_t, a_t],

and for the whole trajectory

    tr Cov g = Σ_t tr Cov g_t + 2 Σ_{t<u} tr Cov(g_t, g_u).

An episode that has ended stays in one further state in which g_t = 0. Source of the three parts: The Mirage of
Action-Dependent Baselines in Reinforcement Learning (Tucker et al., 2018), which leaves the covariances out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch
from torch import nn

from varlab import checks, estimators, policies
from varlab.envs.base import Environment
from varlab.envs.registry import make as make_env
from varlab.estimators.base import Estimator
from varlab.estimators.recursion import Recursion
from varlab.oracles.exact import recursion_of, step_discount, world_of
from varlab.oracles.world import World
from varlab.types import Trajectories, Values
from varlab.values.dynamic_programming import ExactValues

#: Numbers in one field [S, starts, P] that is carried forward; starting times are taken in groups of that size.
FIELD_SIZE = 2**22


@dataclass(frozen=True)
class Components:
    """Where the variance of one estimator comes from; all float64.

    Attributes:
        name: the Φ.
        state: [T] tr Var_s E[g_t | s_t].
        action: [T] E_s tr Var_a E[g_t | s_t, a_t].
        trajectory: [T] E_{s,a} tr Var[g_t | s_t, a_t].
        cross: [T, T] tr Cov(g_t, g_u) off the diagonal, symmetric, 0 on it.
    """

    name: str
    state: np.ndarray
    action: np.ndarray
    trajectory: np.ndarray
    cross: np.ndarray

    @property
    def step(self) -> np.ndarray:
        """[T] tr Cov g_t, the sum of the three parts."""
        return self.state + self.action + self.trajectory

    @property
    def lag(self) -> np.ndarray:
        """[T] what pairs of steps l apart add to the variance: 2 Σ_t tr Cov(g_t, g_{t+l}); 0 at l = 0."""
        return np.array([2 * np.trace(self.cross, offset=lag) for lag in range(len(self.cross))])

    @property
    def total(self) -> float:
        """Tr Cov g = Σ_t tr Cov g_t + 2 Σ_{t<u} tr Cov(g_t, g_u)."""
        return float(self.step.sum() + self.cross.sum())


def components(
    env: Environment | str,
    policy: nn.Module,
    phi: str | Estimator,
    *,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    values: str | Callable[[Trajectories, frozenset[str]], Values] = "exact",
    cut: int | None = None,
    at_cut: str = "bootstrap",
) -> Components:
    """Return the exact parts of the variance of one estimator; about T² / 2 passes over the outcomes, each P wide.

    Args:
        env: a world with finite dynamics, or the id of one.
        policy: categorical on its states; evaluated in float64.
        phi: a name or an object; baselines that were not fitted take their population values.
        gamma: discount γ.
        discount_weighting: whether step t is weighted by γ^t.
        values: ``exact``, or any source with a ``table`` (critic, functions), right or wrong.
        cut: L ≤ H.
        at_cut: terminal, bootstrap or wrong_state.

    Returns:
        The components, T = L steps.

    Raises:
        InputError: for a world without finite dynamics, more than one Φ, or a Φ that the recursion does not cover.
    """
    env = make_env(env) if isinstance(env, str) else env
    if isinstance(values, str):
        checks.one_of("source of values", values, ("exact",))
    if env.finite is None:
        raise checks.InputError(
            f"A finite MDP was expected for exact components, but {env.name} has no outcome lists; estimate them by sampling."
        )
    chosen = estimators.resolve(phi)
    if len(chosen) != 1:
        raise checks.InputError(f"One Φ was expected for exact components, but {len(chosen)} came; call once for each.")
    checks.in_range("gamma", gamma, 0.0, 1.0)
    checks.one_of("rule at_cut", at_cut, estimators.AT_CUT)
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    source = ExactValues.of(env.finite, double, gamma, env.horizon) if isinstance(values, str) else values
    return components_of(world_of(env, double, source, gamma, cut, at_cut), chosen[0], discount_weighting)


def components_of(world: World, estimator: Estimator, discount_weighting: bool) -> Components:
    """Return the exact parts of the variance of one estimator.

    Args:
        world: dynamics, policy and values.
        estimator: the choice of Φ.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        The components.
    """
    recursion = recursion_of(world, estimator)
    kappa = step_discount(world, estimator, discount_weighting)
    steps = world.cut
    weight = kappa ** np.arange(steps)
    future, past = _future(world, recursion), _past(world, recursion)
    norm = (world.scores**2).sum(-1)  # [S, A] ‖z(s, a)‖²
    state, action, trajectory = np.empty((3, steps))
    means = np.empty((steps, world.num_parameters))
    for t in range(steps):
        alive = past.alive[t]
        centre, spread = _given_action(recursion, future, past, t)
        sampled = _scored(world, centre)  # E[z_t Φ_t | s_t] on the support
        given_state = sampled if recursion.expected is None else sampled + _scored(world, recursion.expected(t))
        means[t] = weight[t] * _gathered(world, alive[:, None] * given_state)
        state[t] = weight[t] ** 2 * (alive @ (given_state**2).sum(1)) - means[t] @ means[t]
        of_action = (world.pi * norm * centre**2).sum(1) - (sampled**2).sum(1)
        action[t] = weight[t] ** 2 * (alive @ of_action)
        trajectory[t] = weight[t] ** 2 * (alive @ (world.pi * norm * spread).sum(1))
    cross = _products(world, recursion, future, past) * np.outer(weight, weight) - means @ means.T
    cross = np.triu(cross, 1)
    return Components(estimator.label, state, action, trajectory, cross + cross.T)


@dataclass(frozen=True)
class _Future:
    """Moments of X_t given state and action; copy j − 1 is the window of j terms, and a single copy has no end.

    Attributes:
        first: [T, copies, S, A] E X^j.
        second: [T, copies, S, A] E[X^j X^k] with the longest window k.
        shift: how many copies shorter the window is after one step: 1, or 0 for the single copy.
    """

    first: np.ndarray
    second: np.ndarray
    shift: int

    def rest(self, t: int, lags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return at t, for Φ that began ``lags`` [n] steps earlier, the moments of what their window still holds, [n, S, A]."""
        copy = self.first.shape[1] - 1 - self.shift * lags
        inside = (copy >= 0)[:, None, None]
        return np.where(inside, self.first[t, copy.clip(0)], 0.0), np.where(inside, self.second[t, copy.clip(0)], 0.0)


def _future(world: World, recursion: Recursion) -> _Future:
    c, steps = recursion.carry, world.cut
    endless = recursion.window is None or recursion.window >= steps
    copies, shift = (1, 0) if endless else (recursion.window, 1)
    s, a = world.pi.shape
    first, second = np.empty((2, steps, copies, s, a))
    later1, later2 = np.zeros((copies, s)), np.zeros((copies, copies, s))
    for t in range(steps - 1, -1, -1):
        x = recursion.local(t)
        going, to = world.going_on, world.next_state
        if shift:  # X^j = x + c X'^{j−1}, X^0 = 0
            later1 = np.pad(later1[:-1], ((1, 0), (0, 0)))
            later2 = np.pad(later2[:-1, :-1], ((1, 0), (1, 0), (0, 0)))
        mixed = c * (going * x * later1[:, to]).sum(-1)
        both = (world.probability * x * x).sum(-1) + mixed[:, None] + mixed[None] + c * c * (going * later2[..., to]).sum(-1)
        first[t] = (world.probability * x).sum(-1) + c * (going * later1[:, to]).sum(-1)
        second[t] = both[:, -1]
        later1, later2 = (world.pi * first[t]).sum(-1), (world.pi * both).sum(-1)
    return _Future(first, second, shift)


@dataclass(frozen=True)
class _Past:
    """What has happened before step t, joint with s_t; [T, S] each.

    Attributes:
        alive: P(s_t = s).
        first: E[R 1{s_t = s}], R = Σ_{j<t} c^j x_j − b_0, where every Φ is the whole X_0 − b_0; else zero.
        second: the same of R².
    """

    alive: np.ndarray
    first: np.ndarray
    second: np.ndarray


def _past(world: World, recursion: Recursion) -> _Past:
    alive, first, second = np.zeros((3, world.cut, world.num_states))
    alive[0] = world.mdp.initial.numpy()
    if recursion.total and recursion.subtract is not None:
        first[0], second[0] = -alive[0] * recursion.subtract(0), alive[0] * recursion.subtract(0) ** 2
    chosen = world.pi[:, :, None] * world.going_on
    onward = _onward(world, chosen)
    for t in range(world.cut - 1):
        alive[t + 1] = onward @ alive[t]
        if recursion.total:
            x = recursion.carry**t * recursion.local(t)
            with_x, with_square = _onward(world, chosen * x), _onward(world, chosen * x * x)
            first[t + 1] = onward @ first[t] + with_x @ alive[t]
            second[t + 1] = onward @ second[t] + 2 * with_x @ first[t] + with_square @ alive[t]
    return _Past(alive, first, second)


def _given_action(recursion: Recursion, future: _Future, past: _Past, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of Φ_t given state and action, [S, A] each."""
    mean = future.first[t, -1]
    variance = np.maximum(future.second[t, -1] - mean**2, 0.0)  # rounding may leave a negative zero
    if not recursion.total:
        return mean - recursion.baseline(t), variance
    # Given s_t, what is past and what is to come are independent.
    alive, scale = past.alive[t], recursion.carry**t
    before, square = (np.divide(m[t], alive, out=np.zeros_like(alive), where=alive > 0) for m in (past.first, past.second))
    return before[:, None] + scale * mean, (square - before**2)[:, None] + scale**2 * variance


def _products(world: World, recursion: Recursion, future: _Future, past: _Past) -> np.ndarray:
    """Return E[(Φ_t z_t + u_t) · (z_u Φ_u + u_u)] for t < u, [T, T], by carrying two fields forward from every t.

    The fields, joint with s_u, are E[z_t 1{s_u}] and E[(z_t F + u_t) 1{s_u}], where F is the part of Φ_t settled before u.
    """
    out = np.zeros((world.cut, world.cut))
    size = max(1, FIELD_SIZE // (world.num_states * world.num_parameters))
    for begin in range(0, world.cut - 1, size):
        starts = np.arange(begin, min(begin + size, world.cut - 1))
        out[starts] = _products_from(world, recursion, future, past, starts)
    return out


def _products_from(world: World, recursion: Recursion, future: _Future, past: _Past, starts: np.ndarray) -> np.ndarray:
    """Return rows ``starts`` of :func:`_products`."""
    c, shape = recursion.carry, (world.num_states, len(starts), world.num_parameters)
    out = np.zeros((len(starts), world.cut))
    score, settled = np.zeros(shape), np.zeros(shape)
    chosen = world.pi[:, :, None] * world.going_on
    onward = _onward(world, chosen)
    for u in range(starts[0], world.cut):
        begun = min(u - starts[0], len(starts))  # fields of the first so many starts are under way
        lags = u - starts[:begun]
        if begun:
            along_score, along_settled = _along(world, score[:, :begun]), _along(world, settled[:, :begun])
            first, second = future.rest(u, lags)
            mean, _ = _given_action(recursion, future, past, u)
            if recursion.total:  # (F + c^u X_u)², of which F² meets E[z_u | s_u] = 0
                one, two = 2 * c**u * future.first[u], c ** (2 * u) * future.second[u]
            else:
                one, two = mean[None], second - recursion.baseline(u) * first
                if recursion.expected is not None:
                    psi = recursion.expected(u)
                    one, two = one + psi, two + (world.pi * first).sum(-1, keepdims=True) * psi
                two = (c**lags)[:, None, None] * two
            out[:begun, u] = np.einsum("sa,nsa,nsa->n", world.pi, np.broadcast_to(one, first.shape), along_settled)
            out[:begun, u] += np.einsum("sa,nsa,nsa->n", world.pi, np.broadcast_to(two, first.shape), along_score)
        if u == world.cut - 1:
            break
        x = recursion.local(u)
        if begun:
            # x_u enters what is settled as long as the window of the start reaches it.
            share = np.full(begun, c**u) if recursion.total else np.where(_reaches(recursion, lags), c**lags, 0.0)
            moved = (onward @ settled.reshape(shape[0], -1)).reshape(shape)
            if share.any():
                gained = (_onward(world, chosen * x) @ score.reshape(shape[0], -1)).reshape(shape)
                moved[:, :begun] += share[:, None] * gained[:, :begun]
            score, settled = (onward @ score.reshape(shape[0], -1)).reshape(shape), moved
        if begun < len(starts):
            alive = past.alive[u][:, None, None]
            if recursion.total:
                own = past.first[u][:, None, None] + alive * c**u * x
            else:
                own = alive * (x - recursion.baseline(u)[:, :, None])
            score[:, begun] = _scored_onward(world, chosen * alive)
            settled[:, begun] = _scored_onward(world, chosen * own)
            if recursion.expected is not None:
                averaged = np.zeros((shape[0], shape[2]))
                np.put_along_axis(averaged, _support(world), _scored(world, recursion.expected(u)), axis=1)
                settled[:, begun] += onward @ (past.alive[u][:, None] * averaged)
    return out


def _reaches(recursion: Recursion, lags: np.ndarray) -> np.ndarray:
    return np.ones(len(lags), dtype=bool) if recursion.window is None else lags < recursion.window


def _support(world: World) -> np.ndarray:
    """Return [S, D] which parameters the entries of the scores are."""
    if world.support is not None:
        return world.support
    return np.broadcast_to(np.arange(world.num_parameters), (world.num_states, world.num_parameters))


def _scored(world: World, f: np.ndarray) -> np.ndarray:
    """Return Σ_a π(a | s) z(s, a) f(s, a) on the support, [S, D]."""
    return np.einsum("sa,sad->sd", world.pi * f, world.scores)


def _gathered(world: World, part: np.ndarray) -> np.ndarray:
    """Return the sum over states of entries [S, D] on the support, [P]."""
    return np.bincount(_support(world).ravel(), part.ravel(), minlength=world.num_parameters)


def _along(world: World, field: np.ndarray) -> np.ndarray:
    """Return z(s, a) · field[s, n] for a field [S, n, P], as [n, S, A]."""
    if world.support is not None:
        field = np.take_along_axis(field, world.support[:, None, :], axis=2)
    return np.einsum("sad,snd->nsa", world.scores, field, optimize=True)


def _onward(world: World, weight: np.ndarray) -> scipy.sparse.csr_array:
    """Return the matrix [S', S] that carries a row per state to the next states, for weights [S, A, O]."""
    s = world.num_states
    come_from = np.broadcast_to(np.arange(s)[:, None, None], weight.shape)
    return scipy.sparse.csr_array((weight.ravel(), (world.next_state.ravel(), come_from.ravel())), shape=(s, s))


def _scored_onward(world: World, weight: np.ndarray) -> np.ndarray:
    """Return Σ over s, a, o with s' of weight[s, a, o] z(s, a), [S', P]."""
    out, support = np.zeros((world.num_states, world.num_parameters)), _support(world)
    for a in range(world.pi.shape[1]):
        part = weight[:, a, :, None] * world.scores[:, a, None, :]
        np.add.at(out, (world.next_state[:, a, :, None], support[:, None, :]), part)
    return out
