"""∇J that a bias refers to: exact by dynamic programming, else sampled with a provably unbiased Φ on its own stream."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, terms
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator, weight
from varlab.layout import Layout
from varlab.rng import Streams
from varlab.rollout import parts
from varlab.scores.base import ScoreMap
from varlab.terms import Terms
from varlab.types import Reference, Trajectories, Values
from varlab.values import exact as exact_values

#: Trajectories in one pass of ``apply_sum``, bounded by steps: its products grow with the chunk and its buffers too.
STEPS_AT_ONCE = 16_384

ValueSource = Callable[[Trajectories, frozenset[str]], Values]


def exact(env: Environment, policy: nn.Module, gamma: float, objective: str, digest: str) -> Reference:
    """Return the exact gradient of the H-step objective.

    Args:
        env: a world for which :func:`varlab.values.exact.applies`.
        policy: in float64.
        gamma: γ of the objective.
        objective: its name.
        digest: of the settings.

    Returns:
        A reference without blocks.
    """
    grad, j = exact_values.gradient(env, policy, gamma)
    return Reference(grad.cpu().numpy(), None, None, j, "exact", 0, objective, digest)


def sampled(
    env: Environment,
    policy: nn.Module,
    scores: ScoreMap,
    phi: Estimator,
    source: ValueSource | None,
    layout: Layout,
    streams: Streams,
    gamma: float,
    objective: str,
    digest: str,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reference:
    """Return block means of an unbiased Φ over the reference stream.

    Args:
        env: the world.
        policy: at fixed θ.
        scores: its score map.
        phi: an estimator that is unbiased for any values.
        source: values that ``phi`` needs.
        layout: how n_reference falls into blocks and parts.
        streams: the reference's root seed.
        gamma: γ of the objective, also the weight γ^t.
        objective: its name.
        digest: of the settings.
        device: where tensors live.
        dtype: of the gradients inside a block.
        progress: called with ("reference", done, total).

    Returns:
        The reference with its blocks.

    Raises:
        InputError: if a gradient is NaN or infinite.
    """
    total = torch.zeros(layout.blocks, scores.num_parameters, dtype=torch.float64, device=device)
    count = np.zeros(layout.blocks, dtype=np.int64)
    returns, steps = 0.0, 0
    for b, traj in parts(env, policy, layout, streams, "reference", device=device):
        values = source(traj, phi.needs) if phi.needs else Values()
        batch = Batch(traj, values, gamma)
        made = summed(scores, traj, weight(phi, batch, True).unsqueeze(1), dtype)[0]
        if not bool(torch.isfinite(made).all()):
            first = int(count.sum())
            raise checks.InputError(
                f"Finite gradients were expected on {env.name}, but {phi.label} of the reference gave NaN or infinity among its "
                f"trajectories {first} to {first + len(traj) - 1}; look at θ and at the values there, or use dtype=float64."
            )
        total[b] += made
        count[b] += len(traj)
        returns += float(batch.reward_to_go[traj.offsets[:-1]].sum())
        steps += traj.cost
        if progress:
            progress("reference", int(count.sum()), layout.n)
    mean = total.cpu().numpy() / count[:, None]
    grad = (count[:, None] * mean).sum(0) / count.sum()
    return Reference(grad, mean, count, returns / layout.n, phi.label, layout.n, objective, digest, steps)


def summed(scores: ScoreMap, traj: Trajectories, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return Σ_i g_i [K, P] float64 of one part.

    Args:
        scores: score map.
        traj: N trajectories.
        weights: [M, K] w_t Φ_t.
        dtype: of the gradients.

    Returns:
        The sum over trajectories.
    """
    return terms.summed([Terms.of_steps(traj, weights)], scores, dtype, STEPS_AT_ONCE)
