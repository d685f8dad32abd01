"""Per-sample gradients of Opacus, with trajectories as samples.

Source: Opacus: User-Friendly Differential Privacy Library in PyTorch (Yousefpour et al., 2021).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from opacus.grad_sample import GradSampleModule, register_grad_sampler
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from varlab.policies.base import Broadcast, categorical
from varlab.studies.speed.peers_torch import Piece, TorchPeer
from varlab.studies.speed.results import Result
from varlab.studies.speed.works import Work


class Actor(nn.Module):
    """The network of a policy with its trajectories [C, T, d] as they are: Opacus takes the first axis for that of samples."""

    def __init__(self, policy: nn.Module) -> None:
        """Copy what has parameters, in the order of the policy's."""
        super().__init__()
        self.net = copy.deepcopy(policy.net)
        self.log_std = None if policy.discrete else copy.deepcopy(policy.log_std)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Return log π(a_t | s_t) [C, T]."""
        out = self.net(obs)
        if self.log_std is None:
            return categorical(out).log_prob(action)
        # Detached: its hook waits for a gradient of the input, which log σ has none of.
        scale = self.log_std(out.detach()).exp()
        return Independent(Normal(out, scale, validate_args=False), 1, validate_args=False).log_prob(action)


@register_grad_sampler(Broadcast)
def _broadcast(layer: Broadcast, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Sum the signal of log σ over the steps of each trajectory: Opacus gives bare parameters no gradient per sample."""
    return {layer.value: backprops.sum(1)}


class Opacus(TorchPeer):
    """One forward and one backward pass with hooks per chunk and Φ."""

    name = "Opacus per-sample gradients"

    def __init__(self, work: Work, result: type[Result]) -> None:
        """Wrap a copy of the policy."""
        super().__init__(work, result)
        self.actor = GradSampleModule(Actor(work.policy), batch_first=True, loss_reduction="sum")

    def gradients(self, obs: Tensor, action: Tensor, phi: Tensor) -> Iterator[Piece]:
        """Give the gradients of one choice after another."""
        for k in range(phi.shape[1]):
            with torch.enable_grad():
                (self.actor(obs, action) * phi[:, k]).sum().backward()
            made = {name.removeprefix("_module."): p.grad_sample for name, p in self.actor.named_parameters()}
            yield from self.tensors(slice(k, k + 1), {name: g.unsqueeze(1) for name, g in made.items()})
            self.actor.zero_grad(set_to_none=True)
