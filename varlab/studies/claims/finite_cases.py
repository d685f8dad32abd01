"""Small worlds that the claims about discounts and λ are decided on: random MDPs, critics in error, tiny counter-examples."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor, nn

from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP, environment
from varlab.envs.random_mdp import random_mdp
from varlab.oracles.world import World
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.verdicts import Effect
from varlab.studies.textbook_order import FeatureSoftmax
from varlab.values import ExactValues, FunctionValues
from varlab.values.error import table_error

STATES, ACTIONS, HORIZON = 5, 3, 20


def random_case(
    seed: int, number: int, rewards: str = "normal", horizon: int = HORIZON, ending: float = 0.0
) -> tuple[Environment, SoftmaxTable]:
    """Draw a random MDP, and a softmax table with standard normal logits.

    Args:
        seed: root seed.
        number: of the MDP; its numbers depend on these two alone.
        rewards: law of the rewards, normal or uniform.
        horizon: H.
        ending: share of outcomes that end the episode.

    Returns:
        World and policy, float64.
    """
    world, theta = (numpy_generator(Streams(seed).sequence(name, number)) for name in ("rollout", "theta"))
    mdp = random_mdp(world, states=STATES, actions=ACTIONS, ending=ending, rewards=rewards)
    env = environment(mdp, horizon, f"random MDP {number}")
    return env, SoftmaxTable(env, torch.from_numpy(theta.standard_normal((STATES, ACTIONS)))).double()


def unit_error(env: Environment, policy: nn.Module, seed: int, number: int) -> Tensor:
    """Return e [H + 1, S] of the dial of critic error: standard normal, E Σ_t e_t(s_t)² / E T = 1 on the policy's visits.

    Args:
        env: a finite world.
        policy: whose visits they are.
        seed: root seed.
        number: of the MDP.

    Returns:
        The table.
    """
    return table_error(env, policy, error_seed(seed, number), torch.device("cpu")).v


def error_seed(seed: int, number: int) -> int:
    """Return the seed of :func:`unit_error` as the dial of critic error takes it."""
    (entropy,) = Streams(seed).sequence("critic", number).generate_state(1)
    return int(entropy)


def as_function(v: Tensor) -> FunctionValues:
    """Return values given as a table [H + 1, S]."""
    return FunctionValues(v=lambda s, t: v[t, s])


def wrong_values(env: Environment, policy: nn.Module, gamma: float, error: Tensor | float) -> FunctionValues:
    """Return V^{π,γ} + error, the error a table [H + 1, S] or one number."""
    v = ExactValues.of(env.finite, policy, gamma, env.horizon).v
    return as_function(v + torch.as_tensor(error, dtype=torch.float64))


def term_variance(world: World, decay: float, kappa: float) -> float:
    """Return Σ_t tr Cov(κ^t z_t Φ_t) for Φ_t = Σ_l (γλ)^l δ_{t+l}: every step's term by itself, no covariances between them.

    Args:
        world: of a softmax table, whose scores touch the row of their own state.
        decay: γλ.
        kappa: κ.

    Returns:
        The sum, by backward recursion on E[Φ_t | s, a] and E[Φ_t² | s, a].
    """
    w, total = world, 0.0
    x1, x2 = np.zeros(w.num_states), np.zeros(w.num_states)
    for t in range(w.cut - 1, -1, -1):
        x = w.td_residual(t)
        given1 = (w.probability * x).sum(-1) + decay * w.ahead_by_action(w.going_on, x1)
        given2 = (w.probability * x * x).sum(-1) + 2 * decay * w.ahead_by_action(w.going_on * x, x1)
        given2 += decay**2 * w.ahead_by_action(w.going_on, x2)
        x1, x2 = (w.pi * given1).sum(-1), (w.pi * given2).sum(-1)
        taken = w.visits[t][:, None] * w.pi
        second = (taken * (w.scores**2).sum(-1) * given2).sum()
        first = np.einsum("sa,sad->sd", taken * given1, w.scores)
        total += kappa ** (2 * t) * (second - (first**2).sum())
    return float(total)


def shared_logit(lists: list, horizon: int, p: float, name: str) -> tuple[Environment, FeatureSoftmax]:
    """Return a world of two actions and a policy with one parameter θ, π(a = 1) = sigmoid θ = p in every state.

    Args:
        lists: outcomes of every state and action, as :meth:`~varlab.envs.finite.FiniteMDP.from_lists` takes them.
        horizon: H.
        p: π(a = 1).
        name: of the world.

    Returns:
        World and policy.
    """
    plain = FiniteMDP.from_lists(lists, [1.0, *[0.0] * (len(lists) - 1)])
    seen = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64).expand(len(lists), 2, 1)
    mdp = FiniteMDP(plain.probability, plain.next_state, plain.reward, plain.terminated, plain.initial, observations=seen)
    theta = torch.tensor([np.log(p / (1 - p))], dtype=torch.float64)
    return environment(mdp, horizon, name), FeatureSoftmax(theta)


def advantage_above_returns() -> tuple[Environment, FeatureSoftmax]:
    """Return a world where exact advantages have a larger variance than sampled returns less V.

    Action 1 pays 1 in state 1, which action 0 leads to; with p = 1/4 the terms z_0 A_1 that only sampled returns contain are so
    correlated with z_1 A_1 that they lower the variance of the sum.
    """
    start = [[(1.0, 1, 0.0, False)], [(1.0, 2, 0.0, False)]]
    paid = [[(1.0, 1, 0.0, True)], [(1.0, 1, 1.0, True)]]
    return shared_logit([start, paid, [[(1.0, 2, 0.0, True)]] * 2], 2, 0.25, "advantage above returns")


def advantage_above_td() -> tuple[Environment, FeatureSoftmax]:
    """Return a world where exact advantages have a larger variance than TD residuals with exact V.

    Action 1 leads by a fair coin to state 1, where the next action matters and 0.2 less is expected, or to state 2, where it does
    not: the noise of V(s_1) is negatively correlated with z_1 A_1, and TD residuals contain it.
    """
    start = [[(1.0, 3, 0.0, False)], [(0.5, 1, 0.0, False), (0.5, 2, 0.0, False)]]
    matters = [[(1.0, 1, -0.7, True)], [(1.0, 1, 0.3, True)]]
    flat = [[(1.0, 2, 0.0, True)]] * 2
    return shared_logit([start, matters, flat, flat], 2, 0.5, "advantage above TD residual")


def share(count: int, n: int) -> tuple[float, float, float]:
    """Return a share with its 95 % Clopper–Pearson interval."""
    interval = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    return count / n, float(interval.low), float(interval.high)


def adjacent_ratio(values: np.ndarray) -> float:
    """Return the largest of x_i / x_{i+1}: at most 1 where x rises all the way."""
    return max(a / b for a, b in itertools.pairwise(values))


def extreme(how: str, **where: object) -> Callable[[pd.DataFrame], Effect]:
    """Return rows → the largest or smallest value (``max`` or ``min``) of the rows whose columns match; exact."""

    def effect(rows: pd.DataFrame) -> Effect:
        for name, value in where.items():
            rows = rows[rows[name] == value]
        return Effect.exact(getattr(rows["value"], how)())

    return effect
