"""Gradients of many φ from the factors of every layer: g = Σ_t φ_t δ_t h_tᵀ as matrix products.

Three ways lead to the same sum, and each layer takes the cheapest for its shape:

    thin layers         φ goes onto the narrow factor with time last, [K · narrow, T], so that rows are long;
    few φ               φ goes onto the narrower factor, [T, K · narrow], and g is the product with the wider;
    more φ than width   the scores of every step are written out, Z [T, out · in], and g = φ Z.

Layers are taken one by one, each for as many trajectories as keep what is written within the caches (a tile).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from varlab.policies.base import Broadcast
from varlab.scores.base import Workspace

#: Width of the narrower factor up to which a layer is thin.
THIN = 16


@dataclass(frozen=True)
class Claim:
    """A module whose parameters the factors cover.

    Attributes:
        module: a Linear, Embedding or Broadcast.
        weight: positions of its main parameter within θ, [shape of the parameter], or None if frozen.
        bias: positions of its bias within θ, or None.
    """

    module: nn.Module
    weight: Tensor | None
    bias: Tensor | None

    @property
    def direct(self) -> Tensor | None:
        """Positions of the parameters whose score is δ itself."""
        return self.weight if isinstance(self.module, Broadcast) else self.bias

    @property
    def outer(self) -> Tensor | None:
        """Positions [out, in] of the parameters whose score is δ hᵀ."""
        return self.weight if isinstance(self.module, nn.Linear) else None

    @property
    def turned(self) -> bool:
        """Whether h is narrower than δ, so that gradients are made as h δᵀ: long rows are faster."""
        return self.weight.shape[1] < self.weight.shape[0]


@dataclass(frozen=True)
class Factor:
    """δ and h of one claimed module on one batch: ``delta`` [C, T, out], ``h`` [C, T, in], indices [C, T], or None."""

    claim: Claim
    delta: Tensor
    h: Tensor | None

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """The narrower and the wider of δ and h."""
        return (self.h, self.delta) if self.claim.turned else (self.delta, self.h)


    def of(self, rows: slice, steps: slice = slice(None)) -> Factor:
        """Return the factor of some of the trajectories and steps."""
        return Factor(self.claim, self.delta[rows, steps], None if self.h is None else self.h[rows, steps])

    def flat(self) -> Factor:
        """Return the factor of all steps as those of one trajectory."""
        return Factor(self.claim, self.delta.flatten(0, 1)[None], None if self.h is None else self.h.flatten(0, 1)[None])


@dataclass(frozen=True)
class Piece:
    """One parameter tensor: which factor it is of, in which form, and where its entries lie within θ.

    Attributes:
        factor: number of the factor.
        form: ``outer`` (δ hᵀ), ``direct`` (δ) or ``table`` (δ in row s).
        index: [p] positions, in the order in which its gradients come.
    """

    factor: int
    form: str
    index: Tensor


def pieces(claims: Sequence[Claim]) -> list[Piece]:
    """Return the parameter tensors of the claimed modules, in order."""
    out = []
    for i, c in enumerate(claims):
        if c.outer is not None:
            out.append(Piece(i, "outer", (c.outer.T if c.turned else c.outer).reshape(-1)))
        if isinstance(c.module, nn.Embedding):
            out.append(Piece(i, "table", c.weight.reshape(-1)))
        if c.direct is not None:
            out.append(Piece(i, "direct", c.direct.reshape(-1)))
    return out


def written(piece: Piece, factor: Factor, k: int, t: int) -> int:
    """Return how many numbers one trajectory's K gradients of a piece write: themselves and what comes on the way.

    Args:
        piece: the parameter tensor.
        factor: its factor.
        k: choices of φ.
        t: steps.

    Returns:
        The count.
    """
    way = 0 if piece.form == "direct" else k * factor.delta.shape[2]
    if piece.form == "outer":
        narrow, wide = (x.shape[2] for x in factor.sides)
        way = narrow * min(k, wide)
    return k * len(piece.index) + t * way


def gradient(piece: Piece, factor: Factor, phi: Tensor, work: Workspace) -> Tensor:
    """Return Σ_t φ_t z_t of one parameter tensor, [C, K, p], in memory that the next call uses again.

    Args:
        piece: the parameter tensor.
        factor: its factor on C trajectories.
        phi: [C, K, T].
        work: buffers.

    Returns:
        The gradients.
    """
    (c, k, t), delta = phi.shape, factor.delta
    g = work.get(f"{piece.form} {piece.factor}", (c, k, len(piece.index)), phi)
    if piece.form == "direct":
        return torch.bmm(phi, delta, out=g)
    if piece.form == "table":
        g.zero_()
        weighted = work.get("way", (c, k, t, delta.shape[2]), phi)
        torch.mul(phi.unsqueeze(3), delta.unsqueeze(1), out=weighted)
        g.view(c, k, -1, delta.shape[2]).scatter_add_(2, factor.h[:, None, :, None].expand_as(weighted), weighted)
        return g
    narrow, wide = factor.sides
    width = narrow.shape[2]
    if k > wide.shape[2]:
        z = work.get("way", (c, t, width, wide.shape[2]), phi)
        torch.mul(narrow.unsqueeze(3), wide.unsqueeze(2), out=z)
        return torch.bmm(phi, z.flatten(2), out=g)
    if width <= THIN:
        a = work.get("way", (c, k, width, t), phi)
        torch.mul(phi.unsqueeze(2), narrow.transpose(1, 2).contiguous().unsqueeze(1), out=a)
        a = a.flatten(1, 2)
    else:
        a = work.get("way", (c, t, k, width), phi)
        torch.mul(phi.transpose(1, 2).unsqueeze(3), narrow.unsqueeze(2), out=a)
        a = a.flatten(2).transpose(1, 2)
    torch.bmm(a, wide, out=g.view(c, k * width, -1))
    return g
