"""Exact mean and variance of the very estimators that a measurement used, for the rows of its summary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from varlab.envs.base import Environment
from varlab.estimators.base import Estimator
from varlab.oracles.exact import ExactRow, exact_row, operations, world_of
from varlab.oracles.gaussian import covers, gaussian
from varlab.policies.base import num_parameters
from varlab.policies.networks import Linear
from varlab.values.exact import linear_system
from varlab.values.linear_quadratic import QuadraticValues

#: Multiplications that may be spent without being asked for: about ten seconds.
OPERATIONS = 10**10


def exact_rows(
    env: Environment,
    policy: nn.Module,
    phi: Sequence[Estimator],
    source: object | None,
    *,
    gamma: float,
    discount_weighting: bool,
    cut: int | None,
    at_cut: str,
    wanted: bool | None,
) -> tuple[list[ExactRow | None], str]:
    """Return what the oracles know of each Φ.

    Args:
        env: the world.
        policy: in float64, on the CPU.
        phi: fitted estimators.
        source: the values that they looked up, or None.
        gamma: γ.
        discount_weighting: whether step t is weighted by γ^t.
        cut: L, or None for H.
        at_cut: rule at the cut.
        wanted: True to compute whatever it takes, False for nothing, None where it takes seconds.

    Returns:
        One row for each Φ, None where no oracle applies; and a sentence if they were left out for their cost.
    """
    nothing: list[ExactRow | None] = [None] * len(phi)
    # Of values that are drawn, or known only where they are asked for, the oracles know nothing; a Φ without values needs none.
    fits = hasattr(source, "table") if env.finite is not None else isinstance(source, QuadraticValues)
    known = source is None or fits
    if not known and cut is not None and at_cut != "terminal":
        return nothing, ""
    source = source if known else None
    tabular = env.finite is not None
    quadratic = linear_system(env) and type(policy) is Linear and cut is None
    if wanted is False or not (tabular or quadratic):
        return nothing, ""
    if tabular:
        cost = operations(env, policy, len(phi), cut)
    else:
        entries = env.horizon * (env.system.state_dim + env.system.action_dim)
        cost = 5 * env.horizon**2 * entries**2 * num_parameters(policy) * len(phi)  # a handful of cumulants for each pair
    if wanted is None and cost > OPERATIONS:
        return nothing, f"exact_variance is empty because it would take {cost:.0e} multiplications; set exact=true to have it."
    if tabular:
        world = world_of(env, policy, source, gamma, cut, at_cut, discount_weighting)
        covered = [all(getattr(world, x) is not None for x in e.needs) and e.recursion(world) is not None for e in phi]
        return [exact_row(world, e, discount_weighting) if k else None for e, k in zip(phi, covered, strict=True)], ""
    rows = list(nothing)
    for i, e in enumerate(phi):
        if covers(e) and (known or not e.needs):
            one = gaussian(env, policy, [e], gamma=gamma, discount_weighting=discount_weighting, values=source)
            rows[i] = ExactRow(np.asarray(one.mean[0]), np.asarray(one.variance_per_parameter[0]))
    return rows, ""
