"""∇J that a bias refers to: exact by dynamic programming, else sampled with a provably unbiased Φ on its own stream.

Sampled block means are a record of their own, so that one reference can be made in shards and pooled once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, terms
from varlab.cores import Cores
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator, weight
from varlab.layout import Layout
from varlab.rng import Streams
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


@dataclass(frozen=True)
class SampledBlocks:
    """Blocks of a sampled reference, or some of them; nothing is pooled yet.

    Attributes:
        block_id: [B] int64, ascending.
        count: [B] int64 trajectories.
        mean: [B, P] float64 mean gradient.
        steps: [B] int64 environment steps.
        parts: [B] int64 simulation parts.
        returns: [Σ parts] float64, Σ_i R_γ of every part, block by block.
    """

    block_id: np.ndarray
    count: np.ndarray
    mean: np.ndarray
    steps: np.ndarray
    parts: np.ndarray
    returns: np.ndarray

    def merge(self, other: SampledBlocks) -> SampledBlocks:
        """Join the blocks of two records by id, in id order; exact and associative, because no number is pooled here.

        Args:
            other: blocks with other ids.

        Returns:
            All blocks.

        Raises:
            InputError: if a block id occurs in both.
        """
        double = np.intersect1d(self.block_id, other.block_id)
        if double.size:
            raise checks.InputError(
                f"Blocks with distinct ids were expected, but ids {double[:5].tolist()} occur in both records; "
                "give each shard its own range of blocks."
            )
        joined = {f.name: np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)}
        order = np.argsort(joined["block_id"], kind="stable")
        of_part = np.argsort(np.repeat(joined["block_id"], joined["parts"]), kind="stable")
        return SampledBlocks(**{k: v[of_part if k == "returns" else order] for k, v in joined.items()})

    def pool(self, kind: str, objective: str, digest: str) -> Reference:
        """Return the reference that all blocks make: grad = Σ_b n_b mean_b / n and J = Σ R_γ / n, summed in stream order.

        Args:
            kind: the Φ that sampled it.
            objective: its name.
            digest: of the settings.

        Returns:
            The reference with its blocks.
        """
        n, j = int(self.count.sum()), 0.0
        for part in self.returns.tolist():  # one after the other: other sums round otherwise
            j += part
        grad = (self.count[:, None] * self.mean).sum(0) / n
        return Reference(grad, self.mean, self.count, j / n, kind, n, objective, digest, int(self.steps.sum()))


def blocks(
    cores: Cores,
    phi: Estimator,
    source: ValueSource | None,
    layout: Layout,
    streams: Streams,
    gamma: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> SampledBlocks:
    """Sample block means of an unbiased Φ; the layout may be a shard of another.

    Args:
        cores: that do it, with the world and the policy at fixed θ.
        phi: an estimator that is unbiased for any values.
        source: values that ``phi`` needs.
        layout: how n_reference falls into blocks and parts.
        streams: the reference's root seed.
        gamma: γ of the objective, also the weight γ^t.
        progress: called with ("reference", done, total).

    Returns:
        The blocks, which :meth:`SampledBlocks.pool` makes a reference of.

    Raises:
        InputError: if a gradient is NaN or infinite.
    """

    def reduce(first: int, traj: Trajectories) -> tuple[Tensor, int, int, float]:
        values = source(traj, phi.needs) if phi.needs else Values()
        batch = Batch(traj, values, gamma)
        made = summed(cores.scores, traj, weight(phi, batch, True).unsqueeze(1), cores.dtype)[0]
        if not bool(torch.isfinite(made).all()):
            raise checks.InputError(
                f"Finite gradients were expected on {cores.env.name}, but {phi.label} of the reference gave NaN or infinity "
                f"among its trajectories {first} to {first + len(traj) - 1}; look at θ and at the values there, or "
                "use dtype=float64."
            )
        return made, len(traj), traj.cost, float(batch.reward_to_go[traj.offsets[:-1]].sum())

    total = torch.zeros(layout.blocks, cores.scores.num_parameters, dtype=torch.float64, device=cores.device)
    count, steps, pieces = (np.zeros(layout.blocks, dtype=np.int64) for _ in range(3))
    returns: list[float] = []
    for b, (made, n, spent, part_return) in cores.parts(layout, streams, "reference", reduce, on_policy=True):
        total[b] += made
        count[b] += n
        returns.append(part_return)
        steps[b] += spent
        pieces[b] += 1
        if progress:
            progress("reference", int(count.sum()), layout.n)
    ids = np.arange(layout.first_block, layout.first_block + layout.blocks)
    return SampledBlocks(ids, count, total.cpu().numpy() / count[:, None], steps, pieces, np.array(returns))


def check_given(reference: Reference, objective: str, parameters: int) -> Reference:
    """Return a reference that the caller gave, if it is one of this policy and objective.

    Args:
        reference: what was given.
        objective: what is measured.
        parameters: P.

    Returns:
        The reference.

    Raises:
        InputError: if it is of another policy or objective.
    """
    if reference.grad.shape != (parameters,):
        raise checks.InputError(
            f"A reference gradient of {parameters} parameters was expected, but it has shape {reference.grad.shape}; measure it "
            "for this policy."
        )
    if reference.objective != objective:
        raise checks.InputError(
            f"A reference of the objective {objective} was expected, but it is of {reference.objective}; measure it for "
            f"{objective}, or name objectives=['{reference.objective}']."
        )
    return reference


def size_for(n: int, most: int, least: int, own: float, variances: Tensor) -> int:
    """Return n_reference with tr_ref / n_ref ≤ 0.1 · min_Φ variance / n, a fifth more for the pilot's own error.

    Args:
        n: trajectories of the measurement.
        most: upper bound.
        least: lower bound.
        own: tr_ref, the trace variance of the reference's Φ.
        variances: [K] of the measured Φ; those that are 0 ask for nothing.

    Returns:
        A power of two times n within the bounds, so that neighbouring settings share one cached reference.
    """
    positive = variances[variances > 0]
    needed = 12 * own / float(positive.min()) if positive.numel() else 1.0
    return int(max(least, min(most, n * 2 ** math.ceil(math.log2(max(needed, 1.0))))))


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
