"""‖z_t‖² and ⟨z_t, g⟩ along the critic stream, and moments of single parameters: what baselines of least variance are made of.

With the Gram K of one trajectory's scores, ‖z_t‖² = K_tt and ⟨z_t, Σ_u φ_u z_u⟩ = Σ_u K_tu φ_u: no score is built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import FitBatch
from varlab.types import Chunk

#: Entries of the Grams that are made at once.
ENTRIES = 2**21
#: Most trajectories in one chunk.
MOST = 512
#: Steps that share a Gram where only its diagonal is wanted.
PIECE = 16
#: Bytes of per-trajectory gradients worked on at once.
BYTES = 6 * 2**20


def with_scores(batch: FitBatch, label: str) -> FitBatch:
    """Return the batch where it knows scores.

    Raises:
        InputError: where it does not.
    """
    if getattr(batch, "scores", None) is None:
        raise checks.InputError(
            f"A FitBatch with the policy's scores was expected to fit {label}, but it has none; pass env, policy and scores."
        )
    return batch


def dtype_of(batch: FitBatch) -> torch.dtype:
    """Return the dtype of the scores, which is that of the policy."""
    return next(batch.policy.parameters()).dtype


def norms(batch: FitBatch) -> Tensor:
    """Return ‖z_t‖² [M] float64."""
    traj, out = batch.traj, torch.zeros_like(batch.traj.reward)
    pieces = torch.arange(0, traj.steps + PIECE, PIECE, device=out.device).clamp(max=traj.steps).unique()
    for index in torch.arange(len(pieces) - 1, device=out.device).split(ENTRIES // PIECE**2):
        chunk = Chunk.of(pieces, index)
        gram = batch.scores.at(traj.obs[chunk.rows], traj.action[chunk.rows]).gram()
        out[chunk.rows[chunk.mask]] = gram.diagonal(dim1=1, dim2=2)[chunk.mask].double()
    return out


def inner_products(batch: FitBatch, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖z_t‖² and ⟨z_t, g⟩ with g = Σ_u φ_u z_u of the same trajectory.

    Args:
        batch: trajectories and scores.
        phi: [M] float64 φ_u.

    Returns:
        Two [M] float64.
    """
    traj = batch.traj
    norm, inner = torch.zeros_like(traj.reward), torch.zeros_like(traj.reward)
    size = min(MOST, max(1, ENTRIES // int(traj.length.max()) ** 2))
    for chunk in traj.chunks(size):
        gram = batch.scores.at(traj.obs[chunk.rows], traj.action[chunk.rows]).gram().double()
        product = torch.einsum("ctu,cu->ct", gram, phi[chunk.rows] * chunk.mask)
        rows = chunk.rows[chunk.mask]
        norm[rows], inner[rows] = gram.diagonal(dim1=1, dim2=2)[chunk.mask], product[chunk.mask]
    return norm, inner


def by_parameter(batch: FitBatch, weight: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_i S_ip² and Σ_i S_ip g_ip over trajectories, with S = Σ_t weight_t z_t and g = Σ_t φ_t z_t.

    Args:
        batch: trajectories and scores.
        weight: [M].
        phi: [M].

    Returns:
        Two [P] float64.
    """
    traj, dtype = batch.traj, dtype_of(batch)
    square, product = phi.new_zeros(2, batch.scores.num_parameters)
    both = torch.stack([weight, phi], 1)
    size = BYTES // (2 * torch.empty(0, dtype=dtype).element_size() * batch.scores.num_parameters)
    for chunk in traj.chunks(min(MOST, max(4, size))):
        padded = (both[chunk.rows] * chunk.mask.unsqueeze(-1)).transpose(1, 2).to(dtype).contiguous()
        for index, g in batch.scores.at(traj.obs[chunk.rows], traj.action[chunk.rows]).blocks(padded):
            s, g0 = g[:, 0].double(), g[:, 1].double()
            square[index] += (s * s).sum(0)
            product[index] += (s * g0).sum(0)
    return square, product
