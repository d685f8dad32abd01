"""Short linear systems by Gauss-Hermite quadrature: their trajectories as a finite list with weights.

Start, action noise and system noise are the standard normal vector ξ. On m nodes in each entry of ξ polynomials of degree 2m − 1
have the right mean. Rewards and exact values are quadratic in ξ and scores of a linear policy are of degree two, so that squares
of gradients are of degree eight: five nodes make mean and variance of every such estimator exact.
"""

from __future__ import annotations

import torch
from torch import nn

from varlab import checks, policies
from varlab.envs.lqg import LQG, root
from varlab.estimators.nodes import gauss_hermite
from varlab.oracles.units import LIMIT, Listed
from varlab.types import Trajectories
from varlab.values.linear_quadratic import system_of

#: Enough for the squares of gradients of quadratic Φ.
NODES = 5


def listed(env: LQG, policy: nn.Module, nodes: int = NODES) -> Listed:
    """List the trajectories of a linear system at the nodes of its noise; the weights take the place of probabilities.

    Args:
        env: a linear system.
        policy: diagonal Gaussian, its distribution an ``Independent`` Normal; evaluated in float64.
        nodes: m, for each entry of the noise.

    Returns:
        The trajectories. Values have to be given to their ``gradients``.

    Raises:
        InputError: for another world, or too many nodes together.
    """
    system, horizon = system_of(env)
    m = checks.positive_int("nodes", nodes)
    start, push, d = root("initial_covariance", system.initial_covariance), root("noise", system.noise), system.action_dim
    first, drawn = start.shape[1], push.shape[1]
    size = first + horizon * d + (horizon - 1) * drawn
    if m**size > LIMIT:
        raise checks.InputError(
            f"At most {LIMIT} trajectories were expected to be listed, but {m} nodes in each of the {size} entries of the noise "
            f"of {env.name} make {m**size:.3g}; shorten the horizon, take fewer dimensions or sample with varlab.measure."
        )
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    xi, weight = gauss_hermite(m, size)
    state, at = system.initial_mean + xi[:, :first] @ start.T, first
    states, actions, rewards = [], [], []
    for _ in range(horizon):
        with torch.no_grad():
            normal = double(state).base_dist
        action = normal.loc + normal.scale * xi[:, at : at + d]
        at += d
        states.append(state)
        actions.append(action)
        rewards.append(system.reward(state, action))
        state = state @ system.a.T + action @ system.b.T
        if at < size:  # the objective ends before the last noise is seen
            state = state + xi[:, at : at + drawn] @ push.T
            at += drawn
    n = len(weight)
    ended = torch.zeros(n, dtype=torch.bool)
    obs, action, reward = (torch.stack(x, 1).flatten(0, 1) for x in (states, actions, rewards))
    traj = Trajectories(
        obs=obs, action=action, reward=reward, offsets=horizon * torch.arange(n + 1), terminated=ended, truncated=~ended,
        last_obs=state, horizon=horizon, env=env.name,
    )  # fmt: skip
    return Listed(env, double, traj, weight)
