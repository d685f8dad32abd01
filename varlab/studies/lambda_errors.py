"""Mean squared error of GAE against λ, the critic's error and the batch size, exactly on a finite MDP.

Source of the trade-off: High-Dimensional Continuous Control Using Generalized Advantage Estimation (Schulman et al., 2016).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.estimators.bootstrapped import GAE
from varlab.oracles.exact import exact
from varlab.values import ExactValues, FunctionValues
from varlab.values.error import table_error


def exact_errors(
    env: Environment,
    policy: nn.Module,
    lambdas: Sequence[float],
    *,
    errors: Sequence[float] = (0.0, 0.1, 0.3, 1.0),
    sizes: Sequence[float] = (10.0, 100.0, 1000.0),
    gamma: float = 1.0,
    error_seed: int = 0,
) -> pd.DataFrame:
    """Compute (‖bias‖² + tr Cov/N)/‖∇J_γ‖² of GAE(λ) with values V^{π,γ} + ε e.

    Args:
        env: a finite world.
        policy: categorical on its states, in float64.
        lambdas: λ, each in [0, 1].
        errors: ε, root-mean-square errors of the critic along the policy's trajectories; e is the table of unit norm of
            ``values.error`` (:mod:`varlab.values.error`).
        sizes: batch sizes N.
        gamma: discount γ; steps are weighted by γ^t.
        error_seed: of e.

    Returns:
        One row per ε, N and λ: error, batch_size, lam, bias_sq and variance (both over ‖∇J_γ‖²), mse and best: whether no other
        λ of the grid has a smaller mse at that ε and N.

    Raises:
        InputError: if the world is not finite.
    """
    if env.finite is None:
        raise checks.InputError(
            f"A finite MDP was expected for exact errors, but {env.name} is none; measure gae at several λ with values.error and "
            "draw them with scripts/figures.py also=[lambdas]."
        )
    e, v = table_error(env, policy, error_seed, torch.device("cpu")).v, ExactValues.of(env.finite, policy, gamma, env.horizon).v
    rows, phi = [], [GAE(float(lam)) for lam in lambdas]
    for eps in errors:
        table = v + eps * e
        source = FunctionValues(v=lambda s, t, table=table: table[t, s])
        found = exact(env, policy, phi, gamma=gamma, values=source)
        bias_sq, variance = found.bias_sq / (found.gradient**2).sum(), found.nsr
        rows += [
            (eps, size, float(lam), b, s, b + s / size)
            for size in sizes
            for lam, b, s in zip(lambdas, bias_sq, variance, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["error", "batch_size", "lam", "bias_sq", "variance", "mse"])
    return table.assign(best=table["mse"] == table.groupby(["error", "batch_size"])["mse"].transform("min"))
