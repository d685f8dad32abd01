"""What a user of torch would take instead of varlab: a loop of backward passes, ``torch.func``, per-step scores.

Each peer gives the gradients of one chunk, [C, k, p] for some of the K choices and one parameter tensor at a time (putting them
together would cost a copy), and all share the sums made of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap

from varlab.studies.speed.results import Result
from varlab.studies.speed.works import Work

ALL = slice(None)
Piece = tuple[slice, slice, Tensor]


class TorchPeer(ABC):
    """Sums over what :meth:`gradients` gives.

    Attributes:
        name: of the contender.
        chunks: sizes to choose among.
        by_step: whether it holds a gradient for every step.
    """

    name: str
    chunks: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 512)
    by_step: bool = False

    def __init__(self, work: Work, result: type[Result]) -> None:
        """Keep the work."""
        self.work, self.result = work, result
        self.policy = work.policy
        self.theta = {name: p.detach() for name, p in self.policy.named_parameters()}

    def __call__(self, chunk: int) -> tuple[Tensor, ...]:
        """Return the result, with ``chunk`` trajectories at a time."""
        made = self.result(self.work)
        for o, a, f in self.work.pieces(chunk):
            for choices, entries, g in self.gradients(o, a, f):
                made.add(made.parts(g), choices, entries)
            made.passed(len(o))
        return made.found()

    @abstractmethod
    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give per-trajectory gradients.

        Args:
            obs: [C, T, d].
            action: [C, T] or [C, T, D].
            phi: [C, K, T].

        Yields:
            (which choices, which entries of θ, [C, k, p]).
        """

    def tensors(self, choices: slice, gradients: dict[str, Tensor]) -> Iterator[Piece]:
        """Give gradients [C, k, ...] by parameter tensor, in the order of θ."""
        start = 0
        for name, p in self.theta.items():
            yield choices, slice(start, start + p.numel()), gradients[name].flatten(2)
            start += p.numel()

    def log_prob(self, theta: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
        """Return log π(a_t | s_t) [T] as a function of θ."""
        return functional_call(self.policy, theta, (obs,)).log_prob(action)


class BackwardLoop(TorchPeer):
    """One backward pass per trajectory and Φ, as introductory code writes it."""

    name, chunks = "loop, one backward per trajectory and Φ", (2,)

    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give the gradients of all choices at once."""
        pieces = zip(obs, action, phi, strict=True)
        yield ALL, ALL, torch.stack([torch.stack([self.one(o, a, w) for w in f]) for o, a, f in pieces])

    def one(self, obs: Tensor, action: Tensor, phi: Tensor) -> Tensor:
        """Return ∇ Σ_t φ_t log π(a_t | s_t) [P] of one trajectory."""
        with torch.enable_grad():
            loss = (self.policy(obs).log_prob(action) * phi).sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(self.policy.parameters()))])


class VmapGrad(TorchPeer):
    """``vmap(grad)`` over trajectories, one call per Φ."""

    name = "torch.func vmap(grad) per Φ"

    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give the gradients of one choice after another."""

        def loss(theta: dict[str, Tensor], o: Tensor, a: Tensor, f: Tensor) -> Tensor:
            return (self.log_prob(theta, o, a) * f).sum()

        each = vmap(grad(loss), in_dims=(None, 0, 0, 0))
        for k in range(phi.shape[1]):
            made = each(self.theta, obs, action, phi[:, k])
            yield from self.tensors(slice(k, k + 1), {name: g.unsqueeze(1) for name, g in made.items()})


class VmapNested(TorchPeer):
    """One vector-Jacobian product per trajectory, mapped over Φ inside and over trajectories outside."""

    name = "torch.func nested over Φ"

    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give the gradients of all choices at once."""

        def one(o: Tensor, a: Tensor, f: Tensor) -> dict[str, Tensor]:
            _, pull = vjp(lambda theta: self.log_prob(theta, o, a), self.theta)
            return vmap(lambda w: pull(w)[0])(f)

        yield from self.tensors(ALL, vmap(one)(obs, action, phi))


class StepScores(TorchPeer):
    """The scores of every step, S [T, P], by ``vmap(grad)``; then one matrix product for all Φ."""

    name, chunks, by_step = "per-step scores times all φ, torch.func", (2, 4, 8, 16, 32), True

    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give the gradients of all choices at once."""

        def single(theta: dict[str, Tensor], o: Tensor, a: Tensor) -> Tensor:
            return self.log_prob(theta, o.unsqueeze(0), a.unsqueeze(0))[0]

        each = vmap(grad(single), in_dims=(None, 0, 0))(self.theta, obs.flatten(0, 1), action.flatten(0, 1))
        yield from self.tensors(ALL, {name: torch.bmm(phi, z.view(*obs.shape[:2], -1)) for name, z in each.items()})


PEERS: tuple[type[TorchPeer], ...] = (VmapGrad, VmapNested, StepScores, BackwardLoop)
