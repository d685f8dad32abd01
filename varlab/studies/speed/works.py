"""What varlab and its peers are given: a policy, trajectories and K choices of φ.

Observations, actions and φ are drawn, not simulated: what gradients cost depends on shapes alone. Ragged works take the lengths
of CartPole's own episodes, longest first, so that every contender may trim its chunks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks, envs, policies, rng
from varlab.policies.base import num_parameters
from varlab.rollout import rollout

#: Trajectories fall into so many blocks of equal size, from which intervals are made.
BLOCKS = 16
#: Trajectories of a work are this times a power of two: two to a pair, a pair at least to a block, and blocks that chunks fill.
UNIT = 2 * BLOCKS
#: Floating-point operations of a work, about: 2 N T K P. Larger trajectories are fewer.
OPERATIONS = 1.3e11


@dataclass(frozen=True)
class Work:
    """One batch of gradients to be taken under K choices of φ.

    Attributes:
        label: such as ``K=8 T=100 MLP 64×64``.
        policy: at fixed θ.
        obs: [N, T, d].
        action: [N, T] or [N, T, D].
        phi: [N, K, T], 0 after the end of a trajectory.
        length: [N] steps of each trajectory, longest first.
    """

    label: str
    policy: nn.Module
    obs: Tensor
    action: Tensor
    phi: Tensor
    length: Tensor

    @property
    def n(self) -> int:
        """N, trajectories."""
        return len(self.obs)

    @property
    def k(self) -> int:
        """K, choices of φ."""
        return self.phi.shape[1]

    @property
    def num_parameters(self) -> int:
        """P, parameters of the policy."""
        return num_parameters(self.policy)

    @property
    def steps(self) -> int:
        """Σ T_i."""
        return int(self.length.sum())

    def pieces(self, chunk: int, first: int = 0, end: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give (obs, action, φ) of ``chunk`` trajectories at a time, from ``first`` to ``end``, trimmed to their longest."""
        end = self.n if end is None else end
        for i in range(first, end, chunk):
            rows, t = slice(i, min(i + chunk, end)), int(self.length[i])
            yield self.obs[rows, :t], self.action[rows, :t], self.phi[rows, :, :t].contiguous()

    def share(self, n: int) -> Work:
        """Return a work of n of these trajectories, spread over all lengths."""
        index = torch.arange(n, device=self.obs.device) * self.n // n
        taken = {name: getattr(self, name)[index] for name in ("obs", "action", "phi", "length")}
        return replace(self, **taken)

    def small(self, dtype: torch.dtype, n: int = UNIT, t: int = 20, k: int = 4) -> Work:
        """Return a work of few trajectories, steps and choices in ``dtype``, on which all must agree."""
        some = self.share(min(n, self.n))
        return replace(
            some,
            policy=copy.deepcopy(self.policy).to(dtype),
            obs=some.obs[:, :t].to(dtype),
            action=some.action[:, :t].to(dtype) if some.action.is_floating_point() else some.action[:, :t],
            phi=some.phi[:, :k, :t].to(dtype),
            length=some.length.clamp(max=t),
        )


def size(k: int, t: int, parameters: int, most: int = 512) -> int:
    """Return how many trajectories a work holds: ``most``, fewer where they are large."""
    return doubled(UNIT, min(most, OPERATIONS / (2 * k * t * parameters)))


def doubled(unit: int, most: float) -> int:
    """Return the largest unit · 2^j that is at most ``most``, or the unit."""
    return unit * 2 ** int(math.log2(max(1.0, most / unit)))


def make(
    k: int = 8,
    t: int = 100,
    hidden: Sequence[int] = (64, 64),
    *,
    gaussian: bool = False,
    ragged: bool = False,
    n: int | None = None,
    most: int = 512,
    device: str = "cpu",
    seed: int = 0,
) -> Work:
    """Draw one work.

    Args:
        k: K choices of φ.
        t: T steps of a trajectory; where ragged, the most.
        hidden: widths of the hidden layers.
        gaussian: whether actions are those of Pendulum (diagonal Gaussian) in the place of CartPole's (categorical).
        ragged: whether lengths are those of CartPole under this policy.
        n: trajectories; :func:`size` if None.
        most: of them, where n is None.
        device: torch device.
        seed: of observations, actions, φ and lengths.

    Returns:
        The work, in float32.

    Raises:
        InputError: unless the trajectories fill blocks of pairs, each a power of two.
    """
    world = envs.make("Pendulum-v1" if gaussian else "CartPole-v1", horizon=t)
    policy = policies.make("mlp", world, hidden=list(hidden))
    n = size(k, t, num_parameters(policy), most) if n is None else checks.positive_int("n", n)
    if n != doubled(UNIT, n):
        raise checks.InputError(
            f"{UNIT} times a power of two was expected as the trajectories of a benchmark, but n is {n}; try {doubled(UNIT, n)}."
        )
    lengths, drawn = rng.children(rng.Streams(seed).sequence("rollout"), 2)
    length = torch.full((n,), t)
    if ragged:
        length = rollout(envs.make("CartPole-v1", horizon=t), _upright(policy, gaussian), n, lengths).length
        length = length.sort(descending=True).values
        t = int(length[0])
    generator = rng.torch_generator(drawn)
    obs = torch.randn(n, t, world.num_features, generator=generator)
    if gaussian:
        action = torch.randn(n, t, world.num_actions, generator=generator)
    else:
        action = torch.randint(0, world.num_actions, (n, t), generator=generator)
    phi = torch.randn(n, k, t, generator=generator) * (torch.arange(t) < length[:, None])[:, None]
    shape = "×".join(map(str, hidden))
    label = f"K={k} {'T≤' if ragged else 'T='}{t} MLP {shape}" + ", Gaussian" * gaussian + ", ragged" * ragged
    moved = (x.to(device) for x in (obs, action, phi, length))
    return Work(label, policy.to(device), *moved)


def _upright(policy: nn.Module, gaussian: bool) -> nn.Module:
    """Return the policy whose episodes of CartPole give the lengths."""
    return policies.make("mlp", envs.make("CartPole-v1")) if gaussian else policy
