"""Twelve small measurements whose numbers are kept in runs.json: every room takes part in at least one of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import torch
from finite_worlds import random_mdp
from torch import nn
from torch.distributions import Categorical

import varlab
from varlab import envs, policies
from varlab.envs.geometric import with_termination
from varlab.values import CriticSettings, FunctionValues

FILE = Path(__file__).with_name("runs.json")

#: What a row is found by, and the numbers that must not move.
KEYS = ("phi", "objective")
NUMBERS = (
    "n_reference", "grad_norm", "grad_norm_low", "grad_norm_high", "variance", "variance_low", "variance_high", "variance_ratio",
    "variance_ratio_low", "variance_ratio_high", "bias_sq", "bias_sq_low", "bias_sq_high", "bias_p_value", "mse", "mse_low",
    "mse_high", "nsr", "nsr_low", "nsr_high", "kurtosis", "cosine", "cosine_low", "cosine_high", "steps", "efficiency",
    "effective_directions", "exact_variance", "exact_bias_sq", "exact_nsr",
)  # fmt: skip
#: Differences that count: relative 1e-7, and for what may be near 0 absolute 1e-9 (p-values: two of the 1,999 draws).
RTOL, ATOL = 1e-7, 1e-9
P_VALUE = 0.001

CRITIC = CriticSettings(n=40, hidden=(8,), epochs=2, minibatch=128)
SHORT = ("total_return", "reward_to_go", "value_baseline", "gae(0.9)")


class Gated(nn.Module):
    """A categorical policy that only torch.func can score: its table is used twice."""

    def __init__(self, states, actions):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(states, actions, generator=generator))

    def forward(self, obs):
        return Categorical(logits=self.table[obs] * torch.sigmoid(self.table).mean())


def _run(env, kind, phi, n=100, theta_seed=0, policy=None, **settings):
    policy = policy or policies.make(kind, env, theta_seed=theta_seed, hidden=(8,))
    return varlab.measure(env, policy, phi, n=n, **{"dtype": "float64", "pilot": 50, "critic": CRITIC, **settings})


def _frozenlake_table():
    return _run(envs.make("FrozenLake-v1"), "softmax_table", varlab.estimators.SOURCE_TEXT, n=200)


def _frozenlake_unweighted():
    env = envs.make("FrozenLake-v1", horizon=30, is_slippery=False)
    return _run(env, "softmax_table", SHORT, gamma=0.95, discount_weighting=False, objectives=("J_1", "J_gamma"), seed=3)


def _frozenlake_mlp():
    env = envs.make("FrozenLake-v1", horizon=20)
    return _run(env, "mlp", ("reward_to_go", "q_value", "advantage"), theta_seed=4, part_size=1)


def _cliffwalking_cut():
    env = envs.make("CliffWalking-v1", horizon=30, is_slippery=True)
    return _run(env, "softmax_table", (*SHORT, "td_residual"), cut=12, at_cut="bootstrap", batch_size=10)


def _taxi():
    return _run(envs.make("Taxi-v4", horizon=15), "softmax_table", SHORT, gamma=0.9, per_parameter=False, exact=False)


def _random_sampled():
    env = envs.environment(random_mdp(0), 5, name="random")
    return _run(env, "softmax_table", SHORT, n=150, gamma=0.9, values="critic", reference="sampled", n_reference=200)


def _random_chosen_reference():
    env = envs.environment(random_mdp(1, states=5, actions=3), 6, name="random")
    return _run(env, "linear", ("value_baseline", "n_step(2)"), reference="sampled", reference_seed=7)


def _random_termination():
    env = with_termination(envs.environment(random_mdp(2), 40, name="random"), 0.8)
    return _run(env, "softmax_table", ("total_return", "constant_baseline", "time_baseline", "n_step(3)"), n=137)


def _gated():
    env = envs.environment(random_mdp(3), 6, name="random")
    values = FunctionValues(
        v=lambda s, t: 0.5 - 0.1 * t.double() + 0.2 * s.double(), q=lambda s, a, t: 0.3 * a.double() + 0.1 * s, source="formula"
    )
    return _run(env, None, (*SHORT, "q_value"), policy=Gated(3, 2), values=values)


def _cartpole_mlp():
    env = envs.make("CartPole-v1", horizon=25)
    return _run(env, "mlp", (*SHORT, "advantage"), n=120, n_reference=200)


def _cartpole_linear_cut():
    env = envs.make("CartPole-v1", horizon=30)
    return _run(env, "linear", SHORT, gamma=0.97, cut=15, at_cut="wrong_state", discount_weighting=False, n_reference=100)


def _pendulum():
    env = envs.make("Pendulum-v1", horizon=6)
    return _run(env, "mlp", ("total_return", "q_value", "td_residual"), gamma=0.99, n_reference=100)


RUNS = {
    made.__name__.lstrip("_"): made
    for made in (
        _frozenlake_table, _frozenlake_unweighted, _frozenlake_mlp, _cliffwalking_cut, _taxi, _random_sampled,
        _random_chosen_reference, _random_termination, _gated, _cartpole_mlp, _cartpole_linear_cut, _pendulum,
    )
}  # fmt: skip


def numbers(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return {"phi | objective": {column: number}} of one run."""
    rows = summary.to_dict("records")
    return {" | ".join(row[k] for k in KEYS): {c: float(row[c]) for c in NUMBERS} for row in rows}


def moved(kept: dict[str, dict[str, float]], now: dict[str, dict[str, float]]) -> list[str]:
    """Return one line for every number of ``kept`` that is not in ``now`` as it was."""
    lines = []
    for row, columns in kept.items():
        for column, before in columns.items():
            after = now.get(row, {}).get(column)
            tolerance = P_VALUE if column == "bias_p_value" else ATOL
            if after is None or not (same_special(before, after) or close(before, after, tolerance)):
                lines.append(f"{row}: {column} was {before!r} and is {after!r}")
    return lines


def same_special(a: float, b: float) -> bool:
    """Whether both are NaN, or the same infinity."""
    return a == b or (math.isnan(a) and math.isnan(b))


def close(a: float, b: float, atol: float) -> bool:
    """Whether two finite numbers agree."""
    return math.isfinite(a) and math.isfinite(b) and abs(a - b) <= atol + RTOL * abs(a)


def read() -> dict:
    """Return the golden file."""
    return json.loads(FILE.read_text())
