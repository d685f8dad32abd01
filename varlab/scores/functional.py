"""Scores of any module through ``torch.func``: vmap over trajectories of vector-Jacobian products."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from varlab.policies.base import log_prob, parameters
from varlab.scores.base import ScoreMap, StepScores, slices

log = logging.getLogger(__name__)

#: Numbers in flight inside one vmap: larger ones leave the cache, smaller ones pay dispatch.
ELEMENTS = 2**21


class FunctionalBatch(StepScores):
    """Scores of C trajectories, computed when asked for."""

    def __init__(self, scores: FunctionalScores, obs: Tensor, action: Tensor) -> None:
        """Keep the batch."""
        self.scores, self.obs, self.action = scores, obs, action
        self.num_parameters = scores.num_parameters

    def tiles(self, phi: Tensor, multiple: int = 1) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Give the gradients of all parameters at once, some trajectories at a time."""
        index = torch.arange(self.num_parameters, device=phi.device)
        for rows in slices(len(phi), ELEMENTS // (phi.shape[1] * self.num_parameters), multiple):
            yield rows, index, self.rows(rows).apply(phi[rows])

    def apply(self, phi: Tensor) -> Tensor:
        """Return one gradient per trajectory, [C, K, P]."""

        def one(obs: Tensor, action: Tensor, choices: Tensor) -> Tensor:
            _, pull = vjp(lambda theta: self.scores.log_prob(theta, obs, action), self.scores.theta)
            return vmap(lambda f: _flatten(pull(f)[0]))(choices)

        size = max(1, ELEMENTS // (phi.shape[1] * self.num_parameters))
        return self.scores.over_rows(one, size, self.obs, self.action, phi)

    def rows(self, index: slice) -> FunctionalBatch:
        """Return the scores of some of the trajectories."""
        return FunctionalBatch(self.scores, self.obs[index], self.action[index])

    def apply_sum(self, phi: Tensor) -> Tensor:
        """Return Σ_i g_i [K, P] by one pass over all steps."""
        obs, action = self.obs.flatten(0, 1), self.action.flatten(0, 1)
        _, pull = vjp(lambda theta: self.scores.log_prob(theta, obs, action), self.scores.theta)
        choices = phi.transpose(0, 1).flatten(1)  # [K, C·T]
        return torch.stack([_flatten(pull(f)[0]) for f in choices])

    def gram(self, join: int = 1) -> Tensor:
        """Return z_t · z_u from per-step scores, a few trajectories at a time."""

        def one(obs: Tensor, action: Tensor) -> Tensor:
            def single(theta: dict[str, Tensor]) -> Tensor:
                return self.scores.log_prob(theta, obs.unsqueeze(0), action.unsqueeze(0))[0]

            return _flatten(grad(single)(self.scores.theta))

        obs, action = (x.reshape(x.shape[0] // join, -1, *x.shape[2:]) for x in (self.obs, self.action))
        size = max(1, ELEMENTS // self.num_parameters)
        out = []
        for o, a in zip(obs, action, strict=True):
            z = self.scores.over_rows(one, size, o, a)
            out.append(z @ z.T)
        return torch.stack(out)


class FunctionalScores(ScoreMap):
    """Score map of any module whose forward gives a torch Distribution."""

    kind = "functional"

    def __init__(self, policy: nn.Module) -> None:
        """Keep θ apart from a private copy of the module.

        ``functional_call`` can corrupt a live module that reaches one submodule by two paths; the copy is never used
        without θ put in, so that what it holds does not matter.
        """
        self.skeleton = copy.deepcopy(policy)
        self.theta = {name: p.detach() for name, p in parameters(policy).items()}
        held = {id(p) for p in parameters(policy).values()}
        self.fixed = {n: x.detach() for n, x in [*policy.named_parameters(), *policy.named_buffers()] if id(x) not in held}
        self.num_parameters = sum(p.numel() for p in self.theta.values())
        self.vectorised = True

    def log_prob(self, theta: dict[str, Tensor], obs: Tensor, action: Tensor) -> Tensor:
        """Return log π_θ(a | s) [n] as a function of θ."""
        return log_prob(functional_call(self.skeleton, {**self.fixed, **theta}, (obs,)), action)

    def over_rows(self, function: Callable[..., Tensor], size: int, *batched: Tensor) -> Tensor:
        """Return ``function`` of every row of the batched arguments: by vmap, or by a loop for a module that vmap refuses.

        Args:
            function: of one row of each argument.
            size: rows that vmap takes together.
            *batched: arguments with a common first axis.

        Returns:
            The results, stacked.

        Raises:
            RuntimeError: what the policy itself raised.
        """
        if self.vectorised:
            try:
                return vmap(function, chunk_size=size)(*batched)
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                self.vectorised = False
                log.info(
                    "%s does something that vmap cannot do, so its scores come one row at a time (slow): %s",
                    type(self.skeleton).__name__,
                    str(error).splitlines()[0],
                )
        return torch.stack([function(*rows) for rows in zip(*batched, strict=True)])

    def at(self, obs: Tensor, action: Tensor) -> FunctionalBatch:
        """Return the scores of a padded batch."""
        return FunctionalBatch(self, obs, action)


def _flatten(theta: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in theta.values()])
